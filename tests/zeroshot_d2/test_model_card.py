"""The card: the Hub's own reader takes its front matter, and it says what the model is, needs and reaches."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard
from saved_runs import RESULTS

from zeroshot_d2 import ClassSplit, System, load_config
from zeroshot_d2 import system as systems
from zeroshot_d2.checkpoint import ModelRecord
from zeroshot_d2.model_card import model_card

SPLIT = ClassSplit(["cat", "tv_monitor", "[x](http://a)"], ["tv_monitor"])
FROZEN = {"CLIP": {"name": "ViT-B-16", "pretrained": "clip.pt", "sha256": "1f" * 32}}
CLIP = "MODEL.ALIGNZEG.CLIP"


RECORD = ModelRecord("AlignZeg", SPLIT, ("cat",), FROZEN)


def card(record: ModelRecord = RECORD, *opts: str, **arguments: Any) -> str:
    config = load_config("demo/alignzeg.yaml")
    config.merge_from_list(list(opts))
    given = {"results": RESULTS, "name": "demo", "source": "hub:ann/demo", **arguments}
    return model_card(config, record, given.pop("results"), **given)


@pytest.mark.parametrize(("system", "task"), [("AlignZeg", "image-segmentation"), ("Epsilon", "image-classification")])
def test_the_hub_reads_it(system: str, task: str) -> None:
    data = ModelCard(card(ModelRecord(system), license="apache-2.0")).data
    assert data.pipeline_tag == task and data.library_name == "alignzeg-epsilon-d2" and data.license == "apache-2.0"
    assert {"detectron2", "zero-shot", system.lower()} <= set(data.tags)
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {("demo_world_val", "hIoU"): 61.23, ("demo_world_val_unseen", "mIoU"): 55.5}


def test_without_a_licence_and_results_none_is_claimed() -> None:
    text = card(results=None)
    data = ModelCard(text).data
    assert data.license is None and data.eval_results is None
    assert "license" not in text and "model-index" not in text and "## Results" not in text


def test_the_numbers_are_those_of_the_results() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card().partition("## Results")[2].splitlines()]
    assert ["", "demo_world_val", "demo_world_val_unseen"] in lines
    assert ["protocol", "GZS3", "ZS3"] in lines and ["num_images", "12", "12"] in lines
    assert ["hIoU", "61.23", "-"] in lines and ["mIoU", "-", "55.50"] in lines


def test_it_says_what_is_not_contained() -> None:
    text = card(
        RECORD,
        *(f"{CLIP}.PRETRAINED", "folder:clip.pt", f"{CLIP}.TEMPLATES", "folder:templates.txt", "SEED", "1"),
    )
    assert "1f" * 32 in text and "| ViT-B-16 |" in text
    assert f'`clip.pt` is not in this folder: give its path, `opts=["{CLIP}.PRETRAINED", "path/to/clip.pt"]`' in text
    assert "`templates.txt` has the texts that a class's name is put into." in text
    words = card(ModelRecord("Epsilon"), f"{CLIP}.PRETRAINED", "folder:word_vectors.npz")
    assert f"Any other class needs the whole file: give its path as `{CLIP}.PRETRAINED`." in words


def test_names_are_shown_as_they_are() -> None:
    text = card()
    assert r"cat, tv\_monitor\*, \[x\](http://a)" in text and "3 classes, 1 of them unseen" in text
    assert "Its own vocabulary" not in card(ModelRecord("AlignZeg"))


def test_the_example_runs_for_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'Predictor.from_pretrained("hub:ann/demo")' in card() and "\nimport " not in card()

    def add_config(cfg: Any) -> None: ...

    add_config.__module__ = "mine.config"
    monkeypatch.setattr(systems, "_systems", {**systems._systems, "Mine": System("Mine", "segmentation", add_config)})
    assert "import mine  # registers Mine\nfrom zeroshot_d2.predictor" in card(ModelRecord("Mine"))
