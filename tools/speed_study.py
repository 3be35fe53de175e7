"""Measure what notebook 07 shows, and store it with its provenance.

    python -m tools.speed_study                 everything
    python -m tools.speed_study speed race      these parts of it

The parts: accuracy (the length of every training by the rule of the notebook, then the test
set; resumable; processes of one thread each share the trainings), speed (all rungs in turns),
race (whole trainings in turns) and gpu (the notebook's race on a GPU; left out where
there is none). Speed and race are kept for each kind of processor. What is done is stored at
once in notebooks/07_study.json.
"""

import argparse
import bisect
import functools
import hashlib
import inspect
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import utils
from tools import studies
from tools.notebook_code import definitions

RESULT = utils.ROOT / "notebooks" / "07_study.json"
VALIDATION, THRESHOLD = 10_000, 0.9893
SEEDS, FRESH_SEEDS, OTHER_SEEDS = range(20), range(100, 120), range(300, 320)
# The lengths that are tried, in thousands of pictures: the numbers of the series E24.
GRID = [10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75]
GRID = [1000 * n for n in [*GRID, 82, 91, 100, 110, 120]]
NUMBERS = ("batch_size", "rate", "smoothing", "muon_rate")  # that a setup may have
ROUNDS, RACES, LONG_RACES = 40, 10, 1


@functools.cache
def page():
    """What notebook 07 defines."""
    return definitions("07_speed")


def split_off(data, held_out: int) -> list[utils.MNISTDataset]:
    """Return the training data without, and only, a stratified validation set."""
    parts = definitions("03_training").stratified_split(data.labels, held_out)
    labels = data.labels.numpy().astype("uint8")
    return [utils.MNISTDataset(data.pixels[p], labels[p]) for p in map(torch.Tensor.numpy, parts)]


def described(setup) -> str:
    """Return a sum of the code that the accuracy comes from, whatever its layout and comments."""
    functions = [page().training, page().one_cycle, page().newton_schulz]
    for kind in (page().Muon, *type(setup).__mro__):
        functions += [value for value in vars(kind).values() if inspect.isfunction(value)]
    code = [re.sub(r"#.*|\s", "", inspect.getsource(function)) for function in functions]
    code += [f"{name} = {getattr(setup, name, None)}" for name in NUMBERS]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def all_setups() -> dict:
    return page().LADDER | page().PEERS


def to_train() -> dict:
    """Return the setups that end: the others are the recipe, which notebook 03 has studied."""
    return {name: setup for name, setup in all_setups().items() if setup.pictures}


# --------------------------------------------------------------- accuracy


@functools.cache
def accuracy_data(part: str) -> tuple:
    train = utils.load_mnist("train")
    return (train, utils.load_mnist("test")) if part == "test" else split_off(train, VALIDATION)


def score(part: str, name: str, pictures: int, seed: int) -> float:
    """Train in a process of its own; return the accuracy at the end."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions: as exact as a CPU's
    train, held_out = accuracy_data(part)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setup = page().stack((all_setups() | page().ABLATIONS)[name], pictures=pictures)
    *_, model = page().training(setup, train, seed, device)
    return page().accuracy(setup, model, held_out)


class Accuracies:
    """What is measured, kept as it comes in ``rows``: each setup's lengths and accuracies."""

    def __init__(self, pool, rows: dict, save):
        self.pool, self.rows, self.save = pool, rows, save

    def scores(self, part: str, name: str, pictures: int, seeds=SEEDS) -> list[float]:
        """Return the accuracies of all seeds."""
        jobs = [self.pool.submit(score, part, name, pictures, seed) for seed in seeds]
        return [job.result() for job in jobs]

    def passes_threshold(self, name: str, pictures: int) -> bool:
        tried = self.rows[name]["tried"]
        if str(pictures) not in tried:
            tried[str(pictures)] = self.scores("validation", name, pictures)
            self.save()
        mean = statistics.mean(tried[str(pictures)])
        print(f"{name:26} {pictures:7,} {100 * mean:.3f} %", flush=True)
        return mean >= THRESHOLD

    def measure(self, name: str) -> None:
        """Find the length by the rule, then look at the test set."""
        setup = to_train()[name]
        row = self.rows.setdefault(name, {})
        if row.get("setup") != described(setup):
            row.clear()
            row |= {"setup": described(setup), "device": device(), "tried": {}}
        if name in page().PEERS:  # as it was published
            row["pictures"] = setup.pictures
            self.passes_threshold(name, setup.pictures)
        elif "pictures" not in row:
            length = bisect.bisect_left(GRID, True, key=lambda n: self.passes_threshold(name, n))
            row["pictures"] = GRID[length] if length < len(GRID) else None
        self.save()
        if row["pictures"] and row.get("tested") != row["pictures"]:
            row["test"] = self.scores("test", name, row["pictures"], FRESH_SEEDS)
            row["tested"] = row["pictures"]
            print(f"{name:26} {row['pictures']:7,} test {100 * statistics.mean(row['test']):.3f} %")
            self.save()


