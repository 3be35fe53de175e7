"""Measure what notebook 07 shows, and store it with its provenance.

    python -m tools.speed_study                    everything
    python -m tools.speed_study ladder growth      these parts of it, anew

The parts: accuracy (ten seeds of every rung, about 25 minutes on two quiet CPU cores), ladder
(the speed of every rung, all in turns), contest (whole trainings, in turns), growth, switches
(denormal numbers, compilation, one thread). Each is kept in outputs/ as soon as it is done, so
a study that was stopped goes on with the same command; when no part is missing, the result
goes to notebooks/07_study.json. Needs Linux for the part growth.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

import utils
from tools import studies
from tools.notebook_code import definitions

RESULT = utils.ROOT / "notebooks" / "07_study.json"
SEEDS, VALIDATION = 10, 10_000
MOST_PASSES = {16: 8, 128: 6}  # where the learning rate is constant, by batch size
ROUNDS, CONTEST_ROUNDS = 40, 10
PEERS = {"peer", "peer, our switches"}  # taken as they are: nothing is chosen for them
SIZES, BATCH_SIZES = (1 / 6, 1, 4, 12), (1, 4, 16, 64, 256, 1024, 4096)


@functools.cache
def page():
    """What notebook 07 defines."""
    return definitions("07_speed")


# --------------------------------------------------------------- accuracy


def split_off(data, held_out: int) -> list[utils.MNISTDataset]:
    """Return the training data without, and only, a stratified validation set."""
    parts = definitions("03_training").stratified_split(data.labels, held_out)
    labels = data.labels.numpy().astype("uint8")
    return [utils.MNISTDataset(data.pixels[p], labels[p]) for p in map(torch.Tensor.numpy, parts)]


def accuracy_jobs() -> dict:
    """All (part, name) to setups. Rungs that differ in speed alone share the accuracy of one."""
    scheduled = {name: s for name, s in page().LADDER.items() if s.warm_up} | page().RIVALS
    constant = {name: page().LADDER[name] for name in ("fused Adam", "batches of 128")}
    shorter = {
        f"{name}, shorter": replace(s, pictures=s.pictures * 5 // 6)
        for name, s in scheduled.items() if s.pictures < 60_000 and name not in PEERS
    }  # fmt: skip
    validation = scheduled | shorter | ablations()
    jobs = {("validation", name): s for name, s in validation.items() if name not in PEERS}
    return jobs | {("test", name): s for name, s in (scheduled | constant).items()}


def ablations() -> dict:
    return {name: replace(page().FASTEST, **change) for name, change in page().ABLATIONS.items()}


def train_and_score(setup, train, test, seed) -> list[float]:
    """Return the accuracy after each pass, or after the end of a one-cycle schedule."""
    if setup.warm_up:
        *_, model = page().training(setup, train, seed)
        return [page().accuracy(setup, model, test)]
    steps = -(-len(train.labels) // setup.batch_size)
    most = MOST_PASSES[setup.batch_size]
    passes = itertools.islice(page().training(setup, train, seed), steps - 1, None, steps)
    return [page().accuracy(setup, model, test) for model in itertools.islice(passes, most)]


@functools.cache
def accuracy_data() -> dict:
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    return {"test": (train, test), "validation": split_off(train, VALIDATION)}


def score(part: str, name: str, seed: int) -> list[float]:
    """In a process of its own, on one thread, so that two of them fill two cores."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return train_and_score(accuracy_jobs()[part, name], *accuracy_data()[part], seed)


def measure_accuracy(stored: dict, save) -> dict:
    setups, runs = accuracy_jobs(), {}
    missing = [
        (part, name, seed)
        for (part, name), setup in setups.items() for seed in range(SEEDS)
        if stored.get(f"{part}: {name}", {}).get("setup") != repr(setup)
    ]  # fmt: skip
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(score, *job): job for job in missing}
        for future in as_completed(jobs):
            part, name, seed = jobs[future]
            runs.setdefault((part, name), {})[seed] = future.result()
            if len(runs[part, name]) == SEEDS:
                scores = [runs[part, name][s] for s in range(SEEDS)]
                stored[f"{part}: {name}"] = {"setup": repr(setups[part, name]), "accuracy": scores}
                means = [f"{100 * statistics.mean(column):.3f}" for column in zip(*scores)]
                print(f"{part:11} {name:32} {' '.join(means)} %", flush=True)
                save()
    wanted = {f"{part}: {name}" for part, name in setups}
    return {name: stored[name] for name in stored if name in wanted}


