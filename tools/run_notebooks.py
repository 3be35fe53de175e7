"""Execute notebooks from a fresh kernel each and show what is going on meanwhile.

    python -m tools.run_notebooks                 every notebook, results into outputs/
    python -m tools.run_notebooks 01 02 03        only those whose names start so
    python -m tools.run_notebooks --in-place      replace the stored outputs instead, and those
                                                  of the solutions to exercises

Stops at the first cell that fails and shows it.
"""

import argparse
import base64
import io
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

import utils

QUIET_SECONDS = 3  # a cell that runs longer than this has its prints shown as they come


class TalkingClient(NotebookClient):
    """Runs a notebook and reports each cell, and the prints of the slow ones."""

    def announce(self, cell, cell_index):
        if cell.cell_type == "code":
            self.number = getattr(self, "number", 0) + 1
            self.started = time.monotonic()
            total = sum(c.cell_type == "code" for c in self.nb.cells)
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            print(f"  cell {self.number:2d}/{total}  {first[:80]}", flush=True)

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream" and time.monotonic() - self.started > QUIET_SECONDS:
            text, progress_bar = msg["content"]["text"], msg["content"]["name"] == "stderr"
            width = shutil.get_terminal_size().columns - 1
            if not progress_bar:  # spaces wipe it off: not every console knows escape sequences
                wiped = f"\r{'':{width}}\r" if sys.stdout.isatty() else ""
                print(wiped + text.rstrip("\n"), flush=True)
            elif sys.stdout.isatty():
                print("\r" + text.strip("\r\n")[:width].ljust(width), end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with fresh outputs, none of them on stderr and none with timings."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    client = TalkingClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.on_cell_start = client.announce
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Progress bars and warnings belong to one run on one machine, not to the page.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def shrink_figures(notebook: nbformat.NotebookNode) -> None:
    """Store each PNG with a palette of 256 colours: a third of the bytes, the same to the eye."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                figure = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                small = io.BytesIO()
                figure.convert("RGB").quantize(dither=Image.Dither.NONE).save(small, "PNG")
                output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="first letters of notebook names; all if none")
    parser.add_argument("--in-place", action="store_true", help="replace the stored outputs")
    arguments = parser.parse_args()

    paths = sorted((utils.ROOT / "notebooks").glob("[!.]*.ipynb"))  # not macOS's ._01
    if arguments.in_place:
        paths += sorted((utils.ROOT / "notebooks" / "solutions").glob("[!.]*.ipynb"))
    if arguments.names:
        paths = [path for path in paths if path.name.startswith(tuple(arguments.names))]
    if not paths:
        print(f"No notebook in {utils.ROOT / 'notebooks'} starts with {arguments.names}")
        return 2

    for variable in ("MNIST_DIR", "MNIST_OUTPUT_DIR"):  # kernels start in another folder
        if os.environ.get(variable):
            os.environ[variable] = os.path.abspath(os.path.expanduser(os.environ[variable]))
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.relative_to(utils.ROOT)}", flush=True)
        started = time.monotonic()
        try:
            notebook = execute(path)
        except (CellExecutionError, DeadKernelError) as error:
            print(f"\n{path.name} failed:\n{error}")
            return 1
        if arguments.in_place:
            shrink_figures(notebook)
        target = path if arguments.in_place else utils.output_dir() / path.name
        utils.write_whole(target, (nbformat.writes(notebook) + "\n").encode())
        print(f"  done in {time.monotonic() - started:.0f} s", flush=True)

    if not arguments.in_place and (utils.output_dir() / "modelku.pth").is_file():
        model, _ = utils.trained_model()
        _, accuracy = utils.evaluate(model, utils.make_loader(utils.load_mnist("test"), 500))
        print(f"\nTest accuracy:      {accuracy:.2%}")
        print(f"Trained model:      {utils.output_dir() / 'modelku.pth'}")
        print(f"Executed notebooks: {utils.output_dir()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
