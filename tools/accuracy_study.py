"""Train everything that notebook 08 reports, many seeds of each, and store the results.

    python -m tools.accuracy_study                 everything: about ten hours on two CPU cores
    python -m tools.accuracy_study steps           this part alone

The parts are those of ``RUNS`` in notebook 08. Two processes of one thread each share the
trainings (``--processes``; on a GPU, if there is one, which has room for many). Each is kept
in outputs/accuracy/ as soon as it is done, so a study that was stopped goes on with the same
command; what was trained with another setup is trained anew. (Where the code that trains has
changed, delete that folder.) When nothing is missing, a CPU thread is timed, which must have
the machine for itself, and the result goes to notebooks/08_study.json.
"""

import argparse
import base64
import functools
import io
import itertools
import signal
import statistics
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import utils
from tools import studies
from tools.notebook_code import definitions
from tools.speed_study import split_off

RESULT = utils.ROOT / "notebooks" / "08_study.json"
VALIDATION, TEACHERS = 10_000, 10
SIZES, DRAWS, ROUNDS = (1, 2, 3, 5, 10), 200, 7


@functools.cache
def page():
    """What notebook 08 defines."""
    return definitions("08_accuracy")


@functools.cache
def data(final: bool) -> tuple[utils.MNISTDataset, utils.MNISTDataset]:
    """Return what to train on and what to score: the test set in the end, once chosen."""
    train = utils.load_mnist("train")
    return (train, utils.load_mnist("test")) if final else tuple(split_off(train, VALIDATION))


def kept(part: str, name: str, seed: int) -> Path:
    """Return where a training is kept."""
    return utils.output_dir() / "accuracy" / f"{part}, {name}, {seed}.pth"


def described(part: str, name: str) -> dict:
    """Return what differs from the defaults of notebook 08, of the teachers' setup too."""
    setup, _ = page().RUNS[part][name]
    result = {f.name: v for f in fields(setup) if (v := getattr(setup, f.name)) != f.default}
    return result | ({"taught by": described(part, setup.teachers)} if setup.teachers else {})


def is_done(part: str, name: str, seed: int) -> bool:
    path = kept(part, name, seed)
    return path.is_file() and utils.load_plain(path)["setup"] == described(part, name)


def teachers_of(part: str, setup, device) -> list:
    """Return the trained networks of the setup that teaches, folded."""
    teachers = []
    for seed in range(TEACHERS if setup.teachers else 0):
        teacher = page().new_network(page().RUNS[part][setup.teachers][0], seed)
        teacher.load_state_dict(utils.load_plain(kept(part, setup.teachers, seed))["weights"])
        teachers.append(page().folded(teacher).to(device))
    return teachers


def prepare_process() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions: as exact as a CPU's
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once


def run(part: str, name: str, seed: int, wanted: dict) -> float:
    """Train, score after each epoch, and keep everything; return the last accuracy."""
    if described(part, name) != wanted:
        raise RuntimeError("08_accuracy.ipynb has changed since the study began: start it again.")
    (train, held_out), setup = data(part in page().FINAL), page().RUNS[part][name][0]
    device, by_epoch = utils.pick_device(), []
    teachers = teachers_of(part, setup, device)
    for model in page().training(setup, train, seed, teachers, device):
        probabilities = page().answers_of(model, held_out)
        by_epoch.append((probabilities.argmax(dim=1) == held_out.labels).double().mean().item())
    names = {"cpu": studies.processor, "cuda": torch.cuda.get_device_name}
    machine = names.get(device.type, lambda: device.type)()
    content = {"setup": wanted, "by_epoch": by_epoch}
    content["device"] = f"{machine}, torch {torch.__version__}"
    if part in page().FINAL:
        content["probabilities"] = probabilities
    if part in page().FINAL or name in {s.teachers for s, _ in page().RUNS[part].values()}:
        content["weights"] = {key: value.cpu() for key, value in model.state_dict().items()}
    file = io.BytesIO()
    torch.save(content, file)
    utils.write_whole(kept(part, name, seed), file.getvalue())
    return by_epoch[-1]


def missing(parts) -> list[tuple]:
    """Return (part, name, seed) of what is still to be trained, in the order of ``RUNS``."""
    return [
        (part, name, seed)
        for part in parts for name, (_, seeds) in page().RUNS[part].items()
        for seed in range(seeds) if not is_done(part, name, seed)
    ]  # fmt: skip


def is_ready(part, name, seed) -> bool:
    """Return whether the networks that teach, if any, have learnt."""
    teachers = page().RUNS[part][name][0].teachers
    return not teachers or all(is_done(part, teachers, number) for number in range(TEACHERS))


