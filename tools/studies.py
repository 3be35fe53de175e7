"""What studies have in common: where a figure comes from, and results kept as they come."""

import datetime
import json
import platform
from pathlib import Path

import numpy as np
import torch

import utils


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(threads: int | None = None) -> dict:
    """What the last digits and the seconds of a stored result depend on."""
    return {
        "processor": processor(),
        "threads": threads or torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def today() -> str:
    return datetime.date.today().isoformat()


def load(path: Path) -> dict:
    """Return what a study has stored so far, {} if nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def store(path: Path, study: dict) -> None:
    utils.write_whole(path, (json.dumps(study, indent=1) + "\n").encode())


def finish(path: Path, partial: Path, study: dict) -> None:
    """Store a whole study, and only then remove what was kept of it on the way."""
    store(path, study)
    partial.unlink()
    print(f"Stored in {path.relative_to(utils.ROOT)}")
