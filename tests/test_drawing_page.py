"""The page to draw on, in a real browser: the numbers of PyTorch and of notebooks 06 and 10.

Uses the Chromium of the system; where there is none, these tests are skipped and say so.
"""

import base64
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import utils

pytestmark = pytest.mark.slow


@pytest.fixture
def page(open_page):
    return open_page(viewport={"width": 900, "height": 900})


# ------------------------------------------------------------- made-up hands


def arc(x, y, wide, high, start, end):
    """Points on an ellipse, angles in degrees, 0 to the right and 90 down."""
    angles = [math.radians(start + (end - start) * i / 15) for i in range(16)]
    return [(x + wide * math.cos(a), y + high * math.sin(a)) for a in angles]


# Three ways to write each digit, in strokes of points; the paper is 100 wide and 100 high.
WAYS = {
    0: [
        [arc(50, 50, 24, 36, -90, 270)],
        [arc(50, 50, 19, 37, -60, 300)],
        [arc(50, 50, 30, 34, -100, -470)],
    ],
    1: [
        [[(50, 14), (50, 86)]],
        [[(38, 30), (52, 15), (52, 86)]],
        [[(60, 14), (44, 86)]],
    ],
    2: [
        [arc(50, 34, 22, 20, -170, 40) + [(29, 84), (74, 84)]],
        [arc(48, 32, 21, 18, -160, 50) + [(42, 72), (29, 82), (37, 77), (54, 84), (76, 80)]],
        [[(30, 26), *arc(50, 32, 20, 18, -140, 60), (28, 84), (50, 79), (74, 84)]],
    ],
    3: [
        [arc(47, 32, 21, 18, -150, 90) + arc(47, 67, 24, 18, -90, 150)],
        [[(29, 16), (69, 16), (47, 44), *arc(45, 64, 26, 21, -80, 150)]],
        [arc(45, 32, 19, 17, -140, 80) + [(45, 48)] + arc(45, 68, 24, 18, -80, 140)],
    ],
    4: [
        [[(56, 14), (26, 60), (76, 60)], [(60, 38), (60, 87)]],
        [[(32, 15), (31, 50), (69, 50)], [(68, 15), (66, 86)]],
        [[(34, 18), (29, 52), (68, 48)], [(69, 16), (63, 86)]],
    ],
    5: [
        [[(69, 16), (36, 16), (33, 45), *arc(48, 64, 22, 22, -110, 140)]],
        [[(36, 16), (34, 44), *arc(47, 63, 23, 22, -100, 145)], [(36, 16), (71, 16)]],
        [[(68, 18), (39, 16), (32, 47), (50, 42), *arc(48, 64, 20, 21, -70, 150)]],
    ],
    6: [
        [[(63, 15), (42, 34), *arc(49, 65, 20, 20, -150, 215)]],
        [[(56, 14), (37, 42), *arc(50, 66, 18, 19, 170, -190)]],
        [arc(62, 62, 30, 48, -100, -180) + arc(50, 68, 18, 17, 170, -180)],
    ],
    7: [
        [[(26, 16), (72, 16), (44, 86)]],
        [[(28, 18), (71, 16), (48, 85)], [(39, 50), (67, 50)]],
        [[(26, 20), (50, 16), (74, 18), (55, 50), (45, 87)]],
    ],
    8: [
        [arc(50, 32, 18, 18, 90, 450) + arc(50, 68, 21, 18, -90, 270)],
        [arc(50, 32, 17, 18, -60, -270) + arc(50, 68, 20, 18, -90, 270) + [(64, 34), (58, 18)]],
        [[(64, 21), *arc(50, 32, 16, 16, -50, -250), *arc(50, 67, 19, 18, -60, 240), (64, 21)]],
    ],
    9: [
        [arc(50, 34, 19, 19, -10, -370) + [(69, 34), (66, 86)]],
        [arc(48, 34, 20, 18, 0, -360) + [(68, 36), (52, 86)]],
        [arc(50, 36, 21, 21, -30, -350) + [(71, 34), (69, 58)] + arc(50, 62, 19, 22, 0, 120)],
    ],
}
SEVEN = WAYS[7][0]


def on_screen(page, points):
    frame = page.locator("#paper").bounding_box()
    return [
        (frame["x"] + x / 100 * frame["width"], frame["y"] + y / 100 * frame["height"])
        for x, y in points
    ]


