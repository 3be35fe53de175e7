"""Notebook 10 and its page: a correction teaches, costs little, and can be taken back.

The page runs in a real browser; where there is none, its tests are skipped and say so.
"""

import base64
import re
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_drawing_page import SEVEN, WAYS, answer, draw, settle

import utils
from tools.notebook_code import definitions

hand = definitions("10_your_hand")
THREE = WAYS[3][0]


@pytest.fixture
def page(open_page):
    page = open_page(viewport={"width": 900, "height": 900})
    page.evaluate(WEIGHTS)
    return page


def layers_of(model):
    return [(fc.weight.detach(), fc.bias.detach()) for fc in (model.fc1, model.fc2)]


# --------------------------------------------------------------- in PyTorch


def test_gradient_is_autograd_s():
    torch.manual_seed(0)
    x, y = torch.randn(7, 576).relu(), torch.rand(7, 10).softmax(dim=1)
    model = utils.new_model(3)
    copies = [tuple(p.clone().requires_grad_() for p in layer) for layer in layers_of(model)]
    (weight1, bias1), (weight2, bias2) = copies
    hidden = F.linear(x, weight1, bias1).relu()
    F.cross_entropy(F.linear(hidden, weight2, bias2), y).backward()
    for ours, layer in zip(hand.gradient(x, y, layers_of(model)), copies):
        for slope, p in zip(ours, layer):
            torch.testing.assert_close(slope, p.grad, atol=1e-6, rtol=1e-5)


def test_features_are_what_the_last_layers_get(network, test):
    images = test.images[:1100]
    features = hand.features_of(images, network)
    with torch.no_grad():
        logits = network.fc2(network.fc1(features).relu())
    torch.testing.assert_close(logits, utils.predict(network, images), atol=1e-4, rtol=1e-4)


def test_drawings_are_like_mnist_s_pictures():
    """The longer side is 20 pixels, or 21 with parts; the centre of mass is at 14."""
    rng = np.random.default_rng(0)
    for make in (hand.one_of, hand.seven_of):
        for _ in range(20):
            picture = hand.draw(make(hand.new_writer(rng), rng)).astype(float)
            assert picture.shape == (28, 28) and picture.max() > 200
            sides = [np.ptp(np.flatnonzero(picture.max(axis=axis) > 25)) + 1 for axis in (0, 1)]
            assert max(sides) in (20, 21)
            for axis in (0, 1):
                centre = picture.sum(axis=axis) @ (np.arange(28) + 0.5) / picture.sum()
                assert abs(centre - 14) < 0.1


def test_replay_is_half_usual_half_doubtful_and_takes_turns(network, train):
    features = hand.features_of(train.images[:2000], network)
    places = hand.choose_old(features, train.labels[:2000], layers_of(network))
    assert train.labels[places].tolist() == [*range(10)] * 14
    for digit in range(10):
        all_, chosen = torch.nonzero(train.labels[:2000] == digit)[:, 0], places[digit::10]
        assert torch.equal(chosen[:7], all_[:7])
        others = [i for i in all_.tolist() if i not in chosen[7:].tolist()]
        doubtful = hand.classify(features[chosen[7:]], layers_of(network)).softmax(dim=1)
        usual = hand.classify(features[others], layers_of(network)).softmax(dim=1)
        assert len(all_) > 150 and doubtful.amax(dim=1).max() <= usual.amax(dim=1).min()


# ------------------------------------------------------- the page's learning


def set_up(page, samples, targets):
    """Give the page these samples, (N, 576), as ``own``."""
    page.evaluate(
        "([rows, targets]) => { window.own = rows.map((row, i) => "
        "({features: Float32Array.from(row), target: targets[i]})); }",
        [samples.tolist(), targets.tolist()],
    )


# In the page, weightsOf(network): the four arrays, in base64.
WEIGHTS = """() => {
    window.weightsOf = ({fc1, fc2}) => [fc1.weight, fc1.bias, fc2.weight, fc2.bias].map(
        values => btoa(Array.from(new Uint8Array(values.slice().buffer), byte =>
            String.fromCharCode(byte)).join("")));
}"""


def decode(texts, kind="<f4"):
    arrays = [np.frombuffer(base64.b64decode(text), kind) for text in texts]
    weight1, bias1, weight2, bias2 = (torch.tensor(array) for array in arrays)
    return [(weight1.view(64, 576), bias1), (weight2.view(10, 64), bias2)]


