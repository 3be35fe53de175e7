"""Print the speed tables: the ladder and the contest of notebook 07, and the reading of IDX files.

    python -m tools.bench

Other programs on the machine disturb a clock, so what is compared takes turns in slices of
well under a second, many times over. Each ratio is given twice, of the medians and of the
fastest tenths of the slices; where the two disagree, trust neither and measure again on a
quieter machine. The accuracies come from the stored study, notebooks/07_study.json; the
contest trains every rival anew, ten times.
"""

import gzip
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import utils
from tools import speed_study, studies


def ratios(ours, theirs):
    median = statistics.median(ours) / statistics.median(theirs)
    fastest = speed_study.page().fastest_tenth(ours) / speed_study.page().fastest_tenth(theirs)
    return f"{median:8.2f} {fastest:14.2f}"


def bench_ladder(runs):
    measured = speed_study.measure_ladder()
    print("\nTraining, one change a rung")
    speed_study.page().print_ladder(measured["seconds"], measured["peak"], runs)


def bench_contest():
    result = speed_study.measure_contest()
    print("\nWhole trainings, ten seeds")
    speed_study.page().print_contest(result)


def bench_idx():
    plain = utils.find_mnist()["train-images.idx3-ubyte"]
    with tempfile.TemporaryDirectory() as folder:
        raw, packed = Path(folder, "raw"), Path(folder, "packed")
        content = plain.read_bytes()
        raw.write_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        packed.write_bytes(gzip.compress(raw.read_bytes()))
        times = speed_study.page().interleave(
            {
                "numpy.fromfile": lambda: np.fromfile(raw, dtype=np.uint8),
                "read_idx": lambda: utils.read_idx(raw),
                "gzip.decompress": lambda: gzip.decompress(packed.read_bytes()),
                "read_idx, gzip": lambda: utils.read_idx(packed),
            },
            rounds=15,
        )

    print(f"\n{'reading the training images':32} theirs (ms)  ours (ms)  ours / theirs")
    print(f"{'':32} {'median':>11} {'median':>10}  {'medians':>8} {'fastest tenths':>14}")
    for theirs, ours in (("numpy.fromfile", "read_idx"), ("gzip.decompress", "read_idx, gzip")):
        print(
            f"{ours + ' / ' + theirs:32} {1e3 * statistics.median(times[theirs]):11.1f} "
            f"{1e3 * statistics.median(times[ours]):10.1f}  {ratios(times[ours], times[theirs])}"
        )


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # as notebook 07 does
    print(f"{studies.processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    bench_ladder(studies.load(speed_study.RESULT)["accuracy"]["runs"])
    bench_contest()
    bench_idx()
