"""Places, data set, model, training, checkpoints and figures."""

import contextlib
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, random_split
from torchvision import transforms

import utils
from tools.notebook_code import definitions


@pytest.fixture(scope="module")
def speed():
    return definitions("07_speed")


# ---------------------------------------------------------------- data set


def test_data_set_has_the_known_labels(train, test):
    """Sizes, first labels and class counts are those that MNIST is known for."""
    assert (len(train), len(test)) == (60_000, 10_000)
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(test.labels).tolist() == counts


def test_constants_are_the_training_set_s_own(train):
    scaled = train.pixels / 255
    assert round(scaled.mean(), 4) == utils.MEAN
    assert round(scaled.std(), 4) == utils.STD


def test_one_sample_equals_the_classic_transform(test):
    """Pillow, ToTensor and Normalize give the same tensor, to the last bit."""
    classic = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]
    )
    for index in (0, 1, 9_999):
        image, label = test[index]
        assert torch.equal(image, classic(Image.fromarray(test.pixels[index])))
        assert image.shape == (1, 28, 28) and image.dtype == torch.float32
        assert isinstance(label, int) and label == test.labels[index]


@pytest.mark.parametrize(
    "index", [[3, 1, 2], torch.tensor([3, 1, 2]), np.array([3, 1, 2]), slice(1, 4)]
)
def test_a_batch_equals_its_samples(test, index):
    images, labels = test[index]
    positions = range(1, 4) if isinstance(index, slice) else [3, 1, 2]
    assert torch.equal(images, torch.stack([test[i][0] for i in positions]))
    assert labels.tolist() == [test[i][1] for i in positions]


def test_arrays_may_be_views(test):
    """Reversed, and not writable, as numpy.frombuffer makes them."""
    pixels, labels = test.pixels[:5], test.labels[:5].numpy().astype("uint8")
    pixels.flags.writeable = False
    backwards = utils.MNISTDataset(pixels[::-1], labels[::-1])
    assert torch.equal(backwards.images.flip(0), test.images[:5])
    assert torch.equal(backwards.labels.flip(0), test.labels[:5])


def test_plain_data_loader_works_too(test):
    """Whoever writes the usual DataLoader gets the usual batches."""
    images, labels = next(iter(DataLoader(test, batch_size=16)))
    expected_images, expected_labels = next(iter(utils.make_loader(test, 16)))
    assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


@pytest.mark.parametrize("indices", [range(103), torch.arange(103), np.arange(103)], ids=str)
def test_loader_serves_every_sample_once_in_a_new_order_each_epoch(test, indices):
    loader = utils.make_loader(Subset(test, indices), 10, shuffle=True, seed=np.int64(5))
    first, second = (torch.cat([labels for _, labels in loader]) for _ in range(2))
    assert [len(labels) for _, labels in loader] == [10] * 10 + [3]
    assert len(loader) == 11
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, test.labels[:103].sort().values)
    assert not torch.equal(first, second)


def test_loader_of_a_random_split(test):
    for part in random_split(test, [9_000, 1_000]):
        images, labels = next(iter(utils.make_loader(part, 5)))
        assert torch.equal(images, test.images[part.indices[:5]])
        assert torch.equal(labels, test.labels[part.indices[:5]])


def test_loader_repeats_with_the_seed_and_differs_without(test):
    def order(seed):
        return torch.cat([y for _, y in utils.make_loader(test, 500, shuffle=True, seed=seed)])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
    assert not torch.equal(order(None), order(None))


def test_positions_are_drawn_on_the_cpu_whatever_the_default_device(test):
    """Some set a GPU as the default; "meta" is a device that every machine has."""
    sampler, again = (utils.make_loader(test, 4, shuffle=True, seed=0).sampler for _ in "12")
    with torch.device("meta"):
        positions = next(iter(sampler))
    assert positions == next(iter(again)) and type(positions[0]) is int


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"expected .* found 'valid'"):
        utils.load_mnist("valid")


# ------------------------------------------------------------------- model


