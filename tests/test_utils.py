"""Model, loaders, training, evaluation and checkpoints."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

import utils
from tools.notebook_code import definitions

speed = definitions("06_speed")
ClassicDataset, ClassicNet = speed.ClassicDataset, speed.ClassicNet


@pytest.fixture(scope="module")
def train():
    return utils.load_mnist("train")


@pytest.fixture(scope="module")
def test():
    return utils.load_mnist("test")


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


def test_plain_data_loader_works_too(test):
    """Whoever writes the usual DataLoader gets the usual batches."""
    images, labels = next(iter(DataLoader(test, batch_size=16)))
    expected_images, expected_labels = next(iter(utils.make_loader(test, 16)))
    assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_loader_serves_every_sample_once_in_a_new_order_each_epoch(test):
    loader = utils.make_loader(Subset(test, torch.arange(103)), 10, shuffle=True, seed=5)
    first, second = (torch.cat([labels for _, labels in loader]) for _ in range(2))
    assert [len(labels) for _, labels in loader] == [10] * 10 + [3]
    assert len(loader) == 11
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, test.labels[:103].sort().values)
    assert not torch.equal(first, second)


def test_loader_repeats_with_the_seed_and_differs_without(test):
    def order(seed):
        return torch.cat([y for _, y in utils.make_loader(test, 500, shuffle=True, seed=seed)])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


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


def test_pooling_before_relu_changes_nothing(train):
    """Same logits and same gradients, to the last bit, as the recipe's order."""
    recipe, model = ClassicNet(), utils.MnistClassifier()
    model.load_state_dict(recipe.state_dict())
    images, labels = train[torch.arange(64)]
    for net in (recipe, model):
        F.cross_entropy(net(images), labels).backward()
    assert torch.equal(recipe(images), model(images))
    for ours, theirs in zip(model.parameters(), recipe.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


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


def test_evaluate_leaves_the_mode_as_it_was(test):
    model = utils.new_model(0)
    for mode in (True, False):
        model.train(mode)
        utils.evaluate(model, utils.make_loader(Subset(test, torch.arange(16))))
        assert model.training is mode


def test_train_epoch_returns_the_mean_over_samples(train):
    """With a learning rate of zero the mean training loss is the loss of the fixed model."""
    model = utils.new_model(0)
    part = utils.make_loader(Subset(train, torch.arange(203)), 50)
    loss = utils.train_epoch(model, part, torch.optim.SGD(model.parameters(), lr=0.0))
    assert loss == pytest.approx(utils.evaluate(model, part)[0], rel=1e-5)


def test_fast_and_classic_path_have_the_same_losses(train):
    """Same seed and order of data: per-image Pillow path in the default layout with the
    default Adam, and ours, differ by no more than float rounding over 60 steps."""
    per_image = ClassicDataset(train.pixels, train.labels.numpy())
    torch.manual_seed(0)
    classic = ClassicNet()
    ours = utils.new_model(0)
    for a, b in zip(classic.parameters(), ours.parameters()):
        assert torch.equal(a, b)
    adam = torch.optim.Adam(classic.parameters(), lr=0.001, weight_decay=1e-5)
    fused = utils.new_optimizer(ours)
    differences = []
    for step, indices in enumerate(utils.BatchIndices(60_000, 16, shuffle=True, seed=0)):
        if step == 60:
            break
        samples = [per_image[i][0] for i in indices.tolist()]
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


def test_device_that_fails_at_its_first_operation_is_not_used(monkeypatch, capsys):
    """A GPU may say that it is there and fail: then the CPU is used, and a sentence says so."""
    if torch.cuda.is_available():
        assert utils.pick_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real = nn.Module.to

    def broken(self, target, *args, **kwargs):
        if str(target).startswith("cuda"):
            raise RuntimeError("no kernel image is available for execution on the device")
        return real(self, target, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", broken)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert utils.pick_device().type == "cpu"
    assert "no kernel image" in capsys.readouterr().err


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


def test_checkpoint_of_another_implementation_loads(tmp_path, test):
    """Plain layout, plain Adam, saved with plain torch.save by somebody else's code."""
    other = ClassicNet()
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
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "damaged file"),
        *(
            (
                lambda path, n=n: path.write_bytes(
                    path.read_bytes()[: n * path.stat().st_size // 9]
                ),
                "damaged file",
            )
            for n in range(9)
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged file"),
        (lambda path: path.write_bytes(b"<html>503</html>"), "damaged file"),
        (lambda path: path.write_bytes(b""), "damaged file"),
        (lambda path: torch.save([1, 2], path), "found list"),
        (lambda path: torch.save(edited(path, epoch=None), path), "found model_state_dict"),
        (lambda path: torch.save(edited(path, best=1), path), "best"),
        (
            lambda path: torch.save(
                edited(path, model_state_dict=nn.Linear(2, 3).state_dict()), path
            ),
            "conv1.weight is missing.*bias is not in this network",
        ),
        (
            lambda path: torch.save(
                edited(path, model_state_dict=utils.MnistClassifier(47).state_dict()), path
            ),
            r"fc2.weight has shape \(47, 64\) instead of \(10, 64\)",
        ),
    ],
)
def test_bad_checkpoint_is_refused_and_the_model_left_alone(saved, spoil, says):
    path, _ = saved
    spoil(path)
    model = utils.new_model(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(utils.CheckpointError, match=f"(?s){path.name}.*{says}"):
        utils.load_checkpoint(path, model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICIOUS_FOLDER"],)


def test_code_in_a_checkpoint_does_not_run(saved, tmp_path, monkeypatch):
    path, _ = saved
    monkeypatch.setenv("MALICIOUS_FOLDER", str(tmp_path / "it ran"))
    torch.save(edited(path, epoch=Malicious()), path)
    with pytest.raises(utils.CheckpointError, match=r"carries code \(\w+\.mkdir\); it was not run"):
        utils.load_checkpoint(path, utils.new_model(0))
    assert not (tmp_path / "it ran").exists()
    torch.load(path, weights_only=False)  # the file does carry working code
    assert (tmp_path / "it ran").exists()


def test_missing_checkpoint_is_an_ordinary_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(tmp_path / "nothing.pth", utils.new_model(0))


def test_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def interrupted(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(OSError, match="No space left"):
        utils.save_checkpoint(path, model, utils.new_optimizer(model), 2, [], [])
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
    assert "modelku.pth" in capsys.readouterr().out


def test_trained_model_finds_an_attached_output_on_kaggle(saved, monkeypatch, tmp_path):
    path, model = saved
    attached = tmp_path / "input" / "notebooks" / "owner" / "03-training"
    attached.mkdir(parents=True)
    path.rename(attached / "modelku.pth")
    monkeypatch.setattr(utils, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path / "out"))
    restored, _ = utils.trained_model()
    assert torch.equal(restored.fc2.weight, model.fc2.weight)


def test_importing_utils_is_silent():
    """Importing must not print, download or train."""
    result = subprocess.run(
        [sys.executable, "-c", "import utils"], cwd=utils.ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