def measure_accuracy(study: dict, save, processes: int) -> None:
    old = study.get("accuracy", {})
    study["accuracy"] = {"setups": {}, "ablations": {}}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        accuracies = Accuracies(pool, study["accuracy"]["setups"], save)
        for name in to_train():
            accuracies.rows[name] = old.get("setups", {}).get(name, {})
            accuracies.measure(name)
        length = accuracies.rows[list(page().LADDER)[-1]]["pictures"]
        if not length:
            raise SystemExit("The last rung passes the threshold with no length of the grid.")
        for name, setup in page().ABLATIONS.items():
            row = old.get("ablations", {}).get(name, {})
            wanted = {"setup": described(setup), "device": device(), "pictures": length}
            if not wanted.items() <= row.items():
                values = accuracies.scores("validation", name, length, OTHER_SEEDS)
                row = wanted | {"validation": values}
            study["accuracy"]["ablations"][name] = row
            print(f"{name:26} {100 * statistics.mean(row['validation']):.3f} %", flush=True)
            save()


# ------------------------------------------------------------------ times


def measure_speed(study: dict, *_) -> None:
    """Seconds of training for 60,000 pictures, from slices of well under a second in turns."""
    setups = all_setups() | page().ABLATIONS | page().IN_PARTS
    study.setdefault("speed", {})[processor()] = about(setups) | {
        "peak": page().matmul_peak(),
        "seconds": page().seconds_per_pass(setups, utils.load_mnist("train"), ROUNDS),
    }


def race(groups: dict, device="cpu") -> dict:
    """Whole trainings in turns: each group's setups, with so many seeds."""
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    every = {name: setup for setups, _ in groups.values() for name, setup in setups.items()}
    return about(every) | {
        name: page().race(setups, train, test, range(seeds), device)
        for name, (setups, seeds) in groups.items()
    }


def measure_race(study: dict, *_) -> None:
    groups = {"rivals": (page().RACERS, RACES), "recipe": (page().RECIPE, LONG_RACES)}
    study.setdefault("race", {})[processor()] = race(groups)


def measure_gpu(study: dict, *_) -> None:
    if torch.cuda.is_available():
        study.setdefault("gpu", {})[device()] = race({"rivals": (page().RACERS, RACES)}, "cuda")


def device() -> str:
    """Return what the accuracies come from."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
    """Return the kind of processor, and what its times depend on most."""
    natively = page().has_bfloat16(torch.device("cpu"))
    return f"{studies.processor()} {'with' if natively else 'without'} bfloat16"


def about(setups: dict) -> dict:
    """Return where and when, and what was timed: the setups and their lengths."""
    timed = {name: f"{described(s)}, {s.pictures} pictures" for name, s in setups.items()}
    provenance = studies.provenance(page().UsualWay.threads)
    return {"date": studies.today(), "provenance": provenance, "setups": timed}


# ------------------------------------------------------------------- main


def rounded(value):
    """The same with six significant digits, which is more than any clock here deserves."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


PARTS = {"accuracy": measure_accuracy, "speed": measure_speed, "race": measure_race,
         "gpu": measure_gpu}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="for accuracy")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"expected {', '.join(PARTS)}, found {', '.join(unknown)}")
    study = studies.load(RESULT)
    save = lambda: studies.store(RESULT, rounded(study))  # noqa: E731
    for part in arguments.parts or PARTS:
        print(f"measuring: {part}", flush=True)
        PARTS[part](study, save, arguments.processes)
        save()


if __name__ == "__main__":
    main()
