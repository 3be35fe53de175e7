"""The rules of style that can be checked, and the search for numbers that nothing stands behind."""

import functools
import json
from itertools import groupby

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import style
from tools.standalone import sources

PATHS = {path.stem: path for path in sources()}
every_notebook = pytest.mark.parametrize("name", PATHS)


@functools.cache
def notebook(name):
    return nbformat.read(PATHS[name], as_version=4)


def opening(cell):
    """A cell, by its first line, for messages."""
    return cell.source.splitlines()[0]


# ------------------------------------------------------------------- rules


def unread_figures(cells):
    """Cells with a figure that is not followed by text about it: a heading begins another topic."""
    for cell, following in zip(cells, [*cells[1:], new_markdown_cell("# the end")]):
        shows = cell.cell_type == "code" and any(map(style.is_figure, cell.outputs))
        if shows and (following.cell_type == "code" or following.source.startswith("#")):
            yield opening(cell)


def bare_headings(cells):
    """Headings that code follows without a sentence in between."""
    for cell, following in zip(cells, cells[1:]):
        if cell.cell_type == "markdown" and following.cell_type == "code":
            last = style.blocks(cell.source)[-1]
            if last.startswith("#"):
                yield last


def rows_of_code(cells):
    """How many code cells follow each other, and the first of them, for each such row."""
    for kind, row in groupby(cells, lambda cell: cell.cell_type):
        if kind == "code":
            row = list(row)
            yield len(row), opening(row[0])


@every_notebook
def test_every_figure_is_read(name):
    """The reader is told what to see in it; what comes with the exercises is theirs to read."""
    cells, _ = style.before_exercises(notebook(name))
    assert list(unread_figures(cells)) == []


@every_notebook
def test_text_between_a_heading_and_code(name):
    assert list(bare_headings(notebook(name).cells)) == []


@every_notebook
def test_text_after_three_code_cells(name):
    cells = list(notebook(name).cells)
    # The same in all notebooks, so nobody reads it twice.
    cells.remove(next(cell for cell in cells if cell.cell_type == "code"))
    assert [row for row in rows_of_code(cells) if row[0] > 3] == []


# ------------------------------------------------------------------ claims


@functools.cache
def checked():
    explained = json.loads(style.EXPLAINED.read_text(encoding="utf-8"))
    return style.check({name: notebook(name) for name in PATHS}, explained)


@every_notebook
def test_no_unexplained_claim(name):
    _, left, _ = checked()
    advice = "compute it near there, link a source, or explain it in tools/style_explained.json"
    assert [str(claim) for claim in left if claim.notebook == name] == [], advice


def test_no_stale_explanation():
    _, _, stale = checked()
    assert stale == []


# ------------------------------------------------- the rules can turn red


def text(source):
    return new_markdown_cell(source)


def code(source="", printed="", **metadata):
    outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    return new_code_cell(source, outputs=outputs, metadata=metadata)


def figure():
    return new_code_cell("draw()", outputs=[new_output("display_data", data={"image/png": ""})])


def test_an_unread_figure_is_noticed():
    assert list(unread_figures([figure(), text("It rises.")])) == []
    assert list(unread_figures([figure(), code("more()"), text("It rises.")])) == ["draw()"]
    assert list(unread_figures([figure(), text("## Next")])) == ["draw()"]
    assert list(unread_figures([text("At last:"), figure()])) == ["draw()"]


def test_a_bare_heading_is_noticed():
    assert list(bare_headings([text("## Load\n\nFirst the data."), code("load()")])) == []
    assert list(bare_headings([text("That is all.\n\n## Load"), code("load()")])) == ["## Load"]


def test_rows_of_code_are_counted():
    cells = [code("a"), text("So."), code("b"), code("c"), text("There."), code("d")]
    assert list(rows_of_code(cells)) == [(1, "a"), (2, "b"), (1, "d")]


# ---------------------------------------------- the search finds its numbers


def open_in(*cells, explained=None):
    """The numbers of a made-up notebook that are neither sourced nor explained; what is stale."""
    book = new_notebook(cells=list(cells))
    _, found, stale = style.check({"01_made_up": book}, {"01_made_up": explained or {}})
    return [claim.block[claim.start : claim.stop] for claim in found], stale


