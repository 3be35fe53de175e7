"""Train the recipe with five seeds and store every epoch's figures with their provenance.

    python tools/study.py

Two runs for each seed: the recipe itself on all 60,000 training images, and the same on a
fixed, stratified 55,000 of them, with the other 5,000 as the validation set. It takes about
twenty minutes on two quiet CPU cores. It can be stopped at any time; the same command goes on
after the last finished epoch. When all is done the result goes to notebooks/03_study.json,
which notebook 03 draws.
"""

import json
import sys
from pathlib import Path

from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: E402
from tools.provenance import provenance, today  # noqa: E402

SEEDS, EPOCHS, BATCH_SIZE, VALIDATION = (0, 1, 2, 3, 4), 10, 16, 5_000
RESULT = utils.ROOT / "notebooks" / "03_study.json"


def start(kind: str, seed: int):
    """Return model, optimiser, training loader and test loaders of one run, before training."""
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    loaders = {"test": utils.make_loader(test, BATCH_SIZE)}
    if kind == "split":
        kept, held_out = utils.stratified_split(train.labels, VALIDATION)
        loaders["validation"] = utils.make_loader(Subset(train, held_out), BATCH_SIZE)
        train = Subset(train, kept)
    model = utils.new_model(seed)
    loader = utils.make_loader(train, BATCH_SIZE, shuffle=True, seed=seed)
    return model, utils.new_optimizer(model), loader, loaders


def main() -> None:
    partial = utils.output_dir() / "study.json"
    study = {
        "command": "python tools/study.py",
        "date": today(),
        "provenance": provenance(),
        "settings": {"seeds": SEEDS, "epochs": EPOCHS, "batch_size": BATCH_SIZE,
                     "validation": VALIDATION},
        "recipe": {},
        "split": {},
    }  # fmt: skip
    study = json.loads(json.dumps(study))  # as it will come back: lists, not tuples
    if partial.is_file():
        earlier = json.loads(partial.read_text())
        if all(earlier[key] == study[key] for key in ("provenance", "settings")):
            study = earlier
        else:
            print(f"{partial.name} is from another machine or version: starting anew.")

    for seed in SEEDS:
        for kind in ("recipe", "split"):
            if str(seed) in study[kind]:
                continue
            print(f"{kind}, seed {seed}", flush=True)
            model, optimizer, loader, loaders = start(kind, seed)
            state = utils.output_dir() / f"study_{kind}_{seed}.pth"
            study[kind][str(seed)] = utils.fit(
                model, optimizer, loader, loaders, EPOCHS, state_path=state
            )
            write(partial, study)
            state.unlink()  # only now: its figures are safe
    write(RESULT, study)
    partial.unlink()
    print(f"Stored in {RESULT.relative_to(utils.ROOT)}")


def write(path: Path, study: dict) -> None:
    text = json.dumps(study, indent=1) + "\n"
    utils._replace_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
