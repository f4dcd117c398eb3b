"""The web page: its commands in docs/web.md, and the page itself in a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from zeroshot_d2.demo_world import render
from zeroshot_d2.images import ImageArray

gr = pytest.importorskip("gradio", reason="the extra 'web' is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="the extra 'dev' is not installed")
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from alignzeg_d2.web_tab import Segmenter, segmentation_tab  # noqa: E402
from epsilon_d2.web_tab import Labeller, tags_tab  # noqa: E402
from zeroshot_d2.__main__ import main  # noqa: E402
from zeroshot_d2.web import example_photos  # noqa: E402
from zeroshot_d2.web_server import Limits, build_page, private_folder, start  # noqa: E402

pytestmark = pytest.mark.slow

LIMITS = Limits(upload_mb=1, pixels=20_000)
PAGE = (Path(__file__).parents[1] / "docs" / "web.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def segmenter(trained_cfg: Callable[..., CfgNode]) -> Segmenter:
    return Segmenter(trained_cfg("MODEL.ALIGNZEG.PBC.GAMMA", 0.3), LIMITS)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(7, 1).image).save(path)
    return str(path)


# ------------------------------------------------------------------------------------------------------ the commands


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Gradio's configs of the pages that were served; each is closed once it and its examples have been asked for."""
    configs: list[dict[str, object]] = []

    def visit(page: gr.Blocks) -> None:
        with urllib.request.urlopen(f"{page.local_url}config") as answer:
            configs.append(json.load(answer))
        samples = [sample for part in configs[-1]["components"] for sample in part["props"].get("samples") or []]
        for path, *_ in samples:
            with urllib.request.urlopen(f"{page.local_url}gradio_api/file={path['path']}") as answer:
                assert answer.read(4) == b"\x89PNG"
        assert samples
        page.close()

    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    return configs


def tabs_of(config: dict[str, object]) -> list[str]:
    return [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]


COMMANDS = re.findall(r"^python -m zeroshot_d2 (web\b(?:.*\\\n)*.*)$", PAGE, re.M)
ALIGNZEG, EPSILON = "Segmentation (AlignZeg)", "Tags (Epsilon)"


def test_the_page_has_these_commands():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize(
    ("command", "tabs"),
    list(zip(COMMANDS, ([ALIGNZEG, EPSILON], [EPSILON], [ALIGNZEG, EPSILON], [ALIGNZEG]), strict=False)),
)
def test_commands_of_the_page(user_folder, monkeypatch, served, command, tabs):
    monkeypatch.chdir(user_folder)
    verb, *words = shlex.split(command.replace("\\\n", " "))
    assert main([verb, "--port", str(free_port()), *words]) == 0  # a --port of the page's own stands behind it, and wins
    assert tabs_of(served[0]) == tabs


def test_an_error_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["web"]) == 2
    assert "error: there is no model to show" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- in a browser

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1600"),
)
WAIT = 120  # seconds; enough for a busy machine


