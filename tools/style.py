"""Measure the notebooks' style, and list the numbers in their text that nothing stands behind.

    python -m tools.style

The table has a row for each notebook: words of prose, code cells, the ratio of Markdown to code
cells, lines of code in a cell (median, 90th percentile, most), words of prose per line of code,
"Predict first", figures, exercises and stored size. A line of code is one that is not blank. What
comes after "## Exercises" is extra: only its exercises and its size are counted.

A claim is a number in the text: with decimals, a thousands separator or a unit (%, times,
seconds, kB, …), or a whole number of at least SMALL. Smaller ones stand for words. What is in
backticks or a code block, a link's target, a year, a version, and the number of a list's item,
a section or a notebook are no claims, nor are an exercise's numbers. A claim has a source if

- its paragraph, list item or table row has a link;
- it is a number that the whole collection is about (COMMON);
- the same number, rounded to the digits that the text shows, is in the source, the text outputs
  or the words for the figures of a code cell of the same "## " section or of one beside it.
  98.9 % may be printed as 0.989. What comes after about, some or nearly may be 5 % off (a
  percentage: 5 % of its distance from 0 or 100, whichever is nearer). The cells under the title
  and the recap are about the whole notebook, so all its cells count for them;
- it is in any code cell of another notebook that the paragraph names by its number.

Differences and ratios of printed numbers are not looked for: among so many, some fit by
accident. What is left must be in style_explained.json: for each notebook, exact snippets of its
text, with the reason why they are true. A snippet that no longer holds a claim is an error, too.

Any equal number nearby counts, so this finds what nothing supports, and does not prove the rest.
"""

import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools.standalone import sources

EXPLAINED = Path(__file__).with_name("style_explained.json")
SMALL = 13
COMMON = {
    60_000: "training pictures, read from the header in 01",
    10_000: "test pictures, read from the header in 01",
    70_000: "both together",
    28: "rows and columns, read from the header in 01",
    784: "pixels, 28 times 28",
    60_874: "parameters, counted in 02",
    0.1307: "mean of the pixels, computed in 01",
    0.3081: "their standard deviation, computed in 01",
}

UNIT = (
    r"[ ~]?(?:\\?%|per cent\b|(?:percentage )?points?\b|times\b|×(?! ?\d)|[mµ]?s\b|min\b|hours?\b"
    r"|(?:milli|micro)?seconds?\b|minutes?\b|[kMGT]?B\b|(?:kilo|mega|giga)?bytes?\b)"
)
FIGURES = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[-−]?\d+)?)"
CLAIM = re.compile(
    rf"(?<![\w.])(?P<sign>(?<![\w)])[-−])?(?P<figures>{FIGURES})(?!\w|\.\d|,\d{{3}})"
    # The unit of a range stands at its end: 98 to 99 %.
    rf"(?:(?P<unit>{UNIT})|(?=(?:,? (?:to|and|or) |, | ?[-–] ?){FIGURES}(?P<later>{UNIT})))?"
)
PRINTED = re.compile(r"(?<![\w.])(?:(?<![\w)])[-−])?(?:\d[\d,_]*\d|\d)(?:\.\d+)?(?:e[-+−]?\d+)?")
ROUGHLY = re.compile(r"(?i)(?:\b(?:about|some|nearly|almost|around|roughly)|≈|~)\W*$")
NO_CLAIM = re.compile(
    r"`[^`]*`|\]\((?:[^()]|\([^()]*\))*\)|https?://\S+|</?[A-Za-z][^>]*>"
    r"|\\[A-Za-z]+|[_^]\{?[-−]?\d+\}?"  # of LaTeX: names of commands, indices, exponents
    r"|^(?:> )*(?:#+ \d+\.?|\d{1,2}\.) "  # of headings and lists
    r"|(?i:\b(?:section|notebook|exercise|figure)s?) \d+(?:(?:,| to| and| or|, and) \d+\b)*"
    r"|\b0\d\b(?!\.)|\b(?:19[5-9]|20[0-3])\d\b(?! ?(?:%|×|·|by))"
    r"|\b(?:Python|PyTorch|NumPy|CUDA|CC BY-SA) (?:before )?\d+(?:\.\d+)+"
    r"|\b[A-Z]+-\d[\d-]*"  # CVE-2025-32434
)
NAMED = re.compile(r"\b0\d\b(?!\.)|(?<=notebook )10\b")  # other notebooks
SENTENCE_END = re.compile(r"[.?!][)\"*]* (?=[A-Z(*>$\d\"])")
# Widths and sizes of what is shown would match anything: {count:6}, figsize=(9, 3).
LAYOUT = re.compile(r":[^{}\s:]+(?=\})|\b(?:fig|font)?size=(?:\([^)]*\)|[\d.]+)")
EXERCISES = re.compile(r"(?m)^## Exercises$")
COLUMNS = {  # and how each is shown
    "words": ",.0f", "cells": ".0f", "md:code": ".2f", "lines": ".0f", "90 %": ".0f", "max": ".0f",
    "w/line": ".1f", "predict": ".0f", "figs": ".0f", "exerc.": ".0f", "kB": ",.0f",
}  # fmt: skip
MEDIANS = {"md:code", "lines", "90 %", "max", "w/line"}  # in the last row; totals elsewhere