def test_parameter_count_and_names():
    model = utils.MnistClassifier()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 60_874
    assert list(model.state_dict()) == [
        f"{layer}.{kind}"
        for layer in ("conv1", "conv2", "conv3", "fc1", "fc2")
        for kind in ("weight", "bias")
    ]
    assert utils.MnistClassifier(num_classes=47)(torch.zeros(2, 1, 28, 28)).shape == (2, 47)


def test_pooling_before_relu_changes_nothing(train, speed):
    """Same logits and same gradients, to the last bit, as the recipe's order."""
    recipe, model = speed.ClassicNet(), utils.MnistClassifier()
    model.load_state_dict(recipe.state_dict())
    images, labels = train[torch.arange(64)]
    for net in (recipe, model):
        F.cross_entropy(net(images), labels).backward()
    assert torch.equal(recipe(images), model(images))
    for ours, theirs in zip(model.parameters(), recipe.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.long
def test_untrained_loss_is_ln_10(test):
    for seed in range(3):
        loss, _ = utils.evaluate(utils.new_model(seed), utils.make_loader(test, 500))
        assert abs(loss - math.log(10)) < 0.02


def test_new_model_depends_on_the_seed_alone():
    first, again, other = utils.new_model(1), utils.new_model(1), utils.new_model(2)
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


# ---------------------------------------------------------------- training


def test_evaluate_counts_every_sample(test):
    """No batch is dropped and none counts too much: any batch size gives one answer."""
    model = utils.new_model(0)
    part = Subset(test, torch.arange(1003))
    whole_loss, whole_accuracy = utils.evaluate(model, utils.make_loader(part, 1003))
    with torch.no_grad():
        logits = model(test.images[:1003])
    assert whole_loss == pytest.approx(F.cross_entropy(logits, test.labels[:1003]).item(), rel=1e-5)
    assert whole_accuracy == (logits.argmax(1) == test.labels[:1003]).sum().item() / 1003
    loss, accuracy = utils.evaluate(model, utils.make_loader(part, 16))
    assert loss == pytest.approx(whole_loss, rel=1e-5) and accuracy == whole_accuracy


def test_predict_is_the_network_in_pieces(test):
    model = nn.Sequential(utils.new_model(0), nn.Dropout(0.5))  # so that the mode matters
    logits = utils.predict(model, test.images[:1003])
    with torch.no_grad():
        whole = model[0](test.images[:1003])
    assert logits.shape == (1003, 10) and not logits.requires_grad
    assert torch.allclose(logits, whole, atol=1e-5)


def test_a_loader_without_batches_is_refused(test):
    model, empty = utils.new_model(0), utils.make_loader(Subset(test, []))
    with pytest.raises(ValueError, match="evaluate: expected a loader with batches"):
        utils.evaluate(model, empty)
    with pytest.raises(ValueError, match="epoch 7: expected a loader with batches"):
        utils.train_epoch(model, empty, utils.new_optimizer(model), label="epoch 7")


def test_a_loss_that_is_not_finite_names_its_batch(train):
    """A damaged pixel in the 96th picture, and a learning rate that is far too high."""
    data = utils.MNISTDataset(train.pixels[:160], train.labels[:160].numpy().astype("uint8"))
    data.images[95, 0, 14, 14] = float("nan")
    model = utils.new_model(0)
    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 6: the loss is nan\. Is the"):
        loader = utils.make_loader(data)
        utils.train_epoch(model, loader, utils.new_optimizer(model), label="epoch 2")
    loader = utils.make_loader(Subset(train, range(160)))
    model = utils.new_model(0)
    with pytest.raises(FloatingPointError, match="learning rate too high"):
        utils.train_epoch(model, loader, utils.new_optimizer(model, lr=1e30))


def test_train_epoch_returns_the_mean_over_samples(train):
    """With a learning rate of zero the mean training loss is the loss of the fixed model."""
    model = utils.new_model(0)
    part = utils.make_loader(Subset(train, torch.arange(203)), 50)
    loss = utils.train_epoch(model, part, torch.optim.SGD(model.parameters(), lr=0.0))
    assert loss == pytest.approx(utils.evaluate(model, part)[0], rel=1e-5)


def test_fast_and_classic_path_have_the_same_losses(train, speed):
    """Same seed and order of data: per-image Pillow path in the default layout with the
    default Adam, and ours, differ by no more than float rounding over 60 steps."""
    per_image = speed.ClassicDataset(train.pixels, train.labels.numpy())
    torch.manual_seed(0)
    classic = speed.ClassicNet()
    ours = utils.new_model(0)
    for a, b in zip(classic.parameters(), ours.parameters()):
        assert torch.equal(a, b)
    adam = torch.optim.Adam(classic.parameters(), lr=0.001, weight_decay=1e-5)
    fused = utils.new_optimizer(ours)
    differences = []
    for step, indices in enumerate(utils.make_loader(train, 16, shuffle=True, seed=0).sampler):
        if step == 60:
            break
        samples = [per_image[i][0] for i in indices]
        losses = []
        for net, optimizer, images in (
            (classic, adam, torch.stack(samples)),
            (ours, fused, train[indices][0]),
        ):
            loss = F.cross_entropy(net(images), train.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        differences.append(abs(losses[0] - losses[1]))
    assert max(differences) < 1e-3, differences
    assert losses[0] < 1.5  # and it did learn


def test_the_recipe_s_optimiser():
    optimizer = utils.new_optimizer(utils.new_model(0))
    assert isinstance(optimizer, torch.optim.Adam)
    settings = optimizer.param_groups[0]
    assert (settings["lr"], settings["weight_decay"], settings["betas"], settings["eps"]) == (
        0.001, 1e-5, (0.9, 0.999), 1e-8,
    )  # fmt: skip


def test_device_that_fails_at_its_first_operation_is_not_used(monkeypatch):
    """A GPU may say that it is there and fail: then the CPU is used, and a warning says so."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert utils.pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    real = nn.Module.to

    def broken(self, target, *args, **kwargs):
        if str(target).startswith("cuda"):
            raise RuntimeError("no kernel image is available for execution on the device")
        return real(self, target, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", broken)
    with pytest.warns(UserWarning, match="cuda does not work .no kernel image.*using the CPU"):
        assert utils.pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("part", "factor", "chosen"),
    [(0, 1.001, "cuda"), (0, 1.05, "cpu"), (3, 0.9, "cpu"), (-1, float("nan"), "cpu")],
)
def test_device_that_computes_something_else_is_not_used(monkeypatch, part, factor, chosen):
    """In the logits (part 0) or in one gradient; a GPU's usual rounding is let pass."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    real = utils._probe

    def probe(device):
        values = real("cpu")
        if str(device) == "cuda":
            values[part] = values[part] * factor
        return values

    monkeypatch.setattr(utils, "_probe", probe)
    said = contextlib.nullcontext()
    if chosen == "cpu":
        said = pytest.warns(UserWarning, match="cuda does not work .its results differ")
    with said:
        assert utils.pick_device() == torch.device(chosen)


def test_the_probe_is_of_all_weights_and_leaves_the_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    logits, *gradients = utils._probe("cpu")
    assert torch.equal(torch.rand(3), expected)
    assert [g.shape for g in gradients] == [p.shape for p in utils.MnistClassifier().parameters()]
    assert all(value.abs().max() > 0 for value in (logits, *gradients))


def test_channels_last_is_for_cpu_and_cuda_only():
    """ "meta" stands for a device that is neither, such as an Apple GPU."""
    for device, fast in (("cpu", True), ("meta", False)):
        weight = utils.new_model(0, device).conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is fast
        assert weight.is_contiguous() is not fast


# ------------------------------------------------------------- checkpoints


@pytest.fixture
def saved(tmp_path, train):
    """A checkpoint after one short epoch, with its model."""
    model = utils.new_model(0)
    optimizer = utils.new_optimizer(model)
    loader = utils.make_loader(Subset(train, torch.arange(160)))
    loss = utils.train_epoch(model, loader, optimizer)
    path = tmp_path / "modelku.pth"
    utils.save_checkpoint(path, model, optimizer, 1, [loss], [np.float64(0.5)])
    return path, model


def test_checkpoint_has_exactly_its_five_keys(saved):
    path, model = saved
    content = torch.load(path, weights_only=True)
    assert list(content) == [
        "epoch", "model_state_dict", "optimizer_state_dict", "train_loss", "test_loss",
    ]  # fmt: skip
    assert content["epoch"] == 1
    assert all(type(loss) is float for loss in content["train_loss"] + content["test_loss"])
    assert os.listdir(path.parent) == ["modelku.pth"]


def test_checkpoint_comes_back_bit_for_bit(saved):
    path, model = saved
    restored = utils.new_model(9)
    optimizer = utils.new_optimizer(restored)
    content = utils.load_checkpoint(path, restored, optimizer)
    for key, value in model.state_dict().items():
        assert torch.equal(value, restored.state_dict()[key])
    assert optimizer.state_dict()["state"][0]["step"] == 10
    assert content["test_loss"] == [0.5]


def test_checkpoint_of_another_implementation_loads(tmp_path, test, speed):
    """Plain layout, plain Adam, saved with plain torch.save by somebody else's code."""
    other = speed.ClassicNet()
    adam = torch.optim.Adam(other.parameters())
    other(test.images[:4]).sum().backward()
    adam.step()
    path = tmp_path / "modelku.pth"
    content = {
        "epoch": 10,
        "model_state_dict": other.state_dict(),
        "optimizer_state_dict": adam.state_dict(),
        "train_loss": [0.1],
        "test_loss": [0.2],
    }
    torch.save(content, path)
    model = utils.new_model(1)
    utils.load_checkpoint(path, model, utils.new_optimizer(model))
    with torch.no_grad():
        assert torch.allclose(model(test.images[:8]), other(test.images[:8]), atol=1e-5)


def edited(path, **changes):
    content = torch.load(path, weights_only=True)
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_wrapped_networks_save_and_load_as_plain_ones(saved, tmp_path, wrap):
    """Two GPUs on Kaggle invite DataParallel, which puts a prefix before every name."""
    path, model = saved
    wrapped = wrap(model)
    utils.save_checkpoint(tmp_path / "wrapped.pth", wrapped, utils.new_optimizer(model), 1, [], [])
    theirs = {key: wrapped.state_dict() if key == "model_state_dict" else value
              for key, value in torch.load(path, weights_only=True).items()}  # fmt: skip
    torch.save(theirs, tmp_path / "theirs.pth")  # saved by somebody else, prefixes and all
    for name in ("wrapped.pth", "theirs.pth"):
        plain, other = utils.new_model(1), utils.new_model(2)
        utils.load_checkpoint(tmp_path / name, plain)
        utils.load_checkpoint(tmp_path / name, wrap(other))
        assert torch.equal(plain.fc1.weight, model.fc1.weight)
        assert torch.equal(other.fc1.weight, model.fc1.weight)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(saved, tmp_path):
    path, model = saved
    with torch.no_grad():
        model.fc1.bias[3] = float("inf")
    with pytest.raises(utils.CheckpointError, match="not finite"):
        utils.save_checkpoint(tmp_path / "new.pth", model, utils.new_optimizer(model), 1, [], [])
    assert not (tmp_path / "new.pth").exists()
    torch.save(edited(path, model_state_dict=model.state_dict()), path)
    assert_refused(path, "not finite")


def assert_refused(path, says, make_optimizer=utils.new_optimizer):
    """The message names the file; model and optimiser are left as they were."""
    model = utils.new_model(3)
    optimizer = make_optimizer(model)
    model(torch.zeros(1, 1, 28, 28)).sum().backward()
    optimizer.step()
    before = [value.clone() for value in model.state_dict().values()]
    state = str(optimizer.state_dict())
    with pytest.raises(utils.CheckpointError, match=f"(?s){re.escape(path.name)}.*{says}"):
        utils.load_checkpoint(path, model, optimizer)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert str(optimizer.state_dict()) == state


@pytest.mark.parametrize("share", range(9))
def test_a_checkpoint_that_was_cut_short_is_refused(saved, share):
    path, _ = saved
    path.write_bytes(path.read_bytes()[: share * path.stat().st_size // 9])
    assert_refused(path, "damaged file")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": None}, "found the keys model_state_dict"),
        ({"best": 1}, "found the keys.*best"),
        (
            {"model_state_dict": nn.Linear(2, 3).state_dict()},
            "Missing key.*conv1.weight.*Unexpected",
        ),
        ({"model_state_dict": utils.MnistClassifier(47).state_dict()}, r"fc2.weight.*\[47, 64\]"),
        ({"model_state_dict": [1, 2]}, "expected"),
        ({"train_loss": [np.float64(0.5)]}, r"a NumPy value: save float\(loss\)"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, changes, says):
    path, _ = saved
    torch.save(edited(path, **changes), path)
    assert_refused(path, says)


@pytest.mark.parametrize(
    ("content", "says"), [(b"<html>503</html>", "damaged file"), ([1, 2], "found a list")]
)
def test_what_is_no_checkpoint_is_refused(saved, content, says):
    path, _ = saved
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_refused(path, says)


def test_the_state_of_another_optimiser_is_refused_before_anything_is_changed(saved):
    path, model = saved
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    two_groups = torch.optim.Adam([{"params": [p]} for p in model.parameters()])
    for optimizer, says in ((sgd, "without betas, eps"), (two_groups, "groups")):
        torch.save(edited(path, optimizer_state_dict=optimizer.state_dict()), path)
        assert_refused(path, says)
    utils.save_checkpoint(path, model, utils.new_optimizer(model), 1, [], [])
    assert_refused(path, "momentum", lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9))


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICIOUS_FOLDER"],)


def test_code_in_a_checkpoint_does_not_run(saved, tmp_path, monkeypatch):
    path, _ = saved
    monkeypatch.setenv("MALICIOUS_FOLDER", str(tmp_path / "it ran"))
    torch.save(edited(path, epoch=Malicious()), path)
    with pytest.raises(utils.CheckpointError, match=r"code, which was not run .*mkdir"):
        utils.load_checkpoint(path, utils.new_model(0))
    assert not (tmp_path / "it ran").exists()
    torch.load(path, weights_only=False)  # the file does carry working code
    assert (tmp_path / "it ran").exists()


def test_missing_checkpoint_is_an_ordinary_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(tmp_path / "nothing.pth", utils.new_model(0))


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    """A full disk, say: the error names file and variable, and nothing else is left."""
    path, model = saved
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*MNIST_OUTPUT_DIR.*modelku.pth") as caught:
        utils.save_checkpoint(path, model, utils.new_optimizer(model), 2, [], [])
    assert caught.value.errno == 28
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["modelku.pth"]


# ------------------------------------------------------------------ places


def test_output_folder_on_each_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path / "chosen"))
    assert utils.output_dir() == tmp_path / "chosen" and utils.output_dir().is_dir()
    monkeypatch.delenv("MNIST_OUTPUT_DIR")
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert utils.output_dir() == tmp_path / "outputs"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert utils.KAGGLE_WORKING.as_posix() == "/kaggle/working"
    monkeypatch.setattr(utils, "KAGGLE_WORKING", tmp_path / "working")
    assert utils.output_dir() == tmp_path / "working"


def test_trained_model_prefers_the_recipe_s_checkpoint(saved, monkeypatch, capsys):
    path, model = saved
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(path.parent))
    restored, checkpoint = utils.trained_model()
    assert torch.equal(restored.fc2.weight, model.fc2.weight) and not restored.training
    found = f"NETWORK: modelku.pth in the folder {path.parent.name}, epochs: 1.\n"
    assert capsys.readouterr().out == found


