"""The page in a real Chromium: drawn on with mouse and finger, read as a visitor would."""

import base64
import itertools
import shutil
import threading

import numpy as np
import pytest
from pages import DIGITS, SEVEN, picture, serving

from mnist_jax import InputError, TrainConfig, build_state, load_predictor
from mnist_jax.demo.explaining import Example
from mnist_jax.demo.server import create_app
from mnist_jax.pictures.predictor import Prediction, Predictor

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome"),
]

# One line per digit, without lifting the pen; the canvas is 100 x 100.
SHAPES = {
    0: [(50, 18), (36, 24), (30, 40), (30, 60), (36, 76), (50, 82), (64, 76), (70, 60), (70, 40), (64, 24), (50, 18)],
    1: [(52, 17), (51, 50), (49, 83)],
    2: [(32, 34), (37, 22), (50, 17), (63, 22), (66, 35), (60, 50), (46, 65), (32, 81), (50, 81), (70, 80)],
    3: [(34, 24), (48, 17), (62, 22), (64, 36), (49, 47), (65, 56), (68, 70), (54, 82), (34, 76)],
    4: [(37, 18), (34, 35), (33, 53), (50, 53), (68, 52), (66, 20), (66, 50), (65, 83)],
    5: [(66, 19), (52, 19), (38, 20), (35, 47), (50, 43), (64, 50), (67, 66), (57, 79), (42, 81), (32, 75)],
    6: [(62, 17), (46, 30), (36, 50), (34, 68), (44, 81), (58, 80), (66, 68), (60, 57), (47, 56), (36, 65)],
    7: [(31, 21), (50, 20), (69, 20), (60, 42), (50, 62), (43, 82)],
    8: [(63, 28), (50, 18), (37, 27), (41, 41), (58, 54), (65, 70), (50, 82), (35, 70), (43, 54), (60, 41), (63, 28)],
    9: [(64, 34), (52, 20), (38, 27), (36, 42), (48, 51), (62, 44), (64, 34), (64, 55), (61, 83)],
}
STROKE, SECOND_STROKE = [(30, 25), (65, 80)], [(65, 20), (30, 75)]


@pytest.fixture(scope="module")
def chromium():
    with api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        api.expect.set_options(timeout=30_000)  # milliseconds, for busy machines
        with playwright.chromium.launch(executable_path=CHROMIUM, args=args) as browser:
            yield browser


@pytest.fixture
def open_page(chromium):
    """Opens the page at an address; checks in the end that it complained of nothing and asked nobody else."""
    contexts, requests, complaints = [], [], []

    def watch(message):
        # Chromium reports each status of 400 and above; those are expected where a test asks for them.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def open_(address, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", watch)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append((address, request.url)))
        page.goto(f"http://{address}/")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    allowed = ("/", "/api/predict", "/api/explain")
    assert [url for address, url in requests if url not in [f"http://{address}{path}" for path in allowed]] == []


@pytest.fixture(scope="module")
def predictor():
    """That of an untrained network: its answers differ from drawing to drawing."""
    return Predictor(build_state(TrainConfig(hidden_sizes=(32,), optimizer="sgd")), DIGITS)


@pytest.fixture(scope="module")
def address(predictor):
    with serving(create_app(predictor.read, DIGITS, title="an untrained network")) as address:
        yield address


def on_screen(page, shape):
    """The points of a shape in the window."""
    box = page.locator("#canvas").bounding_box()
    return [(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 100) for x, y in shape]


def draw(page, shape):
    """Draws with the mouse, and waits for the last answer."""
    first, *rest = on_screen(page, shape)
    page.mouse.move(*first)
    page.mouse.down()
    for point in rest:
        page.mouse.move(*point, steps=3)
    page.mouse.up()
    wait(page)


def wait(page):
    api.expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")


def digit(page):
    return page.locator("#digit").inner_text()


def seen(page):
    """The image that the page shows, ``[28, 28]``."""
    code = "() => [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]"
    return np.array(page.evaluate(code)).reshape(28, 28, 4)[..., 0]


def bar_widths(page):
    code = "() => [...document.querySelectorAll('.fill')].map((fill) => parseFloat(fill.style.width))"
    return np.array(page.evaluate(code))


def is_ink(page):
    code = "() => document.getElementById('canvas').getContext('2d').getImageData(0, 0, 2000, 2000).data.some(Boolean)"
    page.evaluate("() => new Promise(requestAnimationFrame)")  # it is painted with the next frame
    return page.evaluate(code)


