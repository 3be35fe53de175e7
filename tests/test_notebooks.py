"""What every notebook promises, and that nbval would notice if one broke its word."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

import utils
from tools.notebook_code import definitions, refused

NOTEBOOKS = sorted((utils.ROOT / "notebooks").glob("[!.]*.ipynb"))
SOLUTIONS = sorted((utils.ROOT / "notebooks" / "solutions").glob("[!.]*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
both_kinds = pytest.mark.parametrize(
    "path", NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def prose(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_the_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_idx_files", "02_model", "03_training", "04_evaluation", "05_visualization",
        "06_your_handwriting", "07_speed", "08_accuracy", "09_scaling_out", "10_your_hand",
    ]  # fmt: skip
    assert [path.name for path in SOLUTIONS] == [path.name for path in NOTEBOOKS]


# ----------------------------------------------------------------- hygiene


@both_kinds
def test_notebook_is_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 1_000_000


@both_kinds
def test_first_code_cell_is_the_same_everywhere(path):
    first = code_cells(path)[0].source
    assert first == code_cells(NOTEBOOKS[0])[0].source
    assert len(first.splitlines()) <= 8
    assert not re.search(r"^\s*[%!]", first, re.MULTILINE)


@both_kinds
def test_every_cell_was_run_in_order(path):
    cells = code_cells(path)
    assert all(cell.source.strip() for cell in cells), "an empty cell"
    execute = "run it: .venv/bin/python -m tools.run_notebooks --in-place NN"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), execute
    for cell in cells:
        calls = [n.value for n in ast.parse(cell.source).body if isinstance(n, ast.Expr)]
        prints = any(getattr(getattr(call, "func", None), "id", "") == "print" for call in calls)
        assert cell.outputs or not prints, f"{execute}\n{cell.source}"


@both_kinds
def test_stored_outputs_are_clean(path):
    """No errors, no stderr, no widgets, no timings, no figures' text without the figure."""
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(path):
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not any("widget" in kind for kind in output.get("data", {}))


@both_kinds
def test_no_path_of_a_machine(path):
    """Only the paths that Kaggle itself fixes may appear."""
    text = path.read_text(encoding="utf-8")
    folders = "home|root|tmp|var|usr|opt|mnt|srv|work|Users|Volumes|content"
    assert re.findall(rf"(?<![\w.])/(?:{folders})/[\w./-]*|\b[A-Z]:\\\\[\w.-]*", text) == []


@both_kinds
def test_cells_are_short_and_lines_fit(path):
    for cell in code_cells(path):
        ast.parse(cell.source)
        lines = cell.source.splitlines()
        assert len(lines) <= 25, f"{len(lines)} lines, at most 25: {lines[0]}"
        assert [line for line in lines if len(line) > 100] == []


@both_kinds
def test_output_lines_fit(path):
    """A page does not scroll sideways for what a cell prints."""
    for cell in code_cells(path):
        for output in cell.outputs:
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            assert [line for line in text.splitlines() if len(line) > 100] == []


@every_notebook
def test_a_notebook_is_one_sitting(path):
    """The exercises, at most 500 words, are for other evenings."""
    text, exercises = prose(path).split("## Exercises")
    assert len(text.split()) <= 2_800 and len(exercises.split()) <= 500
    cells = code_cells(path)
    assert sum("def check_" not in cell.source for cell in cells) <= 40
    for cell in cells[1:]:  # the first one is the same in all notebooks
        wide = 100 if path.stem == "06_your_handwriting" else 88
        assert [line for line in cell.source.splitlines() if len(line) > wide] == []


@every_notebook
def test_two_places_to_predict(path):
    """Where the reader commits to an answer before running the cell."""
    places = re.findall(r"^> \*\*Predict first\.\*\*", prose(path), re.MULTILINE)
    assert len(places) >= 2