def differences(found, expected):
    pairs = [pair for one, other in zip(found, expected) for pair in zip(one, other)]
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.slow
def test_gradient_equals_pytorch(page, network, test):
    features = hand.features_of(test.images[:20], network)
    torch.manual_seed(1)
    targets = torch.cat([F.one_hot(test.labels[:10], 10), torch.rand(10, 10).softmax(dim=1)])
    set_up(page, features, targets)
    sums = page.evaluate(
        """() => {
            const like = layer => ({weight: new Float64Array(layer.weight.length),
                                    bias: new Float64Array(layer.bias.length)});
            const sums = {fc1: like(layers.fc1), fc2: like(layers.fc2)};
            for (const sample of own) addGradient(sample, layers, sums);
            return weightsOf(sums);
        }"""
    )
    found = decode(sums, "<f8")
    copies = [(fc.weight, fc.bias) for fc in (network.fc1, network.fc2)]
    loss = F.cross_entropy(hand.classify(features, copies), targets, reduction="sum")
    slopes = torch.autograd.grad(loss, [p for layer in copies for p in layer])
    expected = [tuple(slopes[:2]), tuple(slopes[2:])]
    assert max(slope.abs().max() for slope in slopes) > 1e-3
    assert differences(found, expected) < 1e-5


@pytest.mark.slow
def test_every_step_equals_the_notebook_s(page, network, train):
    """From the page's weights before each of the forty steps to its weights after it."""
    features = hand.features_of(train.images[1000:1003], network)
    own = features, torch.tensor([1, 7, 1])
    set_up(page, features, F.one_hot(own[1], 10))
    states = page.evaluate(
        """() => {
            const trained = {fc1: copyOf(layers.fc1), fc2: copyOf(layers.fc2)};
            const states = [weightsOf(trained)];
            for (const _ of lessons(own, replayed, trained)) states.push(weightsOf(trained));
            return states;
        }"""
    )
    states = [decode(state) for state in states]
    assert len(states) == 1 + hand.STEPS and differences(states[0], layers_of(network)) == 0
    replay = torch.tensor(page.evaluate("replayed.map(features => Array.from(features))"))
    sources = [(own[0], F.one_hot(own[1], 10).float(), hand.OWN),
               (replay, hand.classify(replay, states[0]).softmax(1), hand.REPLAYED)]  # fmt: skip
    for step, (before, after) in enumerate(zip(states, states[1:])):
        batch = [[hand.some_of(v, n, step) for v in (x, y)] for x, y, n in sources]
        slopes = hand.gradient(*map(torch.cat, zip(*batch)), before)
        rate = hand.RATE / replay.square().sum(dim=1).mean() * (1 - step / hand.STEPS)
        expected = [(w - rate * dw, b - rate * db) for (w, b), (dw, db) in zip(before, slopes)]
        assert differences(after, expected) < 1e-5, step
    assert differences(states[-1], states[0]) > 0.01
    assert differences(hand.teach(own, layers_of(network), replay), states[-1]) < 1e-3


# ------------------------------------------------------------ a correction


def correct(page, digit):
    """Press the button, and wait until it has been learnt; return the line that says so."""
    page.get_by_role("group").get_by_role("button", name=str(digit)).click()
    page.wait_for_function("learning === null")
    return page.inner_text("#change")


def clear(page):
    if page.is_enabled("#clear"):
        page.click("#clear")
        settle(page)


def ones_of(seed):
    """An endless supply of a writer's 1s, for a paper that is 100 wide and high."""
    rng = np.random.default_rng(seed)
    writer = hand.new_writer(rng)
    while True:
        (stroke,) = hand.one_of(writer, rng)
        yield [[tuple(p) for p in 50 + 68 * (stroke - stroke.mean(axis=0))]]


def reads(page, strokes):
    clear(page)
    draw(page, strokes)
    return answer(page).removeprefix("It reads ")


RIGHT_OF_THE_TEST_SET = """([pictures, labels]) => {
    window.known = window.known || pictures.map(pixels => convolve(pixels).features);
    return known.filter((features, i) => {
        const logits = classify(features, learnt);
        return logits.indexOf(Math.max(...logits)) === labels[i];
    }).length;
}"""


def test_the_stored_page_is_current(stored_page):
    """make refresh was run after the last change of the page."""
    empty = (utils.ROOT / "notebooks" / "10_draw.html").read_text(encoding="utf-8")
    pattern = re.escape(empty).replace('"@network@"', '"[\\w+/=]*"')
    pattern = pattern.replace('"@replay@"', r'\{"scale": [\d.]+, "features": "[\w+/=]*"\}')
    assert re.fullmatch(pattern, stored_page)


@pytest.mark.slow
def test_five_flagged_ones_are_enough(page, test):
    """Three hands: of ten others nine are right; of 1,000 test pictures at most three are lost."""
    thousand = [test.pixels[:1000].reshape(1000, 784).tolist(), test.labels[:1000].tolist()]
    before = page.evaluate(RIGHT_OF_THE_TEST_SET, thousand)
    assert before > 980
    for seed in (0, 10, 17):
        ones = ones_of(seed)
        first = [reads(page, next(ones)) for _ in range(5)]
        assert first.count("1") <= 2, "this hand is no trouble: choose another"
        for _ in range(5):
            reads(page, next(ones))
            correct(page, 1)
        assert [reads(page, next(ones)) for _ in range(10)].count("1") >= 9
        assert [reads(page, way) for way in WAYS[7]] == ["7"] * 3
        after = page.evaluate(RIGHT_OF_THE_TEST_SET, thousand)
        assert after >= before - 3, (before, after)
        page.click("#forget")