@pytest.mark.parametrize(
    "claim, printed",
    [
        ("It reads 98.94 % of them.", "accuracy 0.9894"),
        ("It reads 98.94 % of them.", "accuracy 98.94%"),
        ("It reads 99 % of them.", "accuracy 0.9894"),
        ("It reads 98 to 99 % of them.", "from 0.981 to 0.9894"),
        ("A loss of 0.23 is left.", "loss 0.2293"),
        ("There are 60,123 of them.", "60123"),
        ("There are 60,123 of them.", "60_123"),
        ("They differ by 1e-5.", "1e-05"),
        ("The weight is −0.42.", "-0.4242"),
        ("It takes about 20 seconds.", "20.9 s"),
        ("The rate\nis 0.003.", "0.003"),
    ],
)
def test_what_is_computed_nearby_has_a_source(claim, printed):
    assert open_in(text("## Here"), code("f()", printed), text(claim)) == ([], [])
    assert open_in(text("## Here"), code(printed), text(claim)) == ([], [])
    assert open_in(text("## Here"), code("f()", alt=printed), text(claim)) == ([], [])
    assert open_in(text("## Here"), text(claim))[0] != []


@pytest.mark.parametrize(
    "claim, number, printed",
    [
        ("It reads 98.95 % of them.", "98.95 %", "accuracy 0.9894"),
        ("It reads 98 % of them.", "98 %", "accuracy 0.9894"),
        ("It reads about 97 % of them.", "97 %", "accuracy 0.9894"),
        ("A loss of 0.24 is left.", "0.24", "loss 0.2293"),
        ("A loss of 0.230 is left.", "0.230", "loss 0.23102"),
        ("A loss of 0.23 is left.", "0.23", "loss 0.2"),
        ("The weight is −0.42.", "−0.42", "0.4242"),
        ("It takes about 20 seconds.", "20 seconds", "22.1 s"),
        ("It takes 5 s.", "5 s", "4.2 s"),
        ("There are 17 of them.", "17", "18"),
        ("It gained 0.3 points.", "0.3 points", "98.1 and 98.4"),
    ],
)
def test_what_is_not_computed_is_listed(claim, number, printed):
    assert open_in(text("## Here"), code("f()", printed), text(claim)) == ([number], [])


def test_sizes_on_the_page_are_no_results():
    size = new_output("display_data", data={"image/png": "", "text/plain": "<Figure 17x17>"})
    shows = new_code_cell('draw(figsize=(17, 17))\nf"{count:17}"', outputs=[size])
    assert open_in(text("## Here"), shows, text("There were 17 of them."))[0] == ["17"]
    assert open_in(text("## Here"), code("draw(batch_size=17)"), text("There were 17."))[0] == []


@pytest.mark.parametrize(
    "claim",
    [
        "[Somebody](https://example.org) found 17.3 % in 1998.",
        "[They](https://example.org) used a GPU of\n2019. It took 0.76 seconds.",
        "The 60,000 pictures are 28 × 28 pixels.",
        "In `x = 17.3` and in [this](https://example.org/17_(18)_19) nothing is claimed.",
        "Three digits, 7 of them, or 12.",
        "1. A list\n2. of two",
        "## 17. A heading",
        "> 17. A quoted list",
        "See section 17, and notebooks 03 and 07 to 09.",
        "Kingma and Ba wrote it in 2014, for Python 3.10 and PyTorch 2.6.",
        "The conv2 layer, float32, and CVE-2025-32434.",
        "```\nrun 17.3\n```",
        r"The sum $x_{17}$ and $2^{18}$.",
    ],
)
def test_what_needs_no_cell(claim):
    assert open_in(text("## Here"), text(claim)) == ([], [])


def test_a_link_is_for_its_own_paragraph():
    link = "[Somebody](https://example.org) found 17.3 %."
    assert open_in(text(f"{link}\n\nOthers found 18.4 %."))[0] == ["18.4 %"]
    assert open_in(text(f"- {link}\n- Others found 18.4 %."))[0] == ["18.4 %"]
    assert open_in(text(f"| a | b |\n| --- | --- |\n| {link} | 5 |\n| others | 18.4 % |"))[0] == [
        "18.4 %"
    ]