def test_trained_model_takes_a_file_that_was_uploaded(saved, monkeypatch, tmp_path):
    """On Colab an upload lands in the working folder."""
    path, model = saved
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path / "out"))
    monkeypatch.chdir(path.parent)
    restored, _ = utils.trained_model()
    assert torch.equal(restored.fc2.weight, model.fc2.weight)


def test_trained_model_finds_an_attached_output_on_kaggle(saved, monkeypatch, tmp_path):
    path, model = saved
    attached = tmp_path / "input" / "notebooks" / "owner" / "03-training"
    attached.mkdir(parents=True)
    path.rename(attached / "modelku.pth")
    monkeypatch.setattr(utils, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path / "out"))
    restored, _ = utils.trained_model()
    assert torch.equal(restored.fc2.weight, model.fc2.weight)


def test_trained_model_trains_a_substitute_and_says_so_loudly(monkeypatch, tmp_path, train, capsys):
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "load_mnist", lambda split: Subset(train, range(1280)))
    model, checkpoint = utils.trained_model()
    assert not model.training and set(checkpoint) == set(utils.CHECKPOINT_KEYS)
    assert checkpoint["epoch"] == 1 and not list(tmp_path.iterdir())
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("NETWORK: A SUBSTITUTE, trained now for 1 epoch")
    assert "run notebook 03; attach its output (Kaggle) or upload it (Colab)" in second