@dataclass
class Claim:
    notebook: str
    cell: int
    block: str  # the paragraph, list item or table row
    start: int
    stop: int
    sourced: bool

    @property
    def sentence(self) -> str:
        ends = [match.end() for match in SENTENCE_END.finditer(self.block)]
        first = max((end for end in ends if end <= self.start), default=0)
        last = min((end for end in ends if end >= self.stop), default=None)
        return self.block[first:last].strip()

    def is_in(self, snippet: str) -> bool:
        places = (match.start() for match in re.finditer(re.escape(snippet), self.block))
        return any(p <= self.start and self.stop <= p + len(snippet) for p in places)

    def __str__(self):
        number = self.block[self.start : self.stop]
        return f"{self.notebook}, cell {self.cell}: {number}\n    {self.sentence}"


def blocks(text: str) -> list[str]:
    """Split Markdown into paragraphs, list items, table rows and headings, each in one line."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    # What may begin without a blank line before it; "2019. " at the start of a line may not.
    start = r"\n(?=[ >]*(?:[-*+] |\d{1,2}\. |\||#+ ))"
    found = re.split(rf"\n\s*\n|{start}", text)
    return [" ".join(block.split()) for block in found if block.strip()]


def is_figure(output) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def value_of(figures: str) -> tuple[float, int]:
    """Return a number, and how many decimals it shows."""
    figures = figures.replace("−", "-").replace(",", "").replace("_", "")
    mantissa, _, exponent = figures.partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return float(figures), max(decimals, 0)


def numbers_of(cell) -> list[float]:
    """Return what a code cell sets and prints, and what the words for its figures say."""
    texts = [LAYOUT.sub("", cell.source), cell.metadata.get("alt", "")]
    for output in cell.outputs:
        if not is_figure(output):  # whose text is its size
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return [value_of(match[0])[0] for match in PRINTED.finditer("\n".join(texts))]


def agrees(claim: re.Match, roughly: bool, known: list[float]) -> bool:
    """Whether a claim is one of the known numbers, rounded to the decimals that it shows."""
    value, decimals = value_of(claim["figures"])
    wanted = [(value, 0.5 * 10**-decimals, 0.05 * value)]
    if re.search(r"%|cent|point", claim["unit"] or claim["later"] or ""):
        slack = 0.05 * max(min(value, 100 - value), 0)
        wanted = [(value, 0.5 * 10**-decimals, slack)]
        wanted.append(tuple(part / 100 for part in wanted[0]))
    for number in known:
        if claim["sign"] and number > 0:
            continue
        for value, half, slack in wanted:
            allowed = max(half, slack if roughly else 0) + 1e-9 * value  # floats are inexact
            if abs(abs(number) - value) <= allowed:
                return True
    return False


def before_exercises(notebook) -> tuple[list, str]:
    """Return the cells before the exercises, and the text from there on."""
    for place, cell in enumerate(notebook.cells):
        found = EXERCISES.search(cell.source) if cell.cell_type == "markdown" else None
        if found:
            text, extra = cell.source[: found.start()], [cell.source[found.start() :]]
            last = [nbformat.v4.new_markdown_cell(text)] if text.strip() else []
            extra += [c.source for c in notebook.cells[place + 1 :] if c.cell_type == "markdown"]
            return notebook.cells[:place] + last, "\n".join(extra)
    return notebook.cells, ""


def claims(notebook, name: str, others: dict[str, list] | None = None) -> Iterator[Claim]:
    """Yield the claims of a notebook. ``others``: the numbers of each notebook, by its number."""
    prose, code, section, title = [], [[]], 0, ""
    for number, cell in enumerate(before_exercises(notebook)[0]):
        if cell.cell_type == "code":
            code[section] += numbers_of(cell)
        for block in blocks(cell.source) if cell.cell_type == "markdown" else ():
            if block.startswith("## "):
                section, title = section + 1, block
                code.append([])
            whole = title in ("", "## Recap")
            near = slice(None) if whole else slice(max(0, section - 1), section + 2)
            prose.append((number, block, near))
    for number, block, near in prose:
        known = sum(code[near], [])
        for other in NAMED.findall(block):
            known += (others or {}).get(other, [])
        bare = NO_CLAIM.sub(lambda match: " " * len(match[0]), block)
        for match in CLAIM.finditer(bare):
            value, decimals = value_of(match["figures"])
            unit = match["unit"] or match["later"]
            if value < SMALL and not decimals and not unit:
                continue
            roughly = bool(ROUGHLY.search(bare[: match.start()]))
            sourced = "](http" in block or (value in COMMON and not unit)
            sourced = sourced or agrees(match, roughly, known)
            yield Claim(name, number, block, match.start(), match.end(), sourced)


def check(notebooks: dict, explained: dict[str, dict[str, str]]):
    """Return all claims, those with neither source nor explanation, and stale explanations."""
    others = {}
    for name, book in notebooks.items():
        code = [cell for cell in before_exercises(book)[0] if cell.cell_type == "code"]
        others[name[:2]] = [number for cell in code for number in numbers_of(cell)]
    every = [c for name, book in notebooks.items() for c in claims(book, name, others)]
    left, stale = [claim for claim in every if not claim.sourced], []
    for name, snippets in explained.items():
        for snippet in snippets:
            # Sourced claims count as well: a new run may print by chance what was explained.
            if not any(c.notebook == name and c.is_in(snippet) for c in every):
                stale.append(f"{name}: {snippet}")
            left = [c for c in left if c.notebook != name or not c.is_in(snippet)]
    return every, left, stale


def measures(notebook, size: int) -> list[float]:
    """Return what the table shows of a notebook: a number for each of COLUMNS."""
    cells, extra = before_exercises(notebook)
    markdown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = [cell for cell in cells if cell.cell_type == "code"]
    words = sum(len(text.split()) for text in markdown)
    lines = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code]
    most = statistics.quantiles(lines, n=10, method="inclusive")[-1]
    return [
        words, len(code), len(markdown) / len(code), statistics.median(lines), most, max(lines),
        words / sum(lines), sum(text.count("**Predict first.**") for text in markdown),
        sum(is_figure(output) for cell in code for output in cell.outputs),
        len(re.findall(r"(?m)^(?:### )?\d+\. ", extra)), size / 1000,
    ]  # fmt: skip


def table(rows: dict[str, list[float]]) -> str:
    """Return the rows, and their totals or medians, as aligned text."""
    lines = [["notebook", *COLUMNS]]
    last = [
        (statistics.median if name in MEDIANS else sum)(column)
        for name, column in zip(COLUMNS, zip(*rows.values()))
    ]
    for name, row in (rows | {"total or median": last}).items():
        lines.append([name, *map(format, row, COLUMNS.values())])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        f"{name:{widths[0]}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths[1:]))
        for name, *cells in lines
    )


def main() -> int:
    paths = {path.stem: path for path in sources()}
    notebooks = {name: nbformat.read(path, as_version=4) for name, path in paths.items()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    print(table({name: measures(book, sizes[name]) for name, book in notebooks.items()}))

    explained = json.loads(EXPLAINED.read_text(encoding="utf-8"))
    every, left, stale = check(notebooks, explained)
    open_, sourced = len(left), sum(claim.sourced for claim in every)
    print(f"\n{len(every)} claims: {sourced} with a source,", end=" ")
    print(f"{len(every) - sourced - open_} explained, {open_} open")
    for claim in left:
        print(claim)
    for snippet in stale:
        print(f"explained, but not in the text: {snippet}")
    return bool(left or stale)


if __name__ == "__main__":
    sys.exit(main())
