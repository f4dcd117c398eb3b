"""Label Studio's tasks and its run-length code, decoded by the definition; its own library reads them in tests/formats."""

import json
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote

import numpy as np
import pytest
from format_examples import VOCABULARY, example, write

from zeroshot_d2.segmentation.formats.label_studio import brush_regions, pack_mask


def unpack(packed: list[int]) -> np.ndarray:
    """The words of a stream of @thi.ng/rle-pack, number by number."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def take(length: int) -> int:
        nonlocal place
        place += length
        return int(bits[place - length : place], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < total:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        words += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    assert len(words) == total and len(bits) - place < 8
    return np.array(words)


def test_masks_of_all_lengths_of_runs():
    rng = np.random.default_rng(0)
    masks = [np.zeros((1, 1), bool), np.ones((1, 1), bool), np.ones((300, 400), bool), np.eye(40, 50, dtype=bool)]
    masks += [rng.random((37, 53)) < share for share in (0.5, 0.02)]
    masks.append(np.arange(2**15 + 3).reshape(1, -1) > 2**14 - 1)  # runs of exactly 2^16 words, and one word more
    for mask in masks:
        words = unpack(pack_mask(mask)).reshape(*mask.shape, 4)
        np.testing.assert_array_equal(words, np.repeat(255 * mask[..., None], 4, axis=2))


def test_tasks_and_interface(tmp_path):
    found = write(tmp_path, "--format", "label-studio")
    folder = tmp_path / "out/label_studio"
    view = ElementTree.parse(folder / "config.xml").getroot()
    image, brush = view.find("Image"), view.find("BrushLabels")
    assert [label.get("value") for label in brush] == list(VOCABULARY.names)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert [unquote(task["data"]["image"]) for task in tasks] == [
        "/data/local-files/?d=a b.jpg",
        "/data/local-files/?d=inside/ü.png",
    ]
    assert image.get("value") == "$image"
    for task, result in zip(tasks, found, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "Toy"
        assert prediction["score"] == pytest.approx(float(result.confidence.mean()), abs=1e-5)
        for region in prediction["result"]:
            assert (region["from_name"], region["to_name"]) == (brush.get("name"), image.get("name"))
            assert (region["original_height"], region["original_width"]) == result.labels.shape
            (name,) = region["value"]["brushlabels"]
            mask = unpack(region["value"]["rle"]).reshape(*result.labels.shape, 4)[..., 3] > 0
            np.testing.assert_array_equal(mask, result.labels == VOCABULARY.names.index(name))
    assert len({region["id"] for region in brush_regions(example())}) == 3


def test_the_prefix_of_links(tmp_path):
    write(tmp_path, "--format", "label-studio", "--image-prefix", "https://images.example/x/")
    tasks = json.loads((tmp_path / "out/label_studio/tasks.json").read_text())
    assert tasks[0]["data"]["image"] == "https://images.example/x/a%20b.jpg"