@pytest.mark.slow
def test_what_it_says(page):
    assert page.inner_text("#change") == ""
    draw(page, next(ones_of(10)))
    pattern = r"^7 → 1, loss \d+\.\d\d → 0\.\d\d, 1 sample\.$"
    assert re.match(pattern, correct(page, 1))
    assert answer(page) == "It reads 1"
    spoken = "/^It reads 1, with \\d+ per cent\\.$/.test(find('spoken').textContent)"
    page.wait_for_function(spoken)
    assert correct(page, 7).startswith("1 → 7, ")  # the same drawing: no second sample
    assert page.inner_text("#change").endswith(", 1 sample.")
    page.evaluate("strokes = [...strokes]; update()")  # the same again, as another drawing
    assert re.search(
        r"2 samples\. It is still not sure of [12]: does one have a wrong number\?$",
        correct(page, 1),
    )
    page.click("#forget")
    said = page.inner_text("#change")
    assert said == "Forgotten: this is the network as it was trained. 2 samples let go."
    assert answer(page) == "It reads 7"
    assert page.evaluate("samples.length === 0 && learnt === layers && start === layers")


@pytest.mark.slow
def test_a_drawing_counts_once_however_often_it_comes_back(page):
    draw(page, SEVEN)
    correct(page, 1)
    page.click("#clear")
    page.click("#undo")
    settle(page)
    assert ", 1 sample." in correct(page, 1)


@pytest.mark.slow
def test_nothing_to_correct(page):
    buttons = page.get_by_role("group").get_by_role("button")
    assert buttons.count() == 10
    for strokes in ([], [[(25, 20), (25, 80)], [(75, 20), (75, 80)]]):
        draw(page, strokes)
        assert all(buttons.nth(i).is_disabled() for i in range(10))
        page.focus("#paper")
        page.keyboard.press("3")
        assert page.inner_text("#change") == "Draw one digit first."
        assert page.evaluate("samples.length") == 0
    page.click("#undo")
    settle(page)
    assert all(buttons.nth(i).is_enabled() for i in range(10))


