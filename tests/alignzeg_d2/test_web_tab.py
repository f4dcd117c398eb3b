"""The web page: the functions behind its buttons, its commands in docs/web.md, and the page itself in a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

import epsilon_d2.web
from alignzeg_d2.gamma_sweep import OFF, segment_with_gamma
from alignzeg_d2.predictor import AlignZegPredictor
from alignzeg_d2.web_tab import MAX_CLASSES, Segmenter, segmentation_tab, with_gamma
from zeroshot_d2.commands.check import main
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.web import build_page, example_photos, start

PAGE = (Path(__file__).parents[2] / "docs" / "web.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cfg(demo_cfg: Callable[..., CfgNode], alignzeg_checkpoint: Path) -> CfgNode:
    options = ("MODEL.ALIGNZEG.CLIP.PRETRAINED", "bundled", "MODEL.ALIGNZEG.CLIP.TEMPLATES", "vild")
    return demo_cfg(*options, "MODEL.WEIGHTS", str(alignzeg_checkpoint))


@pytest.fixture(scope="module")
def segmenter(cfg: CfgNode) -> Segmenter:
    return Segmenter(cfg, max_pixels=20_000)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(render(7, 1).image).save(path)
    return str(path)


# ------------------------------------------------------------------------------------- the functions behind the page


def test_the_page_shows_what_the_predictor_gives(segmenter, cfg, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    overlay, rows, summary, heaviest, _ = segmenter.show(found, segmenter.gamma)
    expected = AlignZegPredictor(cfg)(photo).classes()
    assert segmenter.gamma == cfg.MODEL.ALIGNZEG.PBC.GAMMA
    assert [row[0].removeprefix("★ ") for row in rows] == [entry["name"] for entry in expected]
    assert [row[1] == "unseen" for row in rows] == [row[0].startswith("★ ") for row in rows]
    assert [row[1] == "unseen" for row in rows] == [entry["unseen"] for entry in expected]
    assert [row[2:] for row in rows] == [[f"{100 * e['area']:.1f}", f"{e['score']:.2f}"] for e in expected]
    assert overlay.shape[1] == 800 and len(heaviest) == 8 and all("\nI = " in caption for _, caption in heaviest)
    assert re.match(r"Of 16 proposals, \d+ have a class indicator \*I\* above γ = 0\.3\.", summary)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.6, OFF])
def test_any_gamma_gives_what_the_sweep_gives(segmenter, photo, gamma):
    found = segmenter.find(photo, segmenter.default_names, "")
    before = found.segmentation.labels.copy()
    seen = segmenter.model.seen_mask(SPLIT)
    expected = segment_with_gamma(found.segmentation.proposals, seen, gamma, (64, 64)).numpy()
    assert np.array_equal(with_gamma(segmenter.model, found.segmentation, gamma).labels, expected)
    assert np.array_equal(found.segmentation.labels, before) and segmenter.model.postprocessor.gamma == 0.3


def test_gamma_decides_what_becomes_unseen(segmenter, photo):
    found = segmenter.find(photo, segmenter.default_names, "")
    _, everything, summary, heaviest, picture = segmenter.show(found, 0.0)
    assert {row[1] for row in everything} == {"unseen"} and "16 have" in summary
    assert any(" → ★ " in caption for _, caption in heaviest) and picture.ndim == 3
    _, nothing, summary, heaviest, picture = segmenter.show(found, OFF)
    assert nothing != everything and "0 have" in summary and picture is None
    assert not any("→" in caption for _, caption in heaviest)


def test_a_vocabulary_keeps_its_order_and_any_order_gives_the_same_classes(segmenter, photo):
    names = ["dark sand", "zebra|striped horse", "netted blue tile", "plain blue tile"]
    maps = []
    for order in (names, names[::-1]):
        segmentation = segmenter.find(photo, ", ".join(order), "dark sand").segmentation
        assert segmentation.vocabulary.names == tuple(name.split("|")[0] for name in order)
        assert set(segmentation.vocabulary.unseen) == {"zebra", "dark sand"}
        maps.append(np.array(segmentation.vocabulary.names)[segmentation.labels])
    assert np.array_equal(*maps)


def test_visitors_do_not_see_the_vocabulary_of_others(segmenter, photo):
    texts = ["dark sand, plain blue tile", "light water, striped red tile, zebra", segmenter.default_names] * 4

    def classes(text: str) -> list[str]:
        return [entry["name"] for entry in segmenter.find(photo, text, "").segmentation.classes()]

    expected = [classes(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(classes, texts)) == expected


@pytest.mark.parametrize(
    ("names", "unseen", "message"),
    [
        (" , ", "", "a vocabulary needs at least one class name"),
        ("cat, dog, cat", "", r"lists \['cat'\] more than once"),
        ("cat, dog", "cow", r"unseen classes \['cow'\] are not in the vocabulary: cat, dog"),
        (",".join(map(str, range(MAX_CLASSES + 1))), "", "has 2001 classes, this page takes 2000"),
    ],
)
def test_faulty_vocabularies(segmenter, photo, names, unseen, message):
    with pytest.raises(ValueError, match=message):
        segmenter.find(photo, names, unseen)


def test_faulty_photos(segmenter, tmp_path):
    Image.new("RGB", (201, 100)).save(tmp_path / "large.png")
    for photo, message in ((None, "no photo yet"), (str(tmp_path / "large.png"), "more than the 20,000")):
        with pytest.raises(ValueError, match=message):
            segmenter.find(photo, segmenter.default_names, "")


def test_a_vocabulary_of_seen_classes_has_no_bias_to_correct(segmenter, photo):
    _, _, summary, _, picture = segmenter.show(segmenter.find(photo, "dark sand, plain blue tile", ""), 0.0)
    assert "no unseen class" in summary and picture is None


def test_models_without_correction(demo_cfg, photo):
    plain = ("MODEL.ALIGNZEG.PBC.POSTPROCESSOR", "NoCorrection")
    assert Segmenter(demo_cfg(*plain), 20_000).gamma == OFF
    segmenter = Segmenter(demo_cfg("MODEL.ALIGNZEG.PBC.ENABLED", False, *plain), 20_000)
    assert segmenter.gamma is None
    _, rows, summary, heaviest, picture = segmenter.show(segmenter.find(photo, segmenter.default_names, ""), 0.0)
    assert rows and "without a class indicator" in summary and picture is None
    assert not any("I =" in caption for _, caption in heaviest)


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


COMMANDS = re.findall(r"^python -m (\w+)\.web ?((?:.*\\\n)*.*)$", PAGE, re.M)


def test_the_page_has_commands():
    assert {package for package, _ in COMMANDS} == {"alignzeg_d2", "epsilon_d2"} and len(COMMANDS) >= 3


@pytest.mark.parametrize(("package", "words"), COMMANDS)
def test_commands_of_the_page(user_folder, monkeypatch, served, package, words):
    monkeypatch.chdir(user_folder)
    run = {"alignzeg_d2": main, "epsilon_d2": epsilon_d2.web.main}[package]
    arguments = shlex.split(words.replace("\\\n", " "))
    run(["--port", str(free_port()), *arguments])  # a --port of the page's own stands behind it, and wins
    alignzeg, epsilon = "Segmentation (AlignZeg)", "Tags (Epsilon)"
    assert tabs_of(served[0]) in ([alignzeg, epsilon], [epsilon], [alignzeg])
    assert (alignzeg in tabs_of(served[0])) == (package == "alignzeg_d2")


def test_without_epsilons_weights_there_is_one_tab(user_folder, tmp_path, monkeypatch, served, capsys):
    (tmp_path / "output/demo").mkdir(parents=True)
    (tmp_path / "output/demo/model_final.pth").symlink_to(user_folder / "output/demo/model_final.pth")
    monkeypatch.chdir(tmp_path)
    main(["--port", str(free_port())])
    assert tabs_of(served[0]) == ["Segmentation (AlignZeg)"]
    assert "no tab for Epsilon" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], FileNotFoundError, "output/demo/model_final.pth does not exist .* run `make demo`"),
        (["--config-file", "a.yaml"], ValueError, "--config-file a.yaml needs its --weights"),
        (["--epsilon-config-file", "b.yaml"], ValueError, "--epsilon-config-file b.yaml needs its --epsilon-weights"),
        (["--weights", "nowhere.pth"], FileNotFoundError, "--weights nowhere.pth does not exist"),
    ],
)
def test_missing_files_are_named(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        main(arguments)


# ----------------------------------------------------------------------------------------------------- in a browser

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1600"),
)
WAIT = 120  # seconds; enough for a busy machine


@pytest.fixture(scope="module")
def url(segmenter: Segmenter, epsilon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    labeller = epsilon_d2.web.load_labeller(None, str(epsilon_checkpoint), 20_000)
    examples = example_photos(tmp_path_factory.mktemp("examples"))
    page = build_page(
        "Zero-shot recognition",
        {
            "AlignZeg": lambda: segmentation_tab(segmenter, examples),
            "Epsilon": lambda: epsilon_d2.web.tags_tab(labeller, examples),
        },
    )
    yield start(page, host="127.0.0.1", port=free_port(), max_upload_mb=1)
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


class Visitor:
    """What a visitor does on the page."""

    def __init__(self, chromium: webdriver.Chrome, url: str) -> None:
        self.chromium = chromium
        chromium.get(url)
        self.see("#segment")

    def see(self, selector: str) -> WebElement:
        """Wait for the first visible element."""

        def visible(chromium: webdriver.Chrome) -> WebElement | None:
            return next((e for e in chromium.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None)

        return WebDriverWait(self.chromium, WAIT).until(visible, f"{selector} did not appear")

    def wait_for_text(self, selector: str, text: str) -> str:
        WebDriverWait(self.chromium, WAIT).until(lambda _: text in self.see(selector).text, f"no {text!r} in {selector}")
        return self.see(selector).text

    def upload(self, path: str) -> None:
        field = next(
            field
            for field in self.chromium.find_elements(By.CSS_SELECTOR, "input[type=file]")
            if self.chromium.execute_script("return arguments[0].closest('[role=tabpanel]').offsetParent !== null", field)
        )
        field.send_keys(path)
        self.see(f"img[src*='{Path(path).name}']")

    def type(self, selector: str, text: str) -> None:
        field = self.see(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def message(self) -> str:
        return self.see(".toast-body").text

    def table(self, selector: str) -> list[list[str]]:
        rows = self.see(selector).find_elements(By.CSS_SELECTOR, "tbody tr")
        return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


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
    visitor.see("#segment").click()
    visitor.wait_for_text("#summary", "above γ = 0.3")
    overlay = visitor.see("#overlay img").get_attribute("src")
    found = segmenter.find(photo, "dark sand, netted blue tile|blue net, zebra", "netted blue tile")
    assert visitor.table("#classes") == segmenter.show(found, 0.3)[1]
    assert len(visitor.see("#proposals").find_elements(By.TAG_NAME, "img")) == 8

    visitor.type("#gamma input[type=number]", "0")
    visitor.wait_for_text("#summary", "16 have a class indicator I above γ = 0.")
    assert visitor.table("#classes") == segmenter.show(found, 0.0)[1]
    assert visitor.see("#overlay img").get_attribute("src") != overlay
    assert "★ " in visitor.see("#proposals").text
    assert requested_hosts(visitor.chromium) == {"127.0.0.1"}


def test_a_broken_upload_gets_a_message(visitor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    visitor.upload(str(tmp_path / "broken.jpg"))
    visitor.see("#segment").click()
    assert "broken.jpg cannot be read as an image" in visitor.message()
    assert "save it anew as JPEG or PNG" in visitor.message()


def test_a_faulty_vocabulary_gets_a_message(visitor, photo):
    visitor.upload(photo)
    visitor.type("#unseen textarea, #unseen input", "<b>zebra</b>")
    visitor.see("#segment").click()
    assert "unseen classes ['<b>zebra</b>'] are not in the vocabulary" in visitor.message()


def test_epsilons_tab(visitor):
    next(tab for tab in visitor.chromium.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.text == "Epsilon").click()
    visitor.see("[role=tabpanel] .gallery button, [role=tabpanel] button.gallery-item").click()  # the first example
    visitor.see("img[src*='demo_world_']")
    visitor.type("#labels textarea", "dark sand, zebra, plain blue tile")
    visitor.see("#tag").click()
    visitor.see("#group_attention img")
    visitor.see("#global_attention img")
    rows = visitor.table("#tags")
    assert {row[0] for row in rows} == {"dark sand", "★ zebra", "plain blue tile"}
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), key=float, reverse=True)