def settle(page):
    """Wait until the page has answered to what has been drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def draw(page, strokes):
    for stroke in strokes:
        first, *others = on_screen(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place, steps=3)
        page.mouse.up()
    settle(page)


def answer(page) -> str:
    return page.inner_text("#answer")


# ------------------------------------------------------------------- numbers


def test_logits_equal_pytorch(page, network):
    test = utils.load_mnist("test")
    with torch.no_grad():
        expected = network(test.images[:1000]).numpy()
    found = page.evaluate(
        "all => all.map(pixels => [...classify(convolve(pixels).features, layers)])",
        test.pixels[:1000].reshape(1000, 784).tolist(),
    )
    assert np.abs(np.array(found) - expected).max() < 1e-3


def test_feature_maps_equal_pytorch(page, network):
    test = utils.load_mnist("test")
    with torch.no_grad():
        expected = network.conv1(test.images[:20]).relu()
        expected = torch.nn.functional.max_pool2d(expected, 2).flatten(1).numpy()
    found = page.evaluate(
        "all => all.map(pixels => Array.from(convolve(pixels).maps1))",
        test.pixels[:20].reshape(20, 784).tolist(),
    )
    assert np.abs(np.array(found) - expected).max() < 1e-4


def test_border_is_cut_off_for_a_network_that_was_trained_so(open_page, filled, network, tmp_path):
    """As notebook 08 fills in the page."""
    assert filled.count("const CUT = 0;") == 1
    cut = filled.replace("const CUT = 0;", "const CUT = 2;")
    (tmp_path / "draw.html").write_text(cut, encoding="utf-8")
    page = open_page(viewport={"width": 900, "height": 900})
    draw(page, SEVEN)
    seen = np.array(page.evaluate("Array.from(readPaper())")).reshape(1, 1, 28, 28)
    pixels = (torch.from_numpy(seen)[..., 2:26, 2:26] / 255 - utils.MEAN) / utils.STD
    with torch.no_grad():
        expected = 100 * network(pixels.float()).softmax(1)[0].numpy()
    found = page.evaluate(
        "[...find('chances').children].map(line => parseFloat(line.lastChild.textContent))"
    )
    assert np.abs(np.array(found) - expected).max() < 0.06 and expected.max() < 99.99
    assert page.evaluate("[find('maps').width, find('maps').height]") == [8 * 13 + 1, 2 * 13 + 1]


@pytest.mark.parametrize("digit", WAYS)
def test_every_hand_is_read(page, network, handwriting, digit):
    """Drawn with the mouse; prepared to a grey level as the notebook does; read as it reads.

    The quickly trained network may take one of the three ways for another digit. The page may not.
    """
    answers = []
    for strokes in WAYS[digit]:
        draw(page, strokes)
        seen = np.array(page.evaluate("Array.from(readPaper())")).reshape(28, 28)
        picture = page.evaluate("paper.toDataURL()").split(",")[1]
        expected = handwriting["prepare"](Image.open(io.BytesIO(base64.b64decode(picture))))
        assert np.abs(seen - expected.astype(int)).max() <= 1

        pixels = (torch.from_numpy(seen)[None, None] / 255 - utils.MEAN) / utils.STD
        with torch.no_grad():
            chances = network(pixels.float())[0].softmax(dim=0).tolist()
        shown = [
            float(text.rstrip(" %")) for text in page.locator("li > :last-child").all_inner_texts()
        ]
        assert shown == pytest.approx([100 * chance for chance in chances], abs=0.11)
        assert answer(page) == f"It reads {int(np.argmax(chances))}"
        answers.append(np.argmax(chances))
        page.click("#clear")
        settle(page)
    assert answers.count(digit) >= 2, answers


def test_dirt_goes_as_in_the_notebook(page, handwriting):
    """A dot of the pen is less than a twentieth of a long stroke, and dropped by both."""
    draw(page, [[(50, 15), (50, 85), (75, 85), (75, 15)], [(10, 50), (10, 50)]])
    seen = np.array(page.evaluate("Array.from(readPaper())")).reshape(28, 28)
    picture = page.evaluate("paper.toDataURL()").split(",")[1]
    expected = handwriting["prepare"](Image.open(io.BytesIO(base64.b64decode(picture))))
    assert np.abs(seen - expected.astype(int)).max() <= 1
    assert np.flatnonzero(seen.any(axis=0)).size < 16  # with the dot it would be 20 wide


# Pictures of 280 × 280: the pen's width in pixels, and strokes of points as above. None is quite
# symmetric: the centre of such a one lies between two pixels, and rounding errors choose.
BOX = [(15, 15), (83, 16), (84, 85), (14, 84), (15, 15), (83, 16)]
INNER_BOX = [(0.8 * x + 10, 0.8 * y + 10) for x, y in BOX]
SMALL_SEVEN = [(45, 35), (56, 35), (48, 65)]
PICTURES = {
    "thin": (4, WAYS[3][0]),
    "thick": (30, WAYS[7][0]),
    "small": (4, [[(45, 40), (55, 40), (49, 60)]]),
    "in a frame": (4, [BOX, SMALL_SEVEN]),
    "in two frames": (4, [BOX, INNER_BOX, SMALL_SEVEN]),
    "a frame around little": (4, [BOX, [(50, 48), (49, 56)]]),
    "5 with a bar apart": (4, [WAYS[5][1][0], [(40, 11), (71, 11)]]),
    "4 in two strokes": (4, WAYS[4][1]),
    "broken 8": (4, [arc(50, 68, 21, 18, -90, 270) + arc(50, 32, 18, 18, 90, 300),
                     arc(50, 32, 18, 18, -40, 60)]),
    "broken 0": (6, [arc(50, 50, 24, 36, -84, 85), arc(50, 50, 24, 36, 95, 260)]),
    "dot far away": (8, [[(30, 15), (30, 85), (45, 85)], [(88, 30), (92, 32), (88, 34), (92, 36)]]),
    "dot near": (8, [[(30, 15), (30, 85), (45, 85)], [(37, 48), (41, 50), (37, 52), (41, 54)]]),
    "specks": (8, [WAYS[2][0][0], [(12, 88), (12, 88)], [(88, 12), (88, 12)]]),
}  # fmt: skip
SEVERAL = {
    "side by side": (2, 8, [[(30, 20), (30, 80)], [(70, 20), (70, 80)]]),
    "one above the other": (2, 6, [[(40, 12), (60, 12), (45, 40)], [(40, 60), (60, 60), (45, 90)]]),
    "two halves of an 8": (2, 4, [arc(50, 30, 18, 16, 90, 450), arc(50, 70, 21, 19, -90, 270)]),
    "three": (3, 6, [[(20, 30), (20, 70)], [(45, 32), (45, 74)], [(75, 28), (75, 66)]]),
    "two and two": (4, 8, [[(x, y), (x, y + 28)] for x in (20, 75) for y in (14, 58)]),
    "of two heights": (2, 8, [[(30, 20), (30, 80)], [(60, 45), (60, 82)]]),
}


def sketch(pen, strokes):
    """A drawing on white paper, made without the page: its pen may have any width."""
    large = Image.new("L", (1120, 1120), 255)
    pencil = ImageDraw.Draw(large)
    for stroke in strokes:
        places = [(11.2 * x, 11.2 * y) for x, y in stroke]
        pencil.line(places, fill=0, width=4 * pen)
        for x, y in places:
            pencil.ellipse((x - 2 * pen, y - 2 * pen, x + 2 * pen, y + 2 * pen), fill=0)
    return large.resize((280, 280), Image.Resampling.BOX)


def prepare_there(page, picture):
    """What the page's `prepare` makes of a picture: a list, or how many digits it finds."""
    return page.evaluate(
        """text => {
            const found = prepare(Uint8Array.from(atob(text), c => c.charCodeAt(0)), 280);
            return typeof found === "number" ? found : Array.from(found);
        }""",
        base64.b64encode(picture.tobytes()).decode(),
    )