# -------------------------------------------------- times, all interleaved


def measure_ladder() -> dict:
    """Seconds of training for 60,000 pictures, from slices of well under a second in turns."""
    data, setups = utils.load_mnist("train"), page().LADDER | page().RIVALS | ablations()
    return {
        "seconds": page().seconds_per_pass(setups, data, ROUNDS),
        "peak": page().matmul_peak(),
    }


def measure_contest() -> dict:
    """Whole trainings in turns: seconds and test accuracy of each, seed by seed."""
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    return page().contest(
        {"fastest": page().FASTEST} | page().RIVALS, train, test, range(CONTEST_ROUNDS)
    )


# ----------------------------------------------------------------- growth


class Measurement:
    """Work in a process of its own, so that its memory and its switches are its own."""

    def __init__(self, environment=None, **wanted):
        command = [sys.executable, "-m", "tools.speed_study", "--child", json.dumps(wanted)]
        self.process = subprocess.Popen(
            command, cwd=utils.ROOT, env=os.environ | (environment or {}), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, encoding="utf-8", bufsize=1,
        )  # fmt: skip

    def time_slice(self) -> float:
        """Let it do a slice of its work; return the seconds that took."""
        print("go", file=self.process.stdin)
        return float(self.process.stdout.readline())

    def end(self) -> dict:
        """Return what it has to say in the end."""
        printed, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit("a process of the study failed: see its message above")
        return json.loads(printed.splitlines()[-1])


def slices_on_request(do_a_slice) -> int:
    """In the process: do a slice for each line that comes in, print its seconds; count them."""
    count = 0
    for count, _ in enumerate(sys.stdin, 1):  # noqa: B007
        start = time.perf_counter()
        do_a_slice()
        print(time.perf_counter() - start, flush=True)
    return count


def forget_peak() -> None:
    """Let the peak of this process's memory begin with what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Bytes at the peak: VmHWM, since ru_maxrss begins with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def grow(times: float, batch_size: int, as_bytes: bool = True) -> dict:
    """In a process: train on the training set repeated with small shifts, slice by slice."""
    import resource  # which Windows has not

    data = page().repeated(utils.load_mnist("train"), times, as_bytes)
    run = page().training(
        replace(page().FASTEST, batch_size=batch_size, pictures=10**9), data, seed=0
    )
    steps = max(1, 768 // batch_size)
    next(run)
    forget_peak()  # preparing the data took more than training on it does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    turns = slices_on_request(lambda: [next(run) for _ in range(steps)])
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        "pictures": len(data.labels), "steps_a_slice": steps, "data": data.images.nbytes,
        "peak": peak_memory(), "faults_a_step": faults / (turns * steps),
    }  # fmt: skip


def grow_in_turns(wanted: list[dict], rounds: int) -> list[dict]:
    measurements = [Measurement(**settings) for settings in wanted]
    seconds = [[measurement.time_slice() for measurement in measurements] for _ in range(rounds)][
        1:
    ]  # 1: warm-up
    rows = []
    for settings, measurement, values in zip(wanted, measurements, zip(*seconds)):
        row = settings | measurement.end() | {"step": statistics.median(values)}
        row["step"] /= row["steps_a_slice"]
        rows.append({key: value for key, value in row.items() if key != "environment"})
        print(rows[-1], flush=True)
    return rows


def measure_growth() -> dict:
    sizes = [
        {"times": times, "batch_size": page().FASTEST.batch_size, "as_bytes": as_bytes}
        for times, as_bytes in itertools.product(SIZES, (False, True))
    ]
    # glibc gives large blocks back to the system and asks for new ones, every step; with these
    # settings it keeps them.
    keep = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    batches = [
        {"times": 1, "batch_size": size, "environment": environment}
        for size, environment in itertools.product(BATCH_SIZES, ({}, keep))
    ]
    by_batch = grow_in_turns(batches, 16)
    for number, row in enumerate(by_batch):
        row["memory_kept"] = number % 2 == 1
    return {"sizes": grow_in_turns(sizes, 60), "batch_sizes": by_batch}


# --------------------------------------------------------------- switches


def measure_switches() -> dict:
    with tempfile.TemporaryDirectory() as empty:  # or an earlier compilation would be found
        compiled = Measurement({"TORCHINDUCTOR_CACHE_DIR": empty}, switch="compile").end()
    return {"compile": compiled, "threads": Measurement(switch="threads").end(),
            "denormals": measure_denormals()}  # fmt: skip


def measure_denormals() -> list[dict]:
    """Two processes, one with the switch set, take turns; the seconds of each slice of both."""
    measurements = {name: Measurement(switch="denormals", flush=name == "flushed")
                for name in ("kept", "flushed")}  # fmt: skip
    rows = []
    for number in range(1, 41):  # five passes of 60,000 pictures in 40 slices
        turns = {name: measurement.time_slice() for name, measurement in measurements.items()}
        rows.append({"pictures": 7_500 * number} | turns)
    for measurement in measurements.values():
        measurement.end()
    return rows


def turn_denormals(flush: bool) -> dict:
    torch.set_flush_denormal(flush)
    data = utils.load_mnist("train")
    setup = replace(page().LADDER["batches of 128"], batch_size=60)
    run = page().training(setup, data, seed=0)
    slices_on_request(lambda: [next(run) for _ in range(7_500 // setup.batch_size)])
    return {}


def turn_threads() -> dict:
    """The last rung and the recipe on one thread and on all, in turns."""
    data, count, result = utils.load_mnist("train"), torch.get_num_threads(), {}
    for name in ("fused Adam", "smoothed labels"):
        function, pictures = page().slices(page().LADDER[name], data)

        def limited(threads, function=function):
            torch.set_num_threads(threads)
            function()

        times = page().interleave({str(n): (lambda n=n: limited(n)) for n in (1, count)}, ROUNDS)
        result[name] = {n: [60_000 / pictures * t for t in values] for n, values in times.items()}
    return result


def turn_compilation() -> dict:
    """How long torch.compile takes for the last rung's network, and what it saves."""
    data, last = utils.load_mnist("train"), page().FASTEST
    compiled = replace(last, network=lambda: torch.compile(last.network()))
    try:
        start = time.perf_counter()
        next(page().training(compiled, data, seed=0))
        first = time.perf_counter() - start
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip()[:200]}"}
    setups = {"eager": last, "compiled": compiled}
    return {"first_step": first, "seconds": page().seconds_per_pass(setups, data, ROUNDS)}