@pytest.mark.slow
def test_by_keyboard(page):
    draw(page, SEVEN)
    page.focus("#paper")
    page.keyboard.press("1")
    page.wait_for_function("learning === null && samples.length === 1")
    assert answer(page) == "It reads 1"
    for goal in ("undo", "clear"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == goal
    for digit in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == str(digit)
    page.keyboard.press("Enter")
    page.wait_for_function("learning === null")
    assert answer(page) == "It reads 7"
    assert page.evaluate("document.activeElement.textContent") == "7"  # the focus stays
    for goal in ("8", "9", "Forget", "Keep", "Load"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == goal


@pytest.mark.slow
def test_a_hundred_corrections(page):
    """All is well after 105: a hundred are kept, the network is finite, and forgets."""
    draw(page, THREE)
    page.evaluate(
        """async () => {
            for (let i = 0; i < 105; i++) {
                strokes = [...strokes];
                update();
                await correct(i % 10);
            }
        }"""
    )
    assert page.inner_text("#change").count("The oldest of 101 was let go.") == 1
    assert page.evaluate("samples.length") == 100
    weights = "[learnt.fc1, learnt.fc2].flatMap(({weight, bias}) => [...weight, ...bias])"
    assert page.evaluate(f"{weights}.every(Number.isFinite)")
    page.click("#forget")
    settle(page)
    assert answer(page) == "It reads 3"


@pytest.mark.slow
def test_it_can_be_drawn_on_while_it_learns(page):
    """Also corrected, and made to forget; only the last word counts."""
    draw(page, SEVEN)
    page.evaluate("void correct(1)")
    assert page.evaluate("learning !== null")
    draw(page, [[(30, 85), (70, 85)]])
    page.wait_for_function("learning === null")
    assert page.evaluate("strokes.length") == 2 and page.evaluate("samples.length") == 1
    state = page.evaluate("weightsOf(learnt)")
    page.evaluate("(async () => { const a = correct(2), b = correct(8); await a; await b; })()")
    assert page.evaluate("samples.map(sample => sample.label).join()") == "1,8"
    assert page.evaluate("learning === null") and page.evaluate("weightsOf(learnt)") != state
    page.evaluate("void correct(3); find('forget').click()")
    page.wait_for_timeout(300)
    assert page.evaluate("learnt === layers && learning === null && samples.length === 0")
    assert page.is_enabled("#keep")


@pytest.mark.slow
def test_the_page_of_another_network_cannot_learn(open_page, filled, tmp_path):
    """As notebook 08 fills it in: without a replay, there is nothing to correct with."""
    without, count = re.subn(r"replay = \{.*?\};", 'replay = "";', filled)
    assert count == 1
    (tmp_path / "draw.html").write_text(without, encoding="utf-8")
    page = open_page()
    draw(page, SEVEN)
    assert (
        answer(page) == "It reads 7" and page.is_hidden("#teach") and page.is_hidden("#how-teach")
    )
    page.focus("#paper")
    page.keyboard.press("1")
    settle(page)
    assert answer(page) == "It reads 7"


# ------------------------------------------------------------------- files


def keep(page, target):
    with page.expect_download() as download:
        page.click("#keep")
    assert download.value.suggested_filename == "my_hand.pth"
    download.value.save_as(target)
    return target


@pytest.mark.slow
def test_what_is_kept_is_a_checkpoint(page, open_page, trained, tmp_path):
    """utils.load_checkpoint reads it, zipfile finds it sound, and the page takes it back."""
    draw(page, SEVEN)
    correct(page, 1)
    path = keep(page, tmp_path / "my_hand.pth")
    assert page.inner_text("#change").startswith("Saving my_hand.pth. ")
    assert zipfile.ZipFile(path).testzip() is None
    model, (network, checkpoint) = utils.new_model(0), trained
    content = utils.load_checkpoint(path, model, utils.new_optimizer(model))
    assert (content["epoch"], content["test_loss"]) == (
        checkpoint["epoch"], checkpoint["test_loss"])  # fmt: skip
    assert differences(layers_of(model), decode(page.evaluate("weightsOf(learnt)"))) == 0
    assert torch.equal(model.conv3.weight, network.conv3.weight)
    assert not torch.equal(model.fc1.weight, network.fc1.weight)

    again = tmp_path / "pytorch.pth"  # as the notebook saves it, where PyTorch's own sum differs
    hand.save_alone(again, model.state_dict(), checkpoint)
    assert again.read_bytes() != path.read_bytes()

    other = open_page()
    other.set_input_files("#file", again)
    other.wait_for_function("start !== layers")
    other.click("#forget")
    draw(other, SEVEN)
    assert answer(other) == "It reads 7"
    other.set_input_files("#file", path)
    other.wait_for_function("start !== layers")
    assert answer(other) == "It reads 1"
    assert other.inner_text("#change").startswith("Loaded: my_hand.pth. ")
    assert keep(other, tmp_path / "again.pth").read_bytes() == path.read_bytes()
    correct(other, 2)
    other.click("#forget")  # back to the network as it was trained, not to the file
    assert answer(other) == "It reads 7"


def changed(content, place, value):
    return content[:place] + bytes([content[place] ^ value]) + content[place + 1 :]


@pytest.mark.slow
def test_files_that_are_none_of_ours(page, trained, tmp_path):
    model, checkpoint = trained
    mine, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    hand.save_alone(mine, model.state_dict(), checkpoint)
    hand.save_alone(other, utils.new_model(5).state_dict(), checkpoint)
    content = mine.read_bytes()
    with zipfile.ZipFile(mine) as archive:
        last = max(info.header_offset for info in archive.infolist() if info.file_size > 1000)
    torch.save({"x": torch.zeros(60_874)}, tmp_path / "x.pth")
    nothing, different = "no file that Keep has saved here", "belongs to another network"
    cases = {
        "empty.pth": (b"", nothing), "text.pth": (b"no weights", nothing),
        "short.pth": (content[:-1], nothing), "long.pth": (content + b"\0", nothing),
        "zeros.pth": (bytes(len(content)), nothing), "<b>x.pth": (b"", nothing),
        "x.pth": ((tmp_path / "x.pth").read_bytes(), nothing),
        "other.pth": (other.read_bytes(), different),
        "front.pth": (changed(content, 3000, 1), different),
        "weight.pth": (changed(content, last + 200, 1), "it is damaged"),
        "end.pth": (changed(content, len(content) - 300, 1), "it is damaged"),
    }  # fmt: skip
    draw(page, SEVEN)
    correct(page, 1)
    state = page.evaluate("weightsOf(learnt)")
    for name, (body, why) in cases.items():
        page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": body})
        page.wait_for_function("find('change').textContent.includes('was not loaded')")
        said = page.inner_text("#change")
        assert said.startswith(f"{name} was not loaded: ") and why in said, said
        assert page.evaluate("weightsOf(learnt)") == state
        assert page.evaluate("samples.length") == 1
        page.evaluate("find('change').textContent = ''")
    page.set_input_files("#file", mine)
    page.wait_for_function("samples.length === 0")
    assert answer(page) == "It reads 7"