def test_pictures_are_prepared_as_in_the_notebook(page, handwriting):
    for name, drawing in PICTURES.items():
        picture = sketch(*drawing)
        expected = handwriting["prepare"](picture).astype(int)
        seen = prepare_there(page, picture)
        assert np.size(seen) == 784, f"{name}: the page sees {seen}"
        assert np.abs(np.reshape(seen, (28, 28)) - expected).max() <= 1, name


def test_several_digits_are_refused_as_in_the_notebook(page, handwriting):
    for name, (count, *drawing) in SEVERAL.items():
        picture = sketch(*drawing)
        with pytest.raises(handwriting["PhotoError"], match=f"expected one digit, found {count}"):
            handwriting["prepare"](picture)
        assert prepare_there(page, picture) == count, name


def test_strokes_from_edge_to_edge_are_kept_by_both(page, handwriting):
    """The pen stops where the notebook would take a stroke for a ruled line."""
    for strokes in (
        [[(1, 1), (99, 1), (40, 99)]],
        [[(30, 1), (1, 60), (99, 60)], [(99, 1), (99, 99)]],
        [[(1, 1), (99, 1), (99, 99), (1, 60)]],
    ):
        draw(page, strokes)
        seen = np.array(page.evaluate("Array.from(readPaper())")).reshape(28, 28)
        picture = page.evaluate("paper.toDataURL()").split(",")[1]
        expected = handwriting["prepare"](Image.open(io.BytesIO(base64.b64decode(picture))))
        assert np.abs(seen - expected.astype(int)).max() <= 1, strokes
        page.click("#clear")
        settle(page)


