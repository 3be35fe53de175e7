"""Measure what notebook 06 shows, and store it with its provenance.

    python tools/speed_study.py                    everything
    python tools/speed_study.py ladder growth      these parts of it, anew

The parts: accuracy (ten seeds of every rung, about 25 minutes on two quiet CPU cores), ladder
(the speed of every rung, all in turns), contest (whole trainings, in turns), growth, switches
(denormal numbers, compilation, one thread). Each is kept in outputs/ as soon as it is done, so
a study that was stopped goes on with the same command; when no part is missing, the result
goes to notebooks/06_study.json.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: E402
from tools.notebook_code import definitions  # noqa: E402
from tools.provenance import provenance, today  # noqa: E402

book = definitions("06_speed")
RESULT = utils.ROOT / "notebooks" / "06_study.json"
SEEDS, VALIDATION = 10, 10_000
MOST_PASSES = {16: 8, 128: 6}  # where the learning rate is constant, by batch size
ROUNDS, CONTEST_ROUNDS = 40, 10
PEERS = {"peer", "peer, our switches"}  # taken as they are: nothing is chosen for them
SIZES, BATCH_SIZES = (1 / 6, 1, 4, 12), (1, 4, 16, 64, 256, 1024, 4096)


# --------------------------------------------------------------- accuracy


def split_off(data, held_out: int):
    """Return the training data without, and only, a stratified validation set."""
    parts = utils.stratified_split(data.labels, held_out)
    return [
        SimpleNamespace(images=data.images[p], labels=data.labels[p], pixels=data.pixels[p.numpy()])
        for p in parts
    ]


def accuracy_jobs() -> dict:
    """All (part, name) to setups. Rungs that differ in speed alone share the accuracy of one."""
    scheduled = {name: s for name, s in book.LADDER.items() if s.warm_up} | book.RIVALS
    constant = {name: book.LADDER[name] for name in ("fused Adam", "batches of 128")}
    shorter = {
        f"{name}, shorter": replace(s, pictures=s.pictures * 5 // 6)
        for name, s in scheduled.items() if s.pictures < 60_000 and name not in PEERS
    }  # fmt: skip
    validation = scheduled | shorter | ablations()
    jobs = {("validation", name): s for name, s in validation.items() if name not in PEERS}
    return jobs | {("test", name): s for name, s in (scheduled | constant).items()}


def ablations() -> dict:
    return {name: replace(book.FASTEST, **change) for name, change in book.ABLATIONS.items()}


def train_and_score(setup, train, test, seed) -> list[float]:
    """Return the accuracy after each pass, or after the end of a one-cycle schedule."""
    if setup.warm_up:
        *_, model = book.training(setup, train, seed)
        return [book.accuracy(setup, model, test)]
    steps = -(-len(train.labels) // setup.batch_size)
    most = MOST_PASSES[setup.batch_size]
    passes = itertools.islice(book.training(setup, train, seed), steps - 1, None, steps)
    return [book.accuracy(setup, model, test) for model in itertools.islice(passes, most)]


def work(jobs, results) -> None:
    """A worker process: one thread, so that two of them fill two cores without waiting."""
    torch.set_num_threads(1)
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    data = {"test": (train, test), "validation": split_off(train, VALIDATION)}
    for part, name, setup, seed in iter(jobs.get, None):
        results.put((part, name, seed, train_and_score(setup, *data[part], seed)))


def measure_accuracy(stored: dict, save) -> dict:
    context = multiprocessing.get_context("fork")
    jobs, results = context.Queue(), context.Queue()
    jobs.cancel_join_thread()  # or a study that ends early waits for somebody to take the rest
    missing = [
        (part, name, setup, seed)
        for (part, name), setup in accuracy_jobs().items() for seed in range(SEEDS)
        if stored.get(f"{part}: {name}", {}).get("setup") != repr(setup)
    ]  # fmt: skip
    count = 2 if missing else 0
    for job in [*missing, *[None] * count]:
        jobs.put(job)
    workers = [
        context.Process(target=work, args=(jobs, results), daemon=True) for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    setups, runs = accuracy_jobs(), {}
    for _ in missing:
        part, name, seed, scores = next_result(results, workers)
        runs.setdefault((part, name), {})[seed] = scores
        if len(runs[part, name]) == SEEDS:
            scores = [runs[part, name][s] for s in range(SEEDS)]
            stored[f"{part}: {name}"] = {"setup": repr(setups[part, name]), "accuracy": scores}
            means = [f"{100 * statistics.mean(column):.3f}" for column in zip(*scores)]
            print(f"{part:11} {name:32} {' '.join(means)} %", flush=True)
            save()
    for worker in workers:
        worker.join()
    wanted = {f"{part}: {name}" for part, name in setups}
    return {name: stored[name] for name in stored if name in wanted}


def next_result(results, workers):
    """Like results.get(), but a worker that died ends the study instead of hanging it."""
    while results.empty():
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a worker process failed: see its message above")
        time.sleep(0.05)
    return results.get()


# -------------------------------------------------- times, all interleaved


def measure_ladder() -> dict:
    """Seconds of training for 60,000 pictures, from slices of well under a second in turns."""
    data, setups = utils.load_mnist("train"), book.LADDER | book.RIVALS | ablations()
    return {"seconds": book.seconds_per_pass(setups, data, ROUNDS), "peak": book.matmul_peak()}


def measure_contest() -> dict:
    """Whole trainings in turns: seconds and test accuracy of each, seed by seed."""
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    return book.contest({"fastest": book.FASTEST} | book.RIVALS, train, test, range(CONTEST_ROUNDS))


# ----------------------------------------------------------------- growth


class Child:
    """A measurement in a process of its own, so that its memory and its switches are its own."""

    def __init__(self, environment=None, **wanted):
        command = [sys.executable, __file__, "--child", json.dumps(wanted)]
        self.process = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def turn(self) -> float:
        """Let it do a slice of its work; return the seconds that took."""
        print("go", file=self.process.stdin)
        return float(self.process.stdout.readline())

    def end(self) -> dict:
        """Return what it has to say in the end."""
        printed, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit("a process of the study failed: see its message above")
        return json.loads(printed.splitlines()[-1])


def when_told(do_a_slice) -> int:
    """In a child: do a slice for each line that comes in, print its seconds; return how many."""
    turns = 0
    for turns, _ in enumerate(sys.stdin, 1):  # noqa: B007
        start = time.perf_counter()
        do_a_slice()
        print(time.perf_counter() - start, flush=True)
    return turns


def forget_peak() -> None:
    """Let the peak of this process's memory begin with what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes at the peak: VmHWM, since ru_maxrss begins with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def grow(times: float, batch_size: int, as_bytes: bool = True) -> dict:
    """In a child: train on the training set repeated with small shifts, slice by slice."""
    data = book.repeated(utils.load_mnist("train"), times, as_bytes)
    run = book.training(replace(book.FASTEST, batch_size=batch_size, pictures=10**9), data, seed=0)
    steps = max(1, 768 // batch_size)
    next(run)
    forget_peak()  # preparing the data took more than training on it does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    turns = when_told(lambda: [next(run) for _ in range(steps)])
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        "pictures": len(data.labels), "steps_a_slice": steps, "data": data.images.nbytes,
        "peak": peak_memory(), "faults_a_step": faults / (turns * steps),
    }  # fmt: skip