def train_all(jobs, processes: int) -> None:
    """Train, the longest first; the first failure stops the rest. What is done is kept."""
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=prepare_process) as pool:
        longest_first = sorted(jobs, key=lambda job: -page().RUNS[job[0]][job[1]][0].epochs)
        futures = {pool.submit(run, *job, described(*job[:2])): job for job in longest_first}
        try:
            for future in as_completed(futures):
                part, name, seed = futures[future]
                print(f"{part}: {name}, seed {seed}: {future.result():.2%}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ---------------------------------------------------------------- results


def together(probabilities: torch.Tensor, labels: torch.Tensor) -> dict:
    """Return, by size, the accuracy of ensembles of some of the networks (n, pictures, 10)."""
    rng, result, count = np.random.default_rng(0), {}, len(probabilities)
    for size in (size for size in SIZES if size <= count):
        draws = list(itertools.combinations(range(count), size))
        if len(draws) > DRAWS:
            draws = rng.choice(draws, DRAWS, replace=False).tolist()
        guesses = [probabilities[list(draw)].sum(dim=0).argmax(dim=1) for draw in draws]
        result[size] = [(guess == labels).double().mean().item() for guess in guesses]
    return result


def errors(probabilities: torch.Tensor, labels: torch.Tensor) -> str:
    """Return "picture:guess" for every wrong guess, with spaces between."""
    guesses = probabilities.argmax(dim=1)
    wrong = (guesses != labels).nonzero().flatten().tolist()
    return " ".join(f"{picture}:{guesses[picture]}" for picture in wrong)


def parameters(setup) -> int:
    """Return the number of parameters, with normalisation folded away."""
    model = page().new_network(setup, 0)
    model = page().folded(model) if setup.network == "normalised" else model
    return sum(weight.numel() for weight in page().trained_weights(model))


def row(part: str, name: str) -> dict:
    """Return what notebook 08 reads about a setup."""
    setup, seeds = page().RUNS[part][name]
    every = [utils.load_plain(kept(part, name, seed)) for seed in range(seeds)]
    result = {"setup": described(part, name), "parameters": parameters(setup)}
    result["devices"] = dict(Counter(one["device"] for one in every))
    result["by_epoch"] = [one["by_epoch"] for one in every]
    if part in page().FINAL:
        labels = data(True)[1].labels
        probabilities = torch.stack([one["probabilities"].float() for one in every])
        result["errors"] = [errors(one, labels) for one in probabilities]
        if seeds >= max(SIZES):
            result["together"] = together(probabilities, labels)
    return result


def work(setup) -> tuple:
    """Return what the time of an epoch depends on."""
    return setup.network, setup.averaging > 0, setup.bend > 0, setup.teachers != ""


def seconds_per_epoch(setups: list) -> dict:
    """Return, by work, what 60,000 pictures take on one CPU thread: from a tenth, in turns."""
    prepare_process()
    train = utils.load_mnist("train")
    labels = train.labels[:6000].numpy().astype("uint8")
    tenth, seconds = utils.MNISTDataset(train.pixels[:6000], labels), defaultdict(list)
    for _ in range(ROUNDS):
        for key, setup in {work(setup): setup for setup in setups}.items():
            teacher = page().new_network(replace(setup, network="plain"), 0).eval()
            teachers = [teacher] if setup.teachers else []
            epochs = page().training(replace(setup, epochs=2), tenth, 0, teachers)
            next(epochs)  # to get warm
            start = time.perf_counter()
            next(epochs)
            seconds[key].append(10 * (time.perf_counter() - start))
    return {key: round(statistics.median(times), 1) for key, times in seconds.items()}


def weights() -> str:
    """Return the folded weights of the first network of the final training: not of the best."""
    model = page().new_network(page().BEST, 0)
    model.load_state_dict(utils.load_plain(kept("final", "this training", 0))["weights"])
    flat = torch.cat([w.detach().flatten() for w in page().folded(model).parameters()])
    return base64.b64encode(flat.numpy().astype("<f4").tobytes()).decode()


def summary() -> dict:
    """Return what notebook 08 reads, from what was kept of every training."""
    runs = {part: {name: row(part, name) for name in page().RUNS[part]} for part in page().RUNS}
    result = {"runs": runs, "weights": weights()}
    seconds = seconds_per_epoch([setup for s in page().RUNS.values() for setup, _ in s.values()])
    for part, rows in runs.items():
        for name, timed in rows.items():
            timed["seconds"] = seconds[work(page().RUNS[part][name][0])]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="of RUNS in notebook 08")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="at a time")
    arguments = parser.parse_args()
    parts = arguments.parts or list(page().RUNS)
    if unknown := set(parts) - set(page().RUNS):
        parser.error(f"expected {', '.join(page().RUNS)}, found {', '.join(unknown)}")
    while jobs := [job for job in missing(parts) if is_ready(*job)]:
        train_all(jobs, arguments.processes)
    if left := missing(page().RUNS):
        return print(f"{len(left)} trainings of other parts are missing: nothing was stored yet.")
    studies.store(RESULT, {
        "command": "python -m tools.accuracy_study", "date": studies.today(),
        "provenance": studies.provenance(threads=1), "validation": VALIDATION,
    } | summary())  # fmt: skip
    print(f"Stored in {RESULT.relative_to(utils.ROOT)}")


if __name__ == "__main__":
    main()