def test_two_digits_get_no_answer(page):
    draw(page, [[(25, 20), (25, 80)], [(75, 20), (75, 80)]])
    assert answer(page) == "It sees 2 digits: draw one"
    assert page.locator("li > :last-child").all_inner_texts() == ["–"] * 10
    assert page.locator("li.best").count() == 0
    for canvas in ("seen", "maps"):
        pixels = f"find('{canvas}').getContext('2d').getImageData(0, 0, 28, 28).data"
        assert page.evaluate(f"{pixels}.every(v => v === 0)")
    told = "find('spoken').textContent"
    page.wait_for_function(f"{told} === 'It sees 2 digits: draw one.'")
    page.click("#undo")
    settle(page)
    assert answer(page) == "It reads 1"


def test_file_is_small_and_complete(filled):
    assert len(filled.encode()) < 500_000
    for outside in ("http:", "https:", "src=", "import ", "@import", "url("):
        assert outside not in filled


# --------------------------------------------------------------------- hands


def test_undo_and_clear(page):
    assert page.is_disabled("#undo") and page.is_disabled("#clear")
    assert answer(page) == "Draw one digit, 0 to 9"
    draw(page, SEVEN)
    assert answer(page) == "It reads 7"
    draw(page, [[(30, 85), (70, 85)]])
    with_a_bar = page.evaluate("paper.toDataURL()")
    page.click("#undo")
    settle(page)
    assert page.evaluate("paper.toDataURL()") != with_a_bar and answer(page) == "It reads 7"
    page.click("#clear")
    settle(page)
    assert answer(page) == "Draw one digit, 0 to 9"
    assert page.locator("li > :last-child").all_inner_texts() == ["–"] * 10
    page.keyboard.press("Control+z")  # clearing can be taken back
    settle(page)
    assert answer(page) == "It reads 7"
    page.keyboard.press("Delete")
    settle(page)
    assert answer(page) == "Draw one digit, 0 to 9"
    for _ in range(9):  # more often than there is anything to take back
        page.keyboard.press("Control+z")
    settle(page)
    assert page.is_disabled("#undo") and page.is_disabled("#clear")


def test_a_stroke_stays_on_the_paper(page):
    """The pen leaves the paper, comes back, and is lifted outside."""
    draw(page, [[(50, 20), (50, 150), (55, 80), (-40, 80)]])
    assert answer(page).startswith("It reads")
    ink = "pen.getImageData(x, y, 1, 1).data[0] === 0"
    assert page.evaluate(f"((x, y) => {ink})(140, 262)")  # down to the margin
    before = page.evaluate("paper.toDataURL()")
    page.mouse.move(*on_screen(page, [(20, 20)])[0])  # no button is pressed any more
    settle(page)
    assert page.evaluate("paper.toDataURL()") == before


def test_other_buttons_do_not_draw(page):
    first, last = on_screen(page, [(50, 20), (50, 80)])
    page.mouse.move(*first)
    page.mouse.down(button="right")
    page.mouse.move(*last)
    page.mouse.up(button="right")
    settle(page)
    assert answer(page) == "Draw one digit, 0 to 9"


def test_touch(open_page):
    """A finger on a phone draws, and does not scroll; a second finger does nothing."""
    page = open_page(
        viewport={"width": 360, "height": 500}, has_touch=True, is_mobile=True,
        device_scale_factor=3,
    )  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    fingers = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    first, *others = on_screen(page, SEVEN[0])
    touch("touchStart", first)
    for start, end in zip([first, *others], others):
        for i in range(1, 9):
            share = i / 8
            now = tuple(a + share * (b - a) for a, b in zip(start, end))
            touch("touchMove", now)
    second = on_screen(page, [(20, 80)])[0]
    touch("touchStart", now, second)
    touch("touchMove", now, on_screen(page, [(20, 20)])[0])
    touch("touchEnd")
    settle(page)
    assert answer(page) == "It reads 7"
    assert page.evaluate("window.scrollY") == 0
    assert page.evaluate("strokes.length") == 1


