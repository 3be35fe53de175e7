"""Use what a notebook defines without running it.

A notebook teaches the code that it defines, so that is where the code stands, once. Tools, tests
and the solutions to exercises load it from there: the cells that carry the tag "definitions".
"""

import functools
import json
import linecache
import sys
import textwrap
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def definitions(name: str) -> types.ModuleType:
    """Execute the cells of notebooks/``name``.ipynb tagged "definitions"; return them as a module.

    Raises LookupError if no cell has the tag.
    """
    import utils  # here, because tools that only copy notebooks do without PyTorch

    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if "definitions" in c["metadata"].get("tags", [])]
    if not cells:
        raise LookupError(f'{name}.ipynb: expected cells with the tag "definitions", found none.')
    module = types.ModuleType(f"notebook_{name}")
    module.utils, module.Path = utils, Path  # from the first cell, which every notebook has
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    for cell in cells:
        file, source = f"{name}.ipynb, {cell['id']}", "".join(cell["source"])
        lines = source.splitlines(keepends=True)
        linecache.cache[file] = (len(source), None, lines, file)  # for inspect.getsource
        exec(compile(source, file, "exec"), module.__dict__)
    return module


def refused(check, *answers) -> None:
    """Show what the check of an exercise says to wrong answers; a tuple is several arguments.

    Raises ValueError if the check lets one of them pass.
    """
    for answer in answers:
        try:
            check(*answer) if isinstance(answer, tuple) else check(answer)
        except AssertionError as error:
            print(textwrap.fill(f"refused: {error}", 88, subsequent_indent="         "))
        else:
            raise ValueError(f"{check.__name__} took a wrong answer for right: {answer!r:.200}")