@pytest.fixture(scope="module")
def url(
    segmenter: Segmenter, trained_epsilon_cfg: Callable[..., CfgNode], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    labeller = Labeller(trained_epsilon_cfg(), LIMITS)
    examples = example_photos(tmp_path_factory.mktemp("examples"))
    tabs = {
        "AlignZeg": lambda: segmentation_tab(segmenter, examples),
        "Epsilon": lambda: tags_tab(labeller, examples),
    }
    with private_folder() as folder:
        page = build_page("Zero-shot recognition", tabs, LIMITS)
        yield start(page, folder, limits=LIMITS, port=free_port())
        page.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


def alike(first: ImageArray, second: ImageArray) -> bool:
    """Whether two pictures have the same size and colours, but for the few pixels that rounding may turn."""
    return first.shape == second.shape and bool((first != second).mean() < 0.01)


class Visitor:
    """What a visitor does on the page.

    The page draws itself, and the parts of an answer, one after the other: whatever is looked for is waited for.
    """

    def __init__(self, chromium: webdriver.Chrome, url: str) -> None:
        self.chromium = chromium
        chromium.get(url)
        self.see("#segment")

    def wait_for(self, condition: Callable[[], Any], otherwise: str) -> Any:
        """What ``condition()`` returns as soon as that is true."""
        redrawn = [StaleElementReferenceException, ElementClickInterceptedException]
        return WebDriverWait(self.chromium, WAIT, ignored_exceptions=redrawn).until(lambda _: condition(), otherwise)

    def find(self, selector: str) -> list[WebElement]:
        return self.chromium.find_elements(By.CSS_SELECTOR, selector)

    def see(self, selector: str, text: str = "") -> WebElement:
        """Wait for the first visible element that has this text."""

        def visible() -> WebElement | None:
            return next((e for e in self.find(selector) if e.is_displayed() and text in e.text), None)

        return self.wait_for(visible, f"{selector} did not appear with {text!r} as text")

    def click(self, selector: str, text: str = "") -> None:
        def clicked() -> bool:
            self.see(selector, text).click()
            return True

        self.wait_for(clicked, f"{selector} could not be clicked")

    def wait_for_message(self, *texts: str) -> None:
        """A message comes into view slowly, and goes again: its text is read, whatever of it can be seen already."""

        def said() -> bool:
            messages = [str(toast.get_attribute("textContent")) for toast in self.find(".toast-body")]
            return any(all(text in message for text in texts) for message in messages)

        self.wait_for(said, f"no message with {texts}")

    def wait_for_picture(self, selector: str, picture: ImageArray) -> None:
        """A picture may be older than the text beside it."""

        def shown() -> bool:
            source = self.see(selector).get_attribute("src")
            with urllib.request.urlopen(source) as answer, Image.open(answer) as image:
                return alike(np.asarray(image.convert("RGB")), picture)

        self.wait_for(shown, f"{selector} did not show the picture that belongs to its text")

    def wait_for_table(self, selector: str, expected: Callable[[list[list[str]]], bool]) -> None:
        def shown() -> bool:
            rows = self.see(selector).find_elements(By.CSS_SELECTOR, "tbody tr")
            return expected([[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows])

        self.wait_for(shown, f"{selector} did not show the expected rows")

    def upload(self, path: str) -> None:
        in_view = "return arguments[0].closest('[role=tabpanel]').offsetParent !== null"
        fields = [field for field in self.find("input[type=file]") if self.chromium.execute_script(in_view, field)]
        fields[0].send_keys(path)
        self.see(f"img[src*='{Path(path).name}']")

    def type(self, selector: str, text: str) -> None:
        field = self.see(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)


@pytest.fixture
def visitor(chromium: webdriver.Chrome, url: str) -> Visitor:
    return Visitor(chromium, url)


def requested_hosts(chromium: webdriver.Chrome) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {re.split("[/:]+", request)[1] for request in requests if request.startswith(("http", "ws"))}


def test_upload_type_run_and_move_gamma(visitor, segmenter, photo):
    visitor.upload(photo)
    visitor.type("#vocabulary textarea", "dark sand, netted blue tile|blue net, zebra")
    visitor.type("#unseen textarea, #unseen input", "netted blue tile")
    visitor.click("#segment")
    visitor.see("#summary", "above γ = 0.3")
    found = segmenter.find(photo, "dark sand, netted blue tile|blue net, zebra", "netted blue tile")
    overlay, rows, *_ = segmenter.show(found, 0.3)
    visitor.wait_for_picture("#overlay img", overlay)
    visitor.wait_for_table("#classes", rows.__eq__)
    visitor.wait_for(lambda: len(visitor.find("#proposals img")) == 8, "there are not eight proposals")

    untouched, all_unseen = segmenter.show(found, 1), segmenter.show(found, 0)
    assert not alike(untouched[0], all_unseen[0])
    for gamma, (overlay, rows, *_), summary in (("1", untouched, "0 have"), ("0", all_unseen, "16 have")):
        visitor.type("#gamma input[type=number]", gamma)
        visitor.see("#summary", f"{summary} a class indicator I above γ = {gamma}.")
        visitor.wait_for_picture("#overlay img", overlay)
        visitor.wait_for_table("#classes", rows.__eq__)
    visitor.see("#proposals", "★ ")
    assert requested_hosts(visitor.chromium) == {"127.0.0.1"}


def test_a_broken_upload_gets_a_message(visitor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    visitor.upload(str(tmp_path / "broken.jpg"))
    visitor.click("#segment")
    visitor.wait_for_message("broken.jpg cannot be read as an image", "save it anew as JPEG or PNG")


def test_a_large_upload_gets_a_message(visitor, tmp_path):
    (tmp_path / "large.png").write_bytes(b"x" * 3 * 2**20)
    visitor.find("input[type=file]")[0].send_keys(str(tmp_path / "large.png"))
    visitor.wait_for_message('exceed the maximum allowed size of 1.0 Mb: "large.png"')


def test_a_result_that_is_no_longer_kept_gets_a_message(visitor):
    visitor.type("#gamma input[type=number]", "0.1")
    visitor.wait_for_message("There is no result")


def test_names_that_are_too_long_get_a_message(visitor, photo):
    visitor.upload(photo)
    field = visitor.see("#vocabulary textarea")
    set_value = "arguments[0].value = 'x'.repeat(30000); arguments[0].dispatchEvent(new Event('input'))"
    visitor.chromium.execute_script(set_value, field)
    visitor.click("#segment")
    visitor.wait_for_message("has 30,000 characters, and this page takes 100")


def test_a_faulty_vocabulary_gets_a_message(visitor, photo):
    visitor.upload(photo)
    visitor.type("#unseen textarea, #unseen input", "<b>zebra</b>")
    visitor.click("#segment")
    visitor.wait_for_message("unseen classes ['<b>zebra</b>'] are not in the vocabulary")


def test_epsilons_tab(visitor):
    visitor.click("[role=tab]", "Epsilon")
    visitor.click("[role=tabpanel] .gallery button, [role=tabpanel] button.gallery-item")  # the first example
    visitor.see("img[src*='demo_world_']")
    visitor.type("#labels textarea", "dark sand, zebra, plain blue tile")
    visitor.click("#tag")
    visitor.see("#group_attention img")
    visitor.see("#global_attention img")
    visitor.wait_for_table("#tags", ranked_tags)


def ranked_tags(rows: list[list[str]]) -> bool:
    scores = [float(row[2]) for row in rows]
    return {row[0] for row in rows} == {"dark sand", "★ zebra", "plain blue tile"} and scores == sorted(scores, reverse=True)