def test_one_network_through_the_notebooks():
    """The stored outputs of 03 to 06 and of 10 are about the modelku.pth of one run."""
    line = re.compile(r"(?m)^(?:modelku\.pth|This network): (\S+) of the 10,000 test pictures$")
    printed = {}
    for number in ("03", "04", "05", "06", "10"):
        (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
        cells = code_cells(path)
        outputs = [output for cell in cells for output in cell.outputs]
        text = "\n".join(o.text for o in outputs if o.get("name") == "stdout")
        printed[number] = set(line.findall(text))
    first = printed["03"]
    assert len(first) == 1 and all(found == first for found in printed.values()), printed


@every_notebook
def test_opening_and_closing(path):
    text = prose(path)
    assert text.startswith("# ")
    for phrase in ("**What you will do.**", "**What you will learn.**", "**What you need.**",
                   "**Time.**", "## Recap", "## Exercises"):  # fmt: skip
        assert phrase in text, phrase
    assert f"[solutions](solutions/{path.name})" in text.split("## Exercises")[1]


@every_solution
def test_every_exercise_has_a_check_that_was_tried(path):
    """The solution passes it, and at least two wrong answers do not: see ``refused``."""
    notebook = nbformat.read(path, as_version=4)
    titles = re.compile(r"(?m)^##+ (\d\. .+)$")
    exercises = prose(path.parents[1] / path.name).split("## Exercises")[1]
    assert titles.findall(exercises) == titles.findall(prose(path)), "exercises, solutions"
    numbers = [title[0] for title in titles.findall(exercises)]
    assert numbers == list("12345")[: len(numbers)] and len(numbers) >= 3
    module = definitions(path.stem)
    for number in numbers:
        check = getattr(module, f"check_{number}", None)
        assert check, f"no cell defines check_{number}"
        assert f"Exercise {number}: right" in inspect.getsource(check)
        said = "".join(
            output.get("text", "")
            for cell in notebook.cells
            if cell.cell_type == "code" and re.search(rf"\.check_{number}\b", cell.source)
            for output in cell.outputs
        )
        assert f"Exercise {number}: right" in said
        assert len(re.findall(r"(?m)^refused: \S", said)) >= 2


def test_refused_notices_what_passes():
    with pytest.raises(ValueError, match="took a wrong answer for right: 3"):
        refused(lambda number: None, 3)


@both_kinds
def test_every_figure_is_labelled(path):
    """Whoever draws with axes names them."""
    for cell in code_cells(path):
        if re.search(r"\.(plot|semilogy|bar|barh|errorbar)\(", cell.source):
            assert "xlabel=" in cell.source, cell.source


def words_for_figures(path):
    """What stands in for the figures of each cell that has any, where they cannot be seen."""
    for cell in code_cells(path):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if any(kind.startswith("image/") for kind in kinds):
            yield cell.source, cell.metadata.get("alt", "")


@pytest.mark.long
@both_kinds
def test_every_figure_has_words(path):
    """In its cell's metadata; of nbconvert's templates, classic puts them on the page."""
    everywhere = [words for p in NOTEBOOKS + SOLUTIONS for _, words in words_for_figures(p)]
    for source, words in words_for_figures(path):
        assert len(words) >= 60, source
        assert everywhere.count(words) == 1, source
    page, _ = HTMLExporter(template_name="classic").from_filename(str(path))
    assert "No description has been provided" not in page


@both_kinds
def test_trained_numbers_are_asserted_not_compared(path):
    """A cell whose output nbval ignores must leave its checking to an assert, in the cell
    or in one near it."""
    cells = code_cells(path)
    for number, cell in enumerate(cells):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            near = "\n".join(c.source for c in cells[max(0, number - 2) : number + 3])
            assert "assert " in near, cell.source


# ------------------------------------------------------- nbval can turn red


def run_nbval(path, outputs):
    command = [
        sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout=600", "-q", str(path),
        "-p", "no:cacheprovider", "--rootdir", str(path.parent),
    ]  # fmt: skip
    environment = os.environ | {
        "MNIST_DIR": str(utils.find_mnist()["t10k-labels.idx1-ubyte"].parent),
        "MNIST_OUTPUT_DIR": str(outputs),
    }
    return subprocess.run(
        command, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture
def copied(tmp_path):
    """Copies a notebook beside a copy of utils.py, as somebody might who wants just one."""

    def copy(name) -> Path:
        for file in ("utils.py", "conftest.py", f"notebooks/{name}.ipynb"):
            shutil.copy(utils.ROOT / file, tmp_path)
        return tmp_path / f"{name}.ipynb"

    return copy


def up_to(path, text):
    """Cut the copied notebook after the first code cell that contains the text; return both."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    number = next(n for n, c in enumerate(cells) if c.cell_type == "code" and text in c.source)
    notebook.cells = cells[: number + 1]
    return notebook, cells[number]


@pytest.mark.slow
def test_nbval_notices_a_changed_output(copied, tmp_path):
    path = copied("01_idx_files")
    notebook, cell = up_to(path, "magic, count, rows, columns = struct.unpack")
    (output,) = cell.outputs
    assert "2051" in output.text
    output.text = output.text.replace("2051", "2052")
    nbformat.write(notebook, path)
    result = run_nbval(path, tmp_path / "outputs")
    assert result.returncode == 1 and "1 failed" in result.stdout, result.stdout
    assert "2052" in result.stdout


@pytest.mark.slow
def test_nbval_notices_a_broken_cell(copied, tmp_path):
    path = copied("01_idx_files")
    notebook, cell = up_to(path, "def parse_idx(data):")
    assert "start = 4 + 4 * dimensions" in cell.source
    cell.source = cell.source.replace("start = 4 + 4", "start = 4 + 5")
    nbformat.write(notebook, path)
    result = run_nbval(path, tmp_path / "outputs")
    assert result.returncode == 1 and "1 failed" in result.stdout, result.stdout
    assert "unpack requires a buffer" in result.stdout
