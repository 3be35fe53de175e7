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

torch.set_flush_denormal(True)  # as notebook 06 does; before the first computation
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


def child(**wanted) -> dict:
    """Run a measurement in a process of its own, so that its peak memory is its own."""
    environment = os.environ | wanted.pop("environment", {})
    command = [sys.executable, __file__, "--child", json.dumps(wanted)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> None:
    """Let the peak of this process's memory begin with what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes at the peak: VmHWM, since ru_maxrss begins with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def grow(times: float, as_bytes: bool, batch_size: int, steps: int | None) -> dict:
    """Train on the training set repeated with small shifts; return seconds and peak bytes."""
    data = book.repeated(utils.load_mnist("train"), times, as_bytes)
    setup = replace(book.FASTEST, batch_size=batch_size, pictures=10**9)
    steps = steps or len(data.labels) // batch_size
    run = book.training(setup, data, seed=0)
    next(run)
    forget_peak()  # preparing the data took more than training on it does
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(steps - 1):
        start = time.perf_counter()
        next(run)
        seconds.append(time.perf_counter() - start)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        "pictures": len(data.labels), "seconds": sum(seconds) * steps / len(seconds),
        "median_step": statistics.median(seconds), "data": data.images.nbytes,
        "peak": peak_memory(), "faults_a_step": faults / len(seconds),
    }  # fmt: skip


def measure_growth() -> dict:
    sizes, by_batch = [], []
    for times, as_bytes in itertools.product(SIZES, (False, True)):
        result = child(times=times, as_bytes=as_bytes, batch_size=96, steps=None)
        sizes.append({"times": times, "as_bytes": as_bytes} | result)
        print(sizes[-1], flush=True)
    # glibc gives large blocks back to the system and asks for new ones, every step; with these
    # settings it keeps them.
    keep = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    for size, kept in itertools.product(BATCH_SIZES, (False, True)):
        result = child(times=1, as_bytes=False, batch_size=size, steps=max(12, 8192 // size),
                       environment=keep if kept else {})  # fmt: skip
        by_batch.append({"batch_size": size, "memory_kept": kept} | result)
        print(by_batch[-1], flush=True)
    return {"sizes": sizes, "batch_sizes": by_batch}


# --------------------------------------------------------------- switches


def measure_switches() -> dict:
    with tempfile.TemporaryDirectory() as empty:  # or an earlier compilation would be found
        compiled = child(switch="compile", environment={"TORCHINDUCTOR_CACHE_DIR": empty})
    return {"compile": compiled, "threads": child(switch="threads"),
            "denormals": measure_denormals()}  # fmt: skip


def measure_denormals() -> list[dict]:
    """Two processes, one with the switch set, take turns; the seconds of each pass of each."""
    processes = {}
    for flush in (False, True):
        command = [sys.executable, __file__, "--child", json.dumps({"switch": "denormals",
                                                                    "flush": flush})]  # fmt: skip
        processes[flush] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
    rows = []
    for number in range(40):  # five passes of 60,000 pictures in 40 slices
        row = {"pictures": 7_500 * (number + 1)}
        for flush, process in processes.items():
            print("go", file=process.stdin)
            row["flushed" if flush else "kept"] = float(process.stdout.readline())
        rows.append(row)
    for process in processes.values():
        process.communicate("")
    return rows


def turn_denormals(flush: bool) -> None:
    torch.set_flush_denormal(flush)
    data = utils.load_mnist("train")
    setup = replace(book.LADDER["batches of 128"], batch_size=60)
    run = book.training(setup, data, seed=0)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(7_500 // setup.batch_size):
            next(run)
        print(time.perf_counter() - start, flush=True)


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
    result = switches.get(wanted.pop("switch", None), grow)(**wanted)
    if result is not None:
        print(json.dumps(result))


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
