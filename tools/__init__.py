"""What ``make`` calls: each module runs as ``python -m tools.NAME`` in the root folder."""

import sys

# A pipe on Windows takes the letters of cp1252 alone, where notebooks print more: others become
# question marks, not an error. On stderr, Python writes them as escapes by itself.
if hasattr(sys.stdout, "reconfigure"):  # in a notebook it has not
    sys.stdout.reconfigure(errors="replace")
