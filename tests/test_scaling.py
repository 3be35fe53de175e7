"""Notebook 09: several processes train as one does, also where shares are uneven or empty."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from tools import scaling_study
from tools.notebook_code import definitions


@pytest.fixture(scope="session")
def page():
    return definitions("09_scaling_out")


@pytest.fixture(scope="session")
def study():
    return json.loads((utils.ROOT / "notebooks" / "09_study.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_map_reads_what_read_idx_reads(page, tmp_path, dtype):
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype)
    page.write_idx(tmp_path / "file", array)
    mapped = page.map_idx(tmp_path / "file")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, array)
    assert np.array_equal(utils.read_idx(tmp_path / "file"), array)


@pytest.mark.parametrize("change", [-1, 1])
def test_map_wants_the_whole_file(page, tmp_path, change):
    path = tmp_path / "file"
    page.write_idx(path, np.zeros((3, 4), "uint8"))
    path.write_bytes((path.read_bytes() + b"?")[: 24 + change])
    with pytest.raises(utils.IDXError, match=f"file: expected 24 bytes, found {24 + change}"):
        page.map_idx(path)


def test_load_gives_what_the_data_set_holds(page, mnist):
    test, model = utils.load_mnist("test"), utils.new_model(0)
    index = torch.tensor([7, 0, 9_999])
    arrays = test.pixels, test.labels.numpy().astype("uint8")
    for found, expected in zip(page.load(*arrays, index, model), test[index]):
        assert torch.equal(found, expected)


def test_unpacked_goes_by_content(page, monkeypatch, tmp_path):
    """A .gz may have been unpacked on its way, a file without that ending may be packed."""
    page.write_idx(tmp_path / "plain.gz", np.arange(5, dtype="uint8"))
    plain = (tmp_path / "plain.gz").read_bytes()
    (tmp_path / "packed").write_bytes(gzip.compress(plain))
    files = {"a": tmp_path / "plain.gz", "b": tmp_path / "packed"}
    monkeypatch.setattr(utils, "find_mnist", lambda name: files)
    for path in page.unpacked("made up"):
        assert page.map_idx(path).tolist() == [0, 1, 2, 3, 4]


# --------------------------------------------------------------- batches


def test_batches_are_the_same_everywhere_and_new_in_each_epoch(page):
    job = SimpleNamespace(seed=3, epochs=2, batch_size=16)
    first, second = list(page.batches(50, job)), list(page.batches(50, job))
    assert [len(batch) for batch in first] == [16, 16, 16, 2] * 2
    assert all(map(torch.equal, first, second))
    for epoch in (first[:4], first[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(50))
    assert not torch.equal(first[0], first[4])


# -------------------------------------------------------------- snapshots


def test_snapshot_brings_everything_back(page, tmp_path):
    def trained(steps, model, optimizer):
        for number in range(steps):
            optimizer.zero_grad()
            model(torch.full((2, 1, 28, 28), number + 1.0)).square().sum().backward()
            optimizer.step()

    path, model = str(tmp_path / "snapshot.pth"), utils.new_model(0)
    optimizer = utils.new_optimizer(model)
    assert page.restore(path, model, optimizer) == 0  # there is none
    assert page.restore(None, model, optimizer) == 0  # and none is wanted
    trained(3, model, optimizer)
    page.save(path, 3, model, optimizer)
    other = utils.new_model(1)
    again = utils.new_optimizer(other)
    assert page.restore(path, other, again) == 3
    trained(2, model, optimizer)
    trained(2, other, again)
    assert page.distance(model.state_dict(), other.state_dict()) == 0


def test_damaged_snapshot_is_named(page, tmp_path):
    path = tmp_path / "snapshot.pth"
    path.write_bytes(b"half a snapshot")
    model = utils.new_model(0)
    with pytest.raises(utils.CheckpointError, match="snapshot.pth"):
        page.restore(str(path), model, utils.new_optimizer(model))


# --------------------------------------------------------- the same training


@pytest.fixture(scope="module")
def small(page, tmp_path_factory):
    """A script, and a job with 33 pictures in batches of 16: the last batch has one."""
    folder = tmp_path_factory.mktemp("small")
    test = utils.load_mnist("test")
    labels = test.labels.numpy().astype("uint8")
    files = {"images": test.pixels[:33], "labels": labels[:33],
             "test_images": test.pixels[:10], "test_labels": labels[:10]}  # fmt: skip
    for name, array in files.items():
        page.write_idx(folder / name, array)
    script = folder / "train_parallel.py"
    page.write_script(script, *page.TRAINING)
    job = {name: str(folder / name) for name in files} | {
        "seed": 1, "epochs": 2, "steps": None, "batch_size": 16, "dtype": "float64",
        "optimizer": "SGD", "snapshot": None, "result": str(folder / "result.pth"),
    }  # fmt: skip
    return script, job


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_processes_without_a_share(page, small, processes):
    """Three of four get no picture of the last batch, and all the same the weights are right."""
    script, job = small
    alone = page.train_alone(job)
    (together,) = page.results(processes, script, job)
    assert page.distance(alone, together["weights"]) < 1e-12
    assert together["confusion"].sum() == 10


@pytest.mark.slow
def test_a_failing_script_says_why(page, small):
    script, job = small
    with pytest.raises(RuntimeError, match=r"train_parallel.py failed:(.|\n)*no-such-file"):
        page.results(1, script, job | {"images": "no-such-file"})


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Two hosts with a cable between them: network namespaces of this machine."""
    names = [f"digits-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    cables = [name[-8:] for name in names]
    if not shutil.which("ip") or ip("netns", "add", names[0], check=False).returncode:
        pytest.skip("simulated hosts need Linux, iproute2 and the right to add network namespaces")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", cables[0], "netns", names[0], "type", "veth",
           "peer", "name", cables[1], "netns", names[1])  # fmt: skip
        for number, (name, cable) in enumerate(zip(names, cables), 1):
            ip("-n", name, "addr", "add", f"10.79.0.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, cables))
    finally:
        for name in names:
            for pid in ip("netns", "pids", name, check=False).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name, check=False)