def run_child(wanted: dict) -> None:
    switches = {"compile": turn_compilation, "threads": turn_threads, "denormals": turn_denormals}
    print(json.dumps(switches.get(wanted.pop("switch", None), grow)(**wanted)))


# ------------------------------------------------------------------- main


def rounded(value):
    """The same with six significant digits, which is more than any clock here deserves."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


PARTS = {"ladder": measure_ladder, "contest": measure_contest, "growth": measure_growth,
         "switches": measure_switches}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(["accuracy", *PARTS]))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # As notebook 07 does, before the first computation; not on import, which would change how
    # whoever imports this reads denormal numbers.
    torch.set_flush_denormal(True)
    if arguments.child:
        return run_child(json.loads(arguments.child))
    if unknown := set(arguments.parts) - {"accuracy", *PARTS}:
        parser.error(f"expected {', '.join(['accuracy', *PARTS])}, found {', '.join(unknown)}")

    partial = utils.output_dir() / "speed_study.json"
    going_on = partial.is_file()
    source = partial if going_on else RESULT if arguments.parts else None
    study = studies.load(source) if source else {}

    def save(path=partial):
        studies.store(path, rounded(study))

    if "accuracy" in arguments.parts or not arguments.parts:
        section = study.setdefault("accuracy", {"runs": {}})
        if not going_on or section.get("provenance") != studies.provenance(threads=1):
            section["runs"] = {}  # what there is comes from another machine or version
        section |= {
            "date": studies.today(),
            "provenance": studies.provenance(threads=1),
            "seeds": SEEDS,
        }
        section["runs"] = measure_accuracy(section["runs"], save)
        save()
    for part, measure in PARTS.items():
        if part in arguments.parts or (not arguments.parts and part not in study):
            print(f"measuring: {part}", flush=True)
            study[part] = {"date": studies.today(), "provenance": studies.provenance()} | measure()
            save()
    done = set(study.get("accuracy", {}).get("runs", {}))
    if {f"{part}: {name}" for part, name in accuracy_jobs()} <= done and set(PARTS) <= set(study):
        studies.finish(RESULT, partial, rounded(study))


if __name__ == "__main__":
    main()
