"""Measure what notebook 09 reads, and store it with its provenance.

    python -m tools.scaling_study                 everything
    python -m tools.scaling_study timings         these parts of it, anew

The parts: timings (training steps and sums with 1, 2, 4, … processes, as many as there are
cores; what other machines measured is kept), growth (time and memory as data grow, where there
is /proc, as on Linux; about ten minutes), fashion (the recipe on Fashion-MNIST, five seeds, two
processes; about fifteen minutes). Each goes to notebooks/09_study.json as soon as it is done;
an interrupted part fashion goes on after the last whole seed.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import utils
from tools import studies
from tools.notebook_code import definitions

RESULT = utils.ROOT / "notebooks" / "09_study.json"
PARTIAL = utils.output_dir() / "scaling_study.json"
STEPS = [(width, 2**n) for width, most in ((1, 9), (4, 6)) for n in range(most + 1)]
SUMS = [1, 1_000, 10_000, 60_874, 300_000, 1_000_000, 4_000_000]
SIZES, WAYS = (1 / 6, 1, 4, 12), ("float32", "bytes", "memory map")
SEEDS, EPOCHS = 5, 10


@cache
def page():
    """What notebook 09 defines."""
    return definitions("09_scaling_out")


# ---------------------------------------------------------------- timings


def measure_timings() -> dict:
    """Return what this machine needs for steps and sums, under its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        script, target = Path(folder, "time_parallel.py"), Path(folder, "rows.json")
        page().write_script(script, *page().TIMING)
        job = {"steps": STEPS, "sums": SUMS, "rounds": 4, "result": str(target)}
        page().run(2 ** (cores.bit_length() - 1), script, json.dumps(job))
        rows = json.loads(target.read_text(encoding="utf-8"))
    here = {"date": studies.today(), "cores": cores, "rows": rows} | studies.provenance(threads=1)
    return {f"{here['processor']}, {cores} cores": here}


# ----------------------------------------------------------------- growth


def peak_memory() -> int:
    """Bytes at the peak: VmHWM, since ru_maxrss begins with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def grow(path: str, way: str, share: list, steps: int = 150) -> dict:
    """In a process of its own: train on pictures in an IDX file, in one way of keeping them."""
    torch.set_num_threads(1)
    rank, world = share
    before = peak_memory()
    images = page().map_idx(path) if way == "memory map" else utils.read_idx(path)
    labels = np.arange(len(images), dtype="uint8") % 10
    model = page().network(1)
    if way == "float32":
        pictures = torch.from_numpy(images).float().unsqueeze(1)
        pictures.div_(255).sub_(utils.MEAN).div_(utils.STD)
        del images
    optimizer, seconds = utils.new_optimizer(model), []
    size = len(labels) // world
    order = (torch.randperm(size) + rank * size).split(128)
    # A whole pass over a map, so that all pictures of the share are touched; few steps train.
    count = max(steps, len(order)) if way == "memory map" else steps
    for batch in itertools.islice(itertools.cycle(order), count):
        start = time.perf_counter()
        if way == "float32":
            batch = pictures[batch], torch.from_numpy(labels[batch].astype("int64"))
        else:
            batch = page().load(images, labels, batch, model)
        if len(seconds) < steps:
            loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    mapped = next(1024 * int(line.split()[1]) for line in status if line.startswith("RssFile"))
    fastest = float(np.quantile(seconds, 0.1))  # the others were disturbed
    return {"step": fastest, "before": before, "peak": peak_memory(), "mapped": mapped}


def measure_growth() -> dict:
    """Return time and memory of every size and way, three rounds in turns."""
    train, rows = utils.load_mnist("train"), {}
    with tempfile.TemporaryDirectory(dir=utils.output_dir()) as folder:
        files = {round(60_000 * times): Path(folder, f"{number}.idx")
                 for number, times in enumerate(SIZES)}  # fmt: skip
        for count, path in files.items():
            whole, part = divmod(count, 60_000)
            pixels = np.concatenate([train.pixels] * whole + [train.pixels[:part]])
            page().write_idx(path, pixels)
        wanted = [(count, way, (0, 1)) for count in files for way in WAYS]
        wanted += [(max(files), "memory map", (1, world)) for world in (2, 4)]
        for _, (count, way, share) in itertools.product(range(3), wanted):
            what = json.dumps([str(files[count]), way, share])
            command = [sys.executable, "-m", "tools.scaling_study", "--child", what]
            done = subprocess.run(command, cwd=utils.ROOT, check=True, stdout=subprocess.PIPE)
            rows.setdefault((count, way, share[1]), []).append(json.loads(done.stdout))
    names = ("pictures", "way", "share")
    return {"date": studies.today(), "provenance": studies.provenance(threads=1), "rows": [
        dict(zip(names, key)) | {k: statistics.median(m[k] for m in found) for k in found[0]}
        for key, found in rows.items()
    ]}  # fmt: skip


# ---------------------------------------------------------------- fashion


def train_fashion(seed: int) -> dict:
    """In a process of its own: the recipe on Fashion-MNIST; return accuracies and confusion."""
    torch.set_num_threads(1)
    page()  # which adds a row to utils.DATASETS
    train, test = (utils.load_mnist(split, "fashion-mnist") for split in ("train", "test"))
    model, accuracy = utils.new_model(seed), []
    optimizer = utils.new_optimizer(model)
    loader = utils.make_loader(train, shuffle=True, seed=seed)
    with contextlib.redirect_stderr(io.StringIO()):  # two progress bars in one line
        for _ in range(EPOCHS):
            utils.train_epoch(model, loader, optimizer)
            accuracy.append(utils.evaluate(model, utils.make_loader(test, 500))[1])
    answers = utils.predict(model, test.images).argmax(1)
    counts = torch.bincount(10 * test.labels + answers, minlength=100).view(10, 10)
    return {"accuracy": accuracy, "confusion": counts.tolist()}


def measure_fashion() -> dict:
    """Return what every seed gives; what is done is kept in PARTIAL until all is stored."""
    start = {"date": studies.today(), "provenance": studies.provenance(threads=1), "seeds": {}}
    study = studies.load(PARTIAL)
    if study.get("provenance") != start["provenance"]:
        study = start
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        missing = [seed for seed in range(SEEDS) if str(seed) not in study["seeds"]]
        jobs = {pool.submit(train_fashion, seed): seed for seed in missing}
        for future in as_completed(jobs):
            study["seeds"][str(jobs[future])] = future.result()
            studies.store(PARTIAL, study)
            print(f"Fashion-MNIST, seed {jobs[future]}: done", flush=True)
    study["seeds"] = dict(sorted(study["seeds"].items()))
    return study


# ------------------------------------------------------------------- main

PARTS = {"timings": measure_timings, "growth": measure_growth, "fashion": measure_fashion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print(json.dumps(grow(*json.loads(arguments.child))))
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"expected {', '.join(PARTS)}, found {', '.join(unknown)}")
    for part in arguments.parts or PARTS:
        print(f"measuring: {part}", flush=True)
        if part == "growth" and not os.path.exists("/proc/self/status"):
            print("growth: left out, since this system has no /proc to read memory from")
            continue
        measured = PARTS[part]()
        study = {"command": "python -m tools.scaling_study"} | studies.load(RESULT)
        if part == "timings":  # those of other machines stay
            measured = study.get(part, {}) | measured
        studies.store(RESULT, study | {part: measured})
        if part == "fashion":
            PARTIAL.unlink()
    print(f"Stored in {RESULT.relative_to(utils.ROOT)}")


if __name__ == "__main__":
    main()