def test_drawn_digits_are_recognised_by_the_network_in_the_box(open_page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without runs
    found = {}
    with serving(create_app(load_predictor().read, DIGITS)) as address:
        page = open_page(address)
        for label, shape in SHAPES.items():
            draw(page, shape)
            found[label] = digit(page)
            page.get_by_role("button", name="Clear").click()
    assert sum(str(label) == answer for label, answer in found.items()) == 10, found


def test_the_page_shows_what_the_server_answers(address, open_page):
    page = open_page(address)
    responses = []
    page.on("response", lambda response: responses.append(response))
    draw(page, SHAPES[3])
    answer = responses[-1].json()
    label, probabilities = answer["label"], answer["probabilities"]
    texts = page.locator("#bars li").all_inner_texts()
    assert [text.split() for text in texts] == [
        [name, f"{100 * probability:.1f}", "%"] for name, probability in zip(DIGITS, probabilities, strict=True)
    ]
    np.testing.assert_allclose(bar_widths(page), 100 * np.array(probabilities), rtol=1e-3, atol=1e-3)
    assert page.locator("#bars .first .name").inner_text() == str(label) == digit(page)
    doubt = f"not sure: {answer['doubt']}"
    assert page.locator("#probability").inner_text() == doubt
    assert page.locator("[aria-live=polite]").text_content() == f"{label}, {doubt}"
    np.testing.assert_array_equal(seen(page), answer["image"])
    assert "an untrained network" in page.locator("header").inner_text()


@pytest.mark.parametrize("doubt", [None, "unlike the images it was trained on"])
def test_the_page_says_whether_the_network_is_sure(doubt, open_page):
    prediction = Prediction(3, "3", np.eye(10, dtype=np.float32)[3], np.zeros((28, 28, 1), np.uint8), doubt)
    with serving(create_app(lambda content: [prediction], DIGITS)) as address:
        page = open_page(address)
        draw(page, SHAPES[3])
        expected = f"not sure: {doubt}" if doubt else "100.0\u202f% sure"
        assert page.locator("#probability").inner_text() == expected
        assert page.locator("[aria-live=polite]").text_content() == f"3, {expected.removesuffix(' sure')}"


def test_the_answer_follows_the_pen(address, open_page):
    page = open_page(address)
    assert digit(page) == "?"
    points = on_screen(page, SHAPES[6])
    page.mouse.move(*points[0])
    page.mouse.down()
    wait(page)
    dot = seen(page)
    for point in points[1:]:
        page.mouse.move(*point)
    wait(page)
    assert digit(page) != "?"
    assert (seen(page) != dot).any()
    assert page.locator("[aria-live=polite]").text_content() == ""  # said when the pen is lifted
    page.mouse.up()
    wait(page)
    assert page.locator("[aria-live=polite]").text_content() != ""


class Recorder:
    """A predictor that can be held, and notes how many ask at the same time."""

    def __init__(self):
        self.contents, self.at_once, self.most_at_once = [], 0, 0
        self.asked, self.go_on = threading.Event(), threading.Event()

    def __call__(self, content):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.contents.append(content)
        self.asked.set()
        self.go_on.wait(60)
        self.at_once -= 1
        return [Prediction(4, "4", np.full(10, 0.1, np.float32), np.zeros((28, 28, 1), np.uint8))]


def test_one_request_at_a_time_and_the_last_is_about_the_whole_drawing(open_page, predictor):
    recorder = Recorder()
    recorder.go_on.set()
    with serving(create_app(recorder, DIGITS)) as address:
        page = open_page(address)
        draw(page, SHAPES[8])
        last = recorder.contents[-1]
        assert recorder.most_at_once == 1
        page.mouse.move(*on_screen(page, [(5, 5)])[0])  # without pressing: draws nothing
        whole = page.evaluate("() => toBlob().then((blob) => blob.bytes()).then((bytes) => [...bytes])")
    np.testing.assert_array_equal(predictor(last).image, predictor(bytes(whole)).image)


@pytest.mark.parametrize("button", ["Undo", "Clear"])
def test_an_answer_about_what_is_gone_is_dropped(open_page, button):
    recorder = Recorder()
    with serving(create_app(recorder, DIGITS)) as address:
        page = open_page(address)
        page.mouse.click(*on_screen(page, [(50, 50)])[0])
        assert recorder.asked.wait(60)
        page.get_by_role("button", name=button).click()
        recorder.go_on.set()
        wait(page)
        assert digit(page) == "?"
        assert page.locator("#bars .value").all_inner_texts() == [""] * 10


def test_undo_and_clear_by_button_and_key(address, open_page):
    page = open_page(address)
    undo, clear = (page.get_by_role("button", name=name) for name in ("Undo", "Clear"))
    assert undo.is_disabled()
    assert clear.is_disabled()
    for undo_it, clear_it in (
        (undo.click, clear.click),
        (lambda: page.keyboard.press("Control+z"), lambda: page.keyboard.press("Escape")),
        (lambda: page.keyboard.press("Meta+z"), lambda: page.keyboard.press("Delete")),
    ):
        draw(page, STROKE)
        assert undo.is_enabled()
        assert clear.is_enabled()
        one, image = digit(page), seen(page)
        draw(page, SECOND_STROKE)
        assert (seen(page) != image).any()
        undo_it()
        wait(page)
        assert digit(page) == one
        np.testing.assert_array_equal(seen(page), image)
        draw(page, SECOND_STROKE)
        assert is_ink(page)
        clear_it()
        assert digit(page) == "?"
        assert not is_ink(page)
        assert undo.is_disabled()
        assert clear.is_disabled()


def test_the_keyboard_reaches_everything_visibly(address, open_page):
    page = open_page(address)
    focused = "() => document.activeElement.id"
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    draw(page, STROKE)
    page.get_by_role("heading").click()  # where Tab starts from
    for name in ("canvas", "undo", "clear", "open"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        assert page.evaluate(outline) == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # Clear, which then has nothing to do
    assert digit(page) == "?"
    assert page.evaluate(focused) == "canvas"
    for name in ("canvas", "undo", "clear", "open", "seen"):
        assert page.locator(f"#{name}").evaluate("(it) => Boolean(it.ariaLabel || it.textContent)")


def test_a_finger_draws_and_does_not_scroll(address, open_page):
    page = open_page(address, viewport={"width": 360, "height": 500}, has_touch=True, is_mobile=True)
    touch = page.context.new_cdp_session(page)
    first, *rest = on_screen(page, SHAPES[7])

    def send(kind, *points):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    send("touchStart", first)
    for point in rest:
        send("touchMove", point)
    send("touchEnd")
    wait(page)
    assert digit(page) in DIGITS
    assert seen(page)[:10].any()
    assert page.evaluate("() => scrollY") == 0
    page.locator("#clear").tap()
    api.expect(page.locator("#digit")).to_have_text("?")
    page.touchscreen.tap(*on_screen(page, [(50, 50)])[0])
    wait(page)
    assert digit(page) in DIGITS


def test_a_picture_is_opened_dropped_and_pasted(address, open_page, predictor):
    page = open_page(address)
    content = picture(SEVEN)
    wanted = predictor(content).image[..., 0]
    code = """([kind, base64]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
        data.items.add(new File([bytes], 'seven.png', {type: 'image/png'}));
        const event = kind === 'drop' ? new DragEvent(kind, {dataTransfer: data, bubbles: true})
                                      : new ClipboardEvent(kind, {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""

    def open_file():
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Open a picture").click()
        chooser.value.set_files({"name": "seven.png", "mimeType": "image/png", "buffer": content})

    for way in (
        open_file,
        lambda: page.evaluate(code, ["drop", base64.b64encode(content).decode()]),
        lambda: page.evaluate(code, ["paste", base64.b64encode(content).decode()]),
    ):
        way()
        api.expect(page.locator("#digit")).not_to_have_text("?")
        np.testing.assert_array_equal(seen(page), wanted)
        assert is_ink(page)
        page.get_by_role("button", name="Undo").click()
        assert digit(page) == "?"


def test_what_the_server_says_is_wrong_is_shown(address, open_page):
    page = open_page(address)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"})
    with pytest.raises(InputError) as error:
        Predictor(None)(b"not a picture")
    api.expect(page.locator("[role=status]")).to_have_text(str(error.value))
    assert digit(page) == "?"
    draw(page, STROKE)
    api.expect(page.locator("[role=status]")).to_have_text("")
    assert digit(page) != "?"


def test_a_server_that_is_gone_is_missed(predictor, open_page):
    with serving(create_app(predictor.read, DIGITS)) as address:
        page = open_page(address)
    draw(page, STROKE)
    api.expect(page.locator("[role=status]")).to_have_text("The server does not answer. Is it still running?")
    assert digit(page) == "?"


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.mark.parametrize("class_names", [DIGITS, CLOTHES])
def test_nothing_is_wider_than_the_window(open_page, class_names):
    def predictor(content):
        return [Prediction(9, class_names[9], np.eye(10, dtype=np.float32)[9], np.zeros((28, 28, 1), np.uint8))]

    too_long = "(it) => it.scrollWidth > it.clientWidth"
    too_high = "(it) => it.scrollHeight > it.clientHeight"
    with serving(create_app(predictor, class_names, title="cnn on fashion_mnist, 91.23 % test accuracy")) as address:
        page = open_page(address)
        for answered, width in itertools.product((False, True), (320, 360, 390, 719, 720, 1200)):
            page.set_viewport_size({"width": width, "height": 800})
            if answered and width == 320:
                draw(page, STROKE)
            assert digit(page) == (class_names[9] if answered else "?")
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
            boxes = [it.bounding_box() for it in page.locator("canvas, button, .result, #digit, #bars li").all()]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
            assert all(it.bounding_box()["height"] >= 44 for it in page.locator("button").all())
            assert not any(it.evaluate(too_long) for it in page.locator("button, .value, #digit").all())
            assert not any(it.evaluate(too_high) for it in page.locator("button, #digit.word").all())


def luminance(page, selector, name):
    color = page.locator(selector).first.evaluate(f"(it) => getComputedStyle(it).{name}")
    channels = np.array([int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(address, open_page, scheme):
    page = open_page(address, color_scheme=scheme)
    draw(page, STROKE)
    ground, card, paper = (luminance(page, selector, "backgroundColor") for selector in ("body", ".result", ".paper"))
    assert max(ground, card, paper) < 0.05 if scheme == "dark" else min(ground, card, paper) > 0.8
    # Contrast as WCAG 2 defines it: 4.5 for text, 3 for large text and what is not text.
    for selector, background, contrast in (
        ("h1", ground, 4.5),
        ("header p", ground, 4.5),
        ("footer", ground, 4.5),
        ("button", card, 4.5),
        ("#bars li", card, 4.5),
        ("#bars .first", card, 4.5),
        ("figcaption", card, 4.5),
        ("#hint", paper, 4.5),
        ("#message", card, 4.5),
        ("#digit", card, 3),
    ):
        low, high = sorted((luminance(page, selector, "color"), background))
        assert (high + 0.05) / (low + 0.05) >= contrast, selector


def test_the_colour_scheme_can_change_while_the_page_is_open(address, open_page):
    page = open_page(address, color_scheme="light")
    draw(page, SHAPES[4])
    inks = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert is_ink(page)
        box = page.locator("#canvas").bounding_box()
        x, y = (round(box["width"] * at / 100) for at in SHAPES[4][2])
        code = f"() => [...document.getElementById('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
        inks.append(page.evaluate(code))
    assert [ink[3] for ink in inks] == [255, 255]
    assert inks[0][0] < 60 < 200 < inks[1][0]


def test_strokes_are_sharp_on_fine_screens(address, open_page):
    sides = []
    for factor in (1, 2):
        page = open_page(address, device_scale_factor=factor)
        draw(page, STROKE)
        sides.append(page.evaluate("() => document.getElementById('canvas').width"))
    assert sides[1] == pytest.approx(2 * sides[0], abs=1)


def test_training_digits_appear_when_the_server_knows_them_and_go_with_the_drawing(open_page):
    images = [np.full((28, 28, 1), 40 * index, np.uint8) for index in range(6)]
    examples = [Example(index, str(index), image) for index, image in enumerate(images)]
    answers = itertools.chain([None], itertools.repeat(examples))
    predictor = Predictor(build_state(TrainConfig(hidden_sizes=(8,))), DIGITS)
    with serving(create_app(predictor.read, DIGITS, explain=lambda content: next(answers))) as address:
        page = open_page(address)
        api.expect(page.locator("#why")).to_be_hidden()
        draw(page, SHAPES[7])
        api.expect(page.locator("#why")).to_be_visible()
        assert page.locator("#examples li").all_inner_texts() == [str(index) for index in range(6)]
        code = "(canvas) => canvas.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
        assert [item.evaluate(code) for item in page.locator("#examples canvas").all()] == [0, 40, 80, 120, 160, 200]
        page.locator("#clear").click()
        api.expect(page.locator("#why")).to_be_hidden()