def test_a_companion_is_found_beside_the_notebook_or_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert utils.companion("03_study.json") == utils.ROOT / "notebooks" / "03_study.json"
    (tmp_path / "03_study.json").write_bytes(b"{}")
    assert utils.companion("03_study.json") == tmp_path / "03_study.json"
    with pytest.raises(FileNotFoundError, match="99_none.json: copy it beside the notebook"):
        utils.companion("99_none.json")


# ----------------------------------------------------------------- figures


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 28, 28)), torch.zeros(3, 28, 28), torch.zeros(3, 1, 28, 28),
        torch.zeros(3, 1, 28, 28, requires_grad=True), [np.zeros((28, 28))] * 3,
        np.zeros((0, 28, 28)), torch.zeros(1, 28, 28),
    ],
    ids=["array", "tensor", "channel", "gradient", "list", "none", "one"],
)  # fmt: skip
def test_show_images_draws_any_kind(images):
    plt.close("all")
    utils.show_images(images, titles=["a title"] * len(images), limit=1)
    drawn = [axis.images[0].get_array().shape for axis in plt.gcf().axes if axis.images]
    assert drawn == [(28, 28)] * len(images)
    plt.close("all")


# --------------------------------------------------------------- importing


@pytest.mark.long
def test_importing_utils_is_silent_and_changes_nothing():
    """It must not print, download, train, or restyle the reader's own figures."""
    code = (
        "import matplotlib as m; a = dict(m.rcParams); import utils; assert a == dict(m.rcParams)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, encoding="utf-8"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.long
def test_nothing_at_import_needs_posix(tmp_path):
    """As on Windows: no resource and no fork."""
    (tmp_path / "resource.py").write_bytes(b"raise ImportError('not on Windows')")
    modules = [f"tools.{path.stem}" for path in (utils.ROOT / "tools").glob("[!_.]*.py")]
    code = (
        "import os\nfor name in ('fork', 'forkpty'): vars(os).pop(name, None)\n"
        f"import utils, {', '.join(modules)}, data.from_package_index\nprint('done')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(utils.ROOT)])}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True
    )
    assert result.stdout.strip() == b"done", result.stderr.decode(errors="replace")


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize(
    "command", [["tools.standalone", "--kaggle-user", "→ ¹⁰"], ["data.from_package_index"]]
)
def test_no_letter_stops_what_is_printed(mnist, tmp_path, command, encoding):
    """As in a pipe on Windows: both print what they were given, and that may be any text."""
    folder = tmp_path / "→ ¹⁰"
    folder.mkdir()
    for name in mnist:
        (folder / name).write_bytes(b"")
    environment = os.environ | {"MNIST_DIR": str(folder), "PYTHONIOENCODING": encoding}
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=utils.ROOT, env=environment, capture_output=True
    )
    assert "→ ¹⁰".encode(encoding, errors="replace") in result.stdout, result.stderr


def test_no_public_function_lacks_a_type_hint_or_a_docstring():
    for name, thing in vars(utils).items():
        function = getattr(thing, "__wrapped__", thing)
        if name.startswith("_") or getattr(function, "__module__", "") != "utils":
            continue
        assert thing.__doc__, name
        if not isinstance(thing, type) and callable(thing):
            code, hints = function.__code__, function.__annotations__
            arguments = code.co_varnames[: code.co_argcount]
            assert set(hints) >= {*arguments, "return"}, name


def test_utils_is_read_in_ten_minutes():
    assert len((utils.ROOT / "utils.py").read_text(encoding="utf-8").splitlines()) <= 600