@pytest.mark.slow
def test_two_hosts_train_as_one_process_does(page, small, two_hosts):
    script, job = small
    running = []
    for number, (host, cable) in enumerate(two_hosts):
        command = [
            "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
            "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=digits", "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.79.0.1:29400", f"--rdzv-conf=is_host={1 - number}",
            f"--local-addr=10.79.0.{number + 1}", str(script), json.dumps([job]),
        ]  # fmt: skip
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(utils.ROOT), "GLOO_SOCKET_IFNAME": cable,
            "CUDA_VISIBLE_DEVICES": "",  # both would take the same GPU
        }  # fmt: skip
        running.append(subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ))  # fmt: skip
    said = [process.communicate(timeout=180)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for number, text in enumerate(said):
        assert f"process {number}, pid" in text or f"process {1 - number}, pid" in text
        assert text.count("starts after step 0") == 1  # one process on each host
    together = torch.load(job["result"])
    assert page.distance(page.train_alone(job), together["weights"]) < 1e-12


# ------------------------------------------------------------- the formula


def test_fit_finds_the_factors(page):
    columns = np.array([(1, 2), (1, 8), (1, 64)])
    assert page.fit(columns, columns @ (0.3, 0.02)) == pytest.approx([0.3, 0.02])


def test_ring_by_hand(page):
    """Three processes pass three pieces round, twice but for the own piece."""
    assert page.ring(3, 30).tolist() == [4, 4 * 40]
    assert page.ring(1, 30).tolist() == [0, 0]


def test_formula_foretells_what_obeys_it(page):
    def seconds(n, kind, width, size):
        work, message, byte = {1: (2e-3, 1e-4), 4: (3e-3, 1e-3)}, 5e-5, 1e-9
        numbers = size if kind == "sum" else page.GRADIENTS[width]
        messages, sent = page.ring(n, numbers)
        traffic = messages * message + sent * byte
        if kind == "sum":
            return traffic
        alone = work[width][0] + work[width][1] * size
        return alone + (traffic + 1e-3 if kind == "together" else 0)

    keys = [(n, "sum", 0, size) for n in (2, 4, 8) for size in (1, 1_000, 10**6)]
    for n in (1, 2, 4, 8):
        kinds = ("apart",) if n == 1 else ("apart", "together")
        keys += [(n, kind, w, b) for kind in kinds for w in (1, 4) for b in (1, 8, 64)]
    step = page.formula({key: seconds(*key) for key in keys}, most=4)
    for n, b, w in ((1, 100, 1), (8, 64, 1), (8, 8, 4)):
        expected = seconds(n, "apart" if n == 1 else "together", w, b)
        assert step(n, b, w) == pytest.approx(expected, rel=1e-6)
    assert step(1, 100, neighbours=2) == pytest.approx(2 * step(1, 100))


@pytest.mark.parametrize("width", [1, 4])
def test_gradients_are_counted(page, width):
    assert sum(p.numel() for p in page.network(width).parameters()) == page.GRADIENTS[width]


def test_network_is_the_collections(page):
    model, same = utils.new_model(0), page.network(1)
    same.load_state_dict(dict(zip(same.state_dict(), model.state_dict().values())))
    images = utils.load_mnist("test").images[:20]
    torch.testing.assert_close(same(images), model(images))


# --------------------------------------------------------------- the study


def test_study_is_whole(study):
    assert set(study) == {"command", *scaling_study.PARTS}
    for machine in study["timings"].values():
        assert {"date", "cores", "rows", "processor", "torch", "threads"} <= set(machine)
        processes = {row[0] for row in machine["rows"]}
        assert processes == {2**n for n in range(machine["cores"].bit_length())}
    rows = study["growth"]["rows"]
    assert {(row["pictures"], row["way"]) for row in rows} == {
        (round(60_000 * times), way)
        for times in scaling_study.SIZES for way in scaling_study.WAYS
    }  # fmt: skip
    assert len(study["fashion"]["seeds"]) == scaling_study.SEEDS


def test_fashion_study_agrees_with_itself(study):
    for run in study["fashion"]["seeds"].values():
        assert len(run["accuracy"]) == scaling_study.EPOCHS
        counts = np.array(run["confusion"])
        assert (counts.sum(axis=1) == 1_000).all()  # a thousand test pictures of each class
        assert counts.trace() / 10_000 == pytest.approx(run["accuracy"][-1])


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="growth is for Linux")
def test_growth_tells_the_ways_apart(page):
    """float32 takes more than bytes by about 141 MB: 60,000 pictures of 784 numbers."""
    peaks = {}
    for way in scaling_study.WAYS:
        what = json.dumps([page.unpacked("mnist")[0], way, [0, 1], 3])
        command = [sys.executable, "-m", "tools.scaling_study", "--child", what]
        done = subprocess.run(command, cwd=utils.ROOT, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout)
        assert found["step"] > 0
        peaks[way] = found["peak"] - found["before"]
    more = 60_000 * 784 * 3
    assert peaks["float32"] > max(peaks["bytes"], peaks["memory map"]) + 0.9 * more


def test_study_refuses_an_unknown_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling_study.py", "fashon"])
    with pytest.raises(SystemExit):
        scaling_study.main()
    assert "expected timings, growth, fashion, found fashon" in capsys.readouterr().err
