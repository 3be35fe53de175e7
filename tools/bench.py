"""Print the speed tables: the ladder and the contest of notebook 06, and the reading of IDX files.

    python tools/bench.py

Other programs on the machine disturb a clock, so what is compared takes turns in slices of
well under a second, many times over. Each ratio is given twice, of the medians and of the
fastest tenths of the slices; where the two disagree, trust neither and measure again on a
quieter machine. The accuracies come from the stored study, notebooks/06_study.json; the
contest trains every rival anew, ten times.
"""

import gzip
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: E402
from tools import speed_study  # noqa: E402
from tools.provenance import processor  # noqa: E402

book = speed_study.book


def ratios(ours, theirs):
    median = statistics.median(ours) / statistics.median(theirs)
    return f"{median:8.2f} {book.fastest_tenth(ours) / book.fastest_tenth(theirs):14.2f}"


def bench_ladder(runs):
    measured = speed_study.measure_ladder()
    print("\nTraining, one change a rung")
    book.print_ladder(measured["seconds"], measured["peak"], runs)


def bench_contest():
    result = speed_study.measure_contest()
    print("\nWhole trainings, ten seeds")
    book.print_contest(result)


def bench_idx():
    raw = utils.mnist_files(utils.find_mnist())["train-images.idx3-ubyte"]
    data = utils.read_idx(raw)
    folder = utils.output_dir()
    plain, packed = folder / "bench.idx", folder / "bench.idx.gz"
    try:
        utils.write_idx(plain, data)
        utils.write_idx(packed, data)
        times = book.interleave(
            {
                "numpy.fromfile": lambda: np.fromfile(plain, dtype=np.uint8),
                "read_idx": lambda: utils.read_idx(plain),
                "gzip.decompress": lambda: gzip.decompress(packed.read_bytes()),
                "read_idx, gzip": lambda: utils.read_idx(packed),
            },
            rounds=15,
        )
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)

    print(f"\n{'reading the training images':32} theirs (ms)  ours (ms)  ours / theirs")
    print(f"{'':32} {'median':>11} {'median':>10}  {'medians':>8} {'fastest tenths':>14}")
    for theirs, ours in (("numpy.fromfile", "read_idx"), ("gzip.decompress", "read_idx, gzip")):
        print(
            f"{ours + ' / ' + theirs:32} {1e3 * statistics.median(times[theirs]):11.1f} "
            f"{1e3 * statistics.median(times[ours]):10.1f}  {ratios(times[ours], times[theirs])}"
        )


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # as notebook 06 does
    print(f"{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    bench_ladder(json.loads(speed_study.RESULT.read_text())["accuracy"]["runs"])
    bench_contest()
    bench_idx()