def grow_in_turns(wanted: list[dict], rounds: int) -> list[dict]:
    children = [Child(**settings) for settings in wanted]
    seconds = [[child.turn() for child in children] for _ in range(rounds)][1:]  # 1: warm-up
    rows = []
    for settings, child, values in zip(wanted, children, zip(*seconds)):
        row = settings | child.end() | {"step": statistics.median(values)}
        row["step"] /= row["steps_a_slice"]
        rows.append({key: value for key, value in row.items() if key != "environment"})
        print(rows[-1], flush=True)
    return rows


def measure_growth() -> dict:
    sizes = [
        {"times": times, "batch_size": book.FASTEST.batch_size, "as_bytes": as_bytes}
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
        compiled = Child({"TORCHINDUCTOR_CACHE_DIR": empty}, switch="compile").end()
    return {"compile": compiled, "threads": Child(switch="threads").end(),
            "denormals": measure_denormals()}  # fmt: skip


def measure_denormals() -> list[dict]:
    """Two processes, one with the switch set, take turns; the seconds of each slice of both."""
    children = {name: Child(switch="denormals", flush=name == "flushed")
                for name in ("kept", "flushed")}  # fmt: skip
    rows = []
    for number in range(1, 41):  # five passes of 60,000 pictures in 40 slices
        turns = {name: child.turn() for name, child in children.items()}
        rows.append({"pictures": 7_500 * number} | turns)
    for child in children.values():
        child.end()
    return rows


def turn_denormals(flush: bool) -> dict:
    torch.set_flush_denormal(flush)
    data = utils.load_mnist("train")
    setup = replace(book.LADDER["batches of 128"], batch_size=60)
    run = book.training(setup, data, seed=0)
    when_told(lambda: [next(run) for _ in range(7_500 // setup.batch_size)])
    return {}


def turn_threads() -> dict:
    """The last rung and the recipe on one thread and on all, in turns."""
    data, count, result = utils.load_mnist("train"), torch.get_num_threads(), {}
    for name in ("fused Adam", "smoothed labels"):
        function, pictures = book.slices(book.LADDER[name], data)

        def limited(threads, function=function):
            torch.set_num_threads(threads)
            function()

        times = book.interleave({str(n): (lambda n=n: limited(n)) for n in (1, count)}, ROUNDS)
        result[name] = {n: [60_000 / pictures * t for t in values] for n, values in times.items()}
    return result


def turn_compilation() -> dict:
    """How long torch.compile takes for the last rung's network, and what it saves."""
    data, last = utils.load_mnist("train"), book.FASTEST
    compiled = replace(last, network=lambda: torch.compile(last.network()))
    try:
        start = time.perf_counter()
        next(book.training(compiled, data, seed=0))
        first = time.perf_counter() - start
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip()[:200]}"}
    setups = {"eager": last, "compiled": compiled}
    return {"first_step": first, "seconds": book.seconds_per_pass(setups, data, ROUNDS)}


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
    # As notebook 06 does, before the first computation; not on import, which would change how
    # whoever imports this reads denormal numbers.
    torch.set_flush_denormal(True)
    if arguments.child:
        return run_child(json.loads(arguments.child))
    if unknown := set(arguments.parts) - {"accuracy", *PARTS}:
        parser.error(f"expected {', '.join(['accuracy', *PARTS])}, found {', '.join(unknown)}")

    partial = utils.output_dir() / "speed_study.json"
    going_on = partial.is_file()
    source = partial if going_on else RESULT if arguments.parts else None
    study = json.loads(source.read_text()) if source and source.is_file() else {}

    def save(path=partial):
        text = json.dumps(rounded(study), indent=1) + "\n"
        utils._replace_atomically(path, lambda file: file.write(text.encode()))

    if "accuracy" in arguments.parts or not arguments.parts:
        section = study.setdefault("accuracy", {"runs": {}})
        if not going_on:
            section["runs"] = {}
        section |= {"date": today(), "provenance": provenance() | {"threads": 1}, "seeds": SEEDS}
        section["runs"] = measure_accuracy(section["runs"], save)
        save()
    for part, measure in PARTS.items():
        if part in arguments.parts or (not arguments.parts and part not in study):
            print(f"measuring: {part}", flush=True)
            study[part] = {"date": today(), "provenance": provenance()} | measure()
            save()
    done = set(study.get("accuracy", {}).get("runs", {}))
    if {f"{part}: {name}" for part, name in accuracy_jobs()} <= done and set(PARTS) <= set(study):
        save(RESULT)
        partial.unlink()
        print(f"Stored in {RESULT.relative_to(utils.ROOT)}")


if __name__ == "__main__":
    main()
