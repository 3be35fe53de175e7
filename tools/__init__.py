"""What ``make`` calls: each module runs as ``python -m tools.NAME`` in the root folder."""