def test_keyboard_and_announcements(page):
    """Without a pointer: a 1 drawn with the arrow keys, and what a screen reader is told."""
    spoken = page.locator("#spoken")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "paper"
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert spoken.inner_text() == "Pen down"
    for _ in range(24):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    settle(page)
    assert answer(page) == "It reads 1"
    told = "find('spoken').textContent"
    page.wait_for_function(f"/^It reads 1, with \\d+ per cent\\.$/.test({told})")
    page.keyboard.press("ArrowRight")  # with the pen up nothing is drawn
    assert page.evaluate("strokes.length") == 1
    page.keyboard.press("Backspace")
    page.wait_for_function(f"{told} === 'The paper is empty.'")
    assert page.evaluate("window.scrollY") == 0
    page.keyboard.press("Tab")  # undo is possible, so its button comes next
    assert page.evaluate("document.activeElement.id") == "undo"
    page.keyboard.press("Enter")
    settle(page)
    assert answer(page) == "It reads 1"


def test_everything_has_a_name(page):
    """What a screen reader reads out: every control and picture has a role and words."""
    tree = page.locator("body").aria_snapshot()
    for line in ("heading \"Draw a digit\"", "application \"Paper to draw on\"", "button \"Undo\"",
                 "button \"Clear\"", "list \"Probabilities\"", "group \"Wrong? It was a …\"",
                 "button \"Forget\"", "button \"Keep\"", "button \"Load\"", "img \"The drawing",
                 "img \"16 feature maps", "status"):  # fmt: skip
        assert line in tree, tree


def test_inside_a_notebook(chromium, filled):
    """In a frame without rights of its own, as the notebook shows it, it works as well."""
    page = chromium.new_page()
    page.set_content(
        '<iframe sandbox="allow-scripts allow-downloads"'
        ' style="width: 600px; height: 700px"></iframe>'
    )
    page.eval_on_selector("iframe", "(frame, text) => { frame.srcdoc = text; }", filled)
    inner = page.frame_locator("iframe")
    inner.locator("li").nth(9).wait_for()
    frame = inner.locator("#paper").bounding_box()
    places = [
        (frame["x"] + x / 100 * frame["width"], frame["y"] + y / 100 * frame["height"])
        for x, y in SEVEN[0]
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()
    inner.get_by_text("It reads 7").first.wait_for()
    page.close()


def test_fits_into_the_frame_of_the_notebook(chromium, filled):
    """So that a finger that scrolls the notebook does not scroll the page inside it instead."""
    notebook = (utils.ROOT / "notebooks" / "10_your_hand.ipynb").read_text(encoding="utf-8")
    height = int(re.search(r"height: (\d+)px; border: 0", notebook)[1])
    page = chromium.new_page()
    page.set_content(
        '<body style="margin: 0"><iframe sandbox="allow-scripts allow-downloads"'
        f' style="width: 100%; height: {height}px; border: 0"></iframe>'
    )
    page.eval_on_selector("iframe", "(frame, text) => { frame.srcdoc = text; }", filled)
    page.frame_locator("iframe").locator("li").nth(9).wait_for()
    inner = page.frames[1]
    two = "strokes = [[{x: 70, y: 50}, {x: 70, y: 230}], [{x: 210, y: 50}, {x: 210, y: 230}]]"
    for strokes in ("strokes = []", two):
        inner.evaluate(f"{strokes}; update()")
        for width in (320, 360, 412, 430, 560, 561, 600, 760, 1000):
            page.set_viewport_size({"width": width, "height": 800})
            root = "document.documentElement"
            inner.wait_for_function(f"{root}.clientWidth === {width}")  # no scroll bar either
            assert inner.evaluate(f"{root}.scrollWidth") == width
            assert inner.evaluate(f"{root}.scrollHeight") == height, width
            end = inner.evaluate("document.body.getBoundingClientRect().bottom")
            assert end <= height - 12, width  # other systems have other fonts
            paper = inner.locator("#paper").bounding_box()
            assert paper["width"] == pytest.approx(paper["height"]) and paper["width"] > 260
    page.close()
