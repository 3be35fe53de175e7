"""Train the recipe with five seeds and store every epoch's figures with their provenance.

    python -m tools.seed_study

Two runs for each seed: the recipe itself on all 60,000 training images, and the same on a
fixed, stratified 55,000 of them, with the other 5,000 as the validation set. Two processes of
one thread each share the runs; it takes about half an hour on two quiet CPU cores. It can be
stopped at any time; the same command goes on after the last finished epoch. When all is done
the result goes to notebooks/03_study.json, which notebook 03 draws.
"""

import contextlib
import io
import itertools
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from torch.utils.data import Subset

import utils
from tools import studies
from tools.notebook_code import definitions

SEEDS, EPOCHS, BATCH_SIZE, VALIDATION = (0, 1, 2, 3, 4), 10, 16, 5_000
KINDS = ("recipe", "split")
RESULT = utils.ROOT / "notebooks" / "03_study.json"


def start(kind: str, seed: int):
    """Return model, optimiser, training loader and test loaders of one run, before training."""
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    loaders = {"test": utils.make_loader(test, BATCH_SIZE)}
    if kind == "split":
        kept, held_out = definitions("03_training").stratified_split(train.labels, VALIDATION)
        loaders["validation"] = utils.make_loader(Subset(train, held_out), BATCH_SIZE)
        train = Subset(train, kept)
    model = utils.new_model(seed)
    loader = utils.make_loader(train, BATCH_SIZE, shuffle=True, seed=seed)
    return model, utils.new_optimizer(model), loader, loaders


def state_path(kind: str, seed: int):
    return utils.output_dir() / f"study_{kind}_{seed}.pth"


def run(kind: str, seed: int, epochs: int = EPOCHS) -> dict:
    """In a process of its own: train, on one thread as notebook 03 does; return the history."""
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):  # two progress bars in one line
        fit = definitions("03_training").fit
        return fit(*start(kind, seed), epochs, state_path(kind, seed), torch.device("cpu"))


def main() -> None:
    partial = utils.output_dir() / "seed_study.json"
    settings = {"seeds": list(SEEDS), "epochs": EPOCHS, "batch_size": BATCH_SIZE,
                "validation": VALIDATION}  # fmt: skip
    study = {
        "command": "python -m tools.seed_study", "date": studies.today(),
        "provenance": studies.provenance(threads=1), "settings": settings,
        "recipe": {}, "split": {},
    }  # fmt: skip
    earlier = studies.load(partial)
    if all(earlier.get(key) == study[key] for key in ("provenance", "settings")):
        study = earlier
    elif earlier:
        print(f"{partial.name} is from another machine or version: starting anew.")
    missing = [job for job in itertools.product(KINDS, SEEDS) if str(job[1]) not in study[job[0]]]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(run, *job): job for job in missing}
        for future in as_completed(jobs):
            kind, seed = jobs[future]
            study[kind][str(seed)] = future.result()
            studies.store(partial, study)
            state_path(kind, seed).unlink()  # only now: its figures are safe
            print(f"{kind}, seed {seed}: done", flush=True)
    for kind in KINDS:  # in the order of the seeds, not of their ends
        study[kind] = {str(seed): study[kind][str(seed)] for seed in SEEDS}
    studies.finish(RESULT, partial, study)


if __name__ == "__main__":
    main()
