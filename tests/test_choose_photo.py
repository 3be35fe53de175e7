"""Which photo notebook 06 reads: the reader's own or the sample, and nothing that lies beside."""

import sys
import types
from pathlib import Path

import pytest
from PIL import Image

import utils

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def choose(handwriting):
    return handwriting["choose_photo"]


@pytest.fixture(autouse=True)
def kaggle(handwriting, tmp_path, monkeypatch):
    """An empty /kaggle/input, beside empty folders for the working folder and for results."""
    for name in ("input", "working", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(utils, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setitem(handwriting, "folder", tmp_path / "results")
    monkeypatch.setitem(handwriting, "test", utils.load_mnist("test"))
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path / "input"


def put(folder, *names):
    """Write a picture, or other bytes under a name that is no picture's; return the last path."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png") and not path.name.startswith("."):
            Image.new("L", (40, 30), 255).save(path)
        else:
            path.write_bytes(b"no picture")
    return path


def is_sample(chosen):
    path, why = chosen
    return path.parts[-2:] == ("results", "sample.jpg") and why.startswith("MY_PHOTO is empty")


# -------------------------------------------------------------- the sample


def test_a_sample_where_nothing_is_given(handwriting, choose):
    path, why = choose("")
    assert is_sample((path, why))
    upright = handwriting["open_picture"](path)
    with Image.open(path) as stored:
        assert stored.size == (upright.height, upright.width)
    assert [len(row) for row in handwriting["prepare_number"](path)] == [5]


def test_a_machine_that_is_not_kaggle(choose, kaggle):
    kaggle.rmdir()
    assert is_sample(choose(""))


# ---------------------------------------------------------- found on Kaggle

LAYOUTS = ["mine", "datasets/somebody/mine"]


@pytest.mark.parametrize("place", LAYOUTS)
@pytest.mark.parametrize("name", ["Seven.JPG", "archive/photos/_MG_0007.png"])
def test_an_attached_photo(choose, kaggle, place, name):
    mine = put(kaggle / place, name)
    assert choose("") == (mine, "it is attached")


LEFTOVERS = [
    ".DS_Store", "._Seven.JPG", "__MACOSX/._Seven.JPG", "__MACOSX/a/Seven.JPG", "Thumbs.db",
    "desktop.ini", ".thumbnails/1.jpg", "thumbnails/1.jpg", "@eaDir/Seven.JPG/SYNO_S.jpg",
    "Seven.MOV", "Seven.aae",
]  # fmt: skip


@pytest.mark.parametrize("place", LAYOUTS)
def test_what_systems_leave_beside_photos(choose, kaggle, place):
    put(kaggle / place, *LEFTOVERS)
    assert is_sample(choose(""))
    mine = put(kaggle / place, "Seven.JPG")
    assert choose("") == (mine, "it is attached")
    assert choose("Seven.JPG")[0] == mine


OURS = ["my_digits.npy", "photos/sample.jpg", "photos/bomb.png", "photos/cut_short.jpg"]
FIGURE = "__results___files/__results___12_0.png"
IDX = [
    f"{part}-ubyte"
    for part in ("train-images.idx3", "train-labels.idx1", "t10k-images.idx3", "t10k-labels.idx1")
]
NOT_MINE = {
    "output, old": ("a-notebook", FIGURE, "__results__.html", "__notebook__.ipynb"),
    "output, old, figures alone": ("a-notebook", FIGURE),
    "output, old, pictures": ("a-notebook", "__output__.json", "photos/sample.jpg"),
    "output, old, no marks": ("a-notebook", "modelku.pth", "curves.png"),
    "output, old, style": ("a-notebook", "custom.css", "curves.png"),
    "output, new": ("notebooks/somebody/a-notebook", "curves.png"),
    "output of this notebook, old": ("your-handwriting", *OURS),
    "output of this notebook, new": ("notebooks/somebody/your-handwriting", *OURS[1:]),
    "output kept as a data set": ("datasets/somebody/kept", *OURS),
    "model": ("models/somebody/net/pytorch/default/1", "network.png"),
    "competition": ("competitions/digits", "example.png"),
    "MNIST as files": ("datasets/a/mnist-png", *(f"train/{d}/{d}.png" for d in range(10))),
    "IDX files with a cover": ("datasets/a/mnist", *IDX, "dataset-cover-image.jpg"),
    "IDX files, old": ("mnist-dataset", *(f"{name}/{name}" for name in IDX), "sample.png"),
    "a table": ("digit-recognizer", "train.csv", "sample.png"),
    "a folder of that name": ("datasets/a/empty", "seven.jpg/notes.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_MINE)
def test_what_is_no_photo_of_the_reader(choose, kaggle, case):
    place, *names = NOT_MINE[case]
    put(kaggle / place, *names)
    assert is_sample(choose(""))


def test_the_photo_among_all_of_that(choose, kaggle):
    for place, *names in NOT_MINE.values():
        put(kaggle / place, *names)
    mine = put(kaggle / "datasets" / "me" / "zoo", "seven.jpg/seven.jpg")  # as Kaggle unpacks
    assert choose("") == (mine, "it is attached")
    assert choose("seven.jpg")[0] == mine


def test_a_link_that_leads_nowhere(choose, kaggle):
    put(kaggle / "mine", "b.jpg")
    (kaggle / "mine" / "a.jpg").symlink_to(kaggle / "gone.jpg")
    assert choose("") == (kaggle / "mine" / "b.jpg", "it is attached")


def test_several_photos(choose, kaggle):
    put(kaggle / "datasets" / "me" / "more", "9.jpg", "5.png", "eight.jpg")
    put(kaggle / "mine", "7.jpg")
    path, why = choose("")
    assert path.name == "5.png"
    listed = ["mine/7.jpg", "more/9.jpg", "more/eight.jpg"]
    assert why.endswith("set MY_PHOTO to " + " or ".join(map(repr, listed)))
    for name in listed:
        assert choose(name)[0].as_posix().endswith(name)


@pytest.mark.parametrize("count", [9, 10])
def test_a_handful_is_less_than_a_collection(choose, kaggle, count):
    put(kaggle / "mine", *(f"{number}.jpg" for number in range(count)))
    assert is_sample(choose("")) == (count == 10)


@pytest.mark.parametrize("name", ["IMG_7.HEIC", "img_7.heif", "IMG_7.avif", "IMG_7.DNG"])
def test_a_photo_that_cannot_be_opened_is_named(handwriting, choose, kaggle, name):
    photo = put(kaggle / "mine", name)
    assert choose("") == (photo, "it is attached")
    with (
        pytest.raises(handwriting["PhotoError"], match=f"^{name}: .*Save it as JPEG"),
        handwriting["about"](photo),
    ):
        handwriting["open_picture"](photo)
    other = put(kaggle / "mine", "img_8.jpg")  # can be opened, so it comes first
    path, why = choose("")
    assert path == other and f"mine/{name}" in why


# ------------------------------------------------------------------- named


def test_a_named_photo_wins(choose, kaggle):
    put(kaggle / "mine", "other.png", "seven.jpg")
    put(Path.cwd(), "seven.jpg")
    assert choose("seven.jpg") == (Path("seven.jpg"), "MY_PHOTO names it")
    path = put(kaggle.parent, "elsewhere/seven.jpg")
    assert choose(str(path)) == (path, "MY_PHOTO names it")
    assert choose(path) == (path, "MY_PHOTO names it")


def test_a_photo_in_the_home_folder(choose, kaggle, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(kaggle.parent))
    assert choose("~/seven.jpg")[0] == kaggle.parent / "seven.jpg"


def test_a_photo_that_is_not_there(handwriting, choose, kaggle):
    put(kaggle / "mine", "other.png")
    path, _ = choose("seven.jpg")
    with pytest.raises(handwriting["PhotoError"], match="found no file of this name"):
        handwriting["open_picture"](path)


def test_a_name_is_enough_on_kaggle(choose, kaggle):
    """In any data set, the smallest first; not in what a notebook left."""
    put(kaggle / "notebooks" / "me" / "a", "seven.jpg")
    put(kaggle / "a-notebook", "__results__.html", "seven.jpg")
    assert choose("seven.jpg")[0] == Path("seven.jpg")
    large = put(kaggle / "datasets" / "a" / "mnist", "a.csv", "b.csv", "seven.jpg")
    Path("seven.jpg").mkdir()  # a folder is no photo
    assert choose("seven.jpg") == (large, "MY_PHOTO names it")
    assert choose("even.jpg")[0] == Path("even.jpg")
    mine = put(kaggle / "datasets" / "me" / "mine", "notes.txt", "seven.jpg")
    assert choose("seven.jpg")[0] == mine
    assert choose("mnist/seven.jpg")[0] == large


# ---------------------------------------------------------------- uploaded


@pytest.fixture
def colab(monkeypatch):
    """Returns a function that says which files the button of Colab will bring."""

    def brings(*names):
        module = types.ModuleType("google.colab")
        module.files = types.SimpleNamespace(upload=lambda: dict.fromkeys(names, b"..."))
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", module)

    return brings


def test_an_upload(choose, colab):
    colab("seven (1).png")
    assert choose("upload") == (Path("seven (1).png"), "it was uploaded")


def test_an_upload_of_several(choose, colab):
    colab("nine.jpg", "a.HEIC", "eight.jpg")
    why = "it was uploaded; for another, set MY_PHOTO to 'nine.jpg' or 'a.HEIC'"
    assert choose("upload") == (Path("eight.jpg"), why)


def test_an_upload_of_nothing(choose, colab, kaggle):
    colab()
    put(kaggle / "mine", "seven.jpg")
    path, why = choose("upload")
    assert path == kaggle.parent / "results" / "sample.jpg" and why == "nothing was uploaded"