def test_nearby_is_this_section_and_its_neighbours():
    claim, first, second = text("There were 17.3 %."), text("## First"), text("## Second")
    assert open_in(first, code("0.173"), second, claim)[0] == []
    assert open_in(first, claim, second, code("0.173"))[0] == []
    assert open_in(first, code("0.173"), second, text("## Third"), claim)[0] == ["17.3 %"]
    # The recap and the title are about all of it.
    assert open_in(first, code("0.173"), second, text("## Recap\n\nThere were 17.3 %."))[0] == []
    assert open_in(text("# Title\n\nThere were 17.3 %."), first, second, code("0.173"))[0] == []


def test_exercises_claim_nothing_and_prove_nothing():
    exercise = text("There were 17.3 %.\n\n## Exercises\n\n### 1. Find\n\nDo it with 99.5 %.")
    assert open_in(text("## Here"), exercise, code("0.173"))[0] == ["17.3 %"]


def test_another_notebook_is_a_source_where_it_is_named():
    there = new_notebook(cells=[text("## There"), code("f()", "17.3 %")])

    def open_numbers(claim):
        here = new_notebook(cells=[text("## Here"), text(claim)])
        return len(style.check({"01_here": here, "02_there": there}, {})[1])

    assert open_numbers("As notebook 02 measured, 17.3 % were.") == 0
    assert open_numbers("As notebook 03 measured, 17.3 % were.") == 1
    assert open_numbers("As was measured, 17.3 % were.") == 1


def test_an_explanation_is_for_its_snippet_and_goes_stale():
    claim = text("## Here\n\nThere were 17.3 % and\nlater 17.3 seconds more.")
    assert open_in(claim, explained={"17.3 % and later": "a reason"}) == (["17.3 seconds"], [])
    assert open_in(claim, explained={"17.3": "without its unit"})[1] == ["01_made_up: 17.3"]
    assert open_in(claim, explained={"18 % and": "gone"}) == (
        ["17.3 %", "17.3 seconds"],
        ["01_made_up: 18 % and"],
    )
    # A number that happens to be printed as well does not make the explanation stale.
    assert open_in(claim, code("17.3"), explained={"17.3 % and later": "a reason"}) == ([], [])
    book = new_notebook(cells=[claim])
    assert style.check({"01_made_up": book}, {"02_no_such": {"17.3 % and": "a reason"}})[2]


def test_the_sentence_around_a_number_is_shown():
    claim = text("## Here\n\nBefore it. There were 17.3 % (see there). After it.")
    _, (found,), _ = style.check({"01_made_up": new_notebook(cells=[claim])}, {})
    assert found.sentence == "There were 17.3 % (see there)."
    assert str(found).splitlines()[0] == "01_made_up, cell 0: 17.3 %"


# --------------------------------------------------------------- the table


def test_measures_leave_the_exercises_out():
    asks = "> **Predict first.** Why?"
    extra = "## Exercises\n\n### 1. Find\n\nmany more words\n\n### 2. Seek"
    cells = [text(f"# Two words\n\n{asks}"), code("a\n\n# b"), figure(), text(f"End.\n\n{extra}")]
    found = style.measures(new_notebook(cells=[*cells, code("x"), text("3. Lose")]), size=2500)
    row = dict(zip(style.COLUMNS, found))
    assert row == {
        "words": 8, "cells": 2, "md:code": 1.0, "lines": 1.5, "90 %": pytest.approx(1.9), "max": 2,
        "w/line": 8 / 3, "predict": 1, "figs": 1, "exerc.": 3, "kB": 2.5,
    }  # fmt: skip


def test_the_table_fits_and_sums_up(capsys):
    style.main()
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["notebook", *PATHS, "total"]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100


def test_what_is_open_or_stale_fails(capsys, monkeypatch, tmp_path):
    def explained(content):
        path = tmp_path / "explained.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr(style, "EXPLAINED", path)
        return style.main()

    monkeypatch.setattr(style, "sources", lambda: [tmp_path / "01_made_up.ipynb"])
    cells = [text("# Title"), code("f()"), code("g()"), text("## Here\n\nThere were 17.3 %.")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_made_up.ipynb")
    assert explained({}) == 1
    assert "1 open" in capsys.readouterr().out
    assert explained({"01_made_up": {"There were 17.3 %": "a reason"}}) == 0
    assert explained({"01_made_up": {"There were 17.3 %": "a", "There was": "b"}}) == 1
    assert "explained, but not in the text: 01_made_up: There was" in capsys.readouterr().out
