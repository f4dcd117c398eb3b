"""A model as one folder: it gives what the run gives, needs nothing else, and says what is wrong with it."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from comparisons import assert_close
from safetensors import safe_open
from saved_runs import CLIP, RESULTS, TEMPLATES, save_run

from alignzeg_d2.predictor import AlignZegPredictor
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2 import load_config
from zeroshot_d2.checkpoint import ENTRY, Checkpointer, ModelRecord, read_checkpoint, read_record, weights_in
from zeroshot_d2.clip.loader import DEMO_CLIP
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.hub import push
from zeroshot_d2.predictor import Predictor, build_predictor
from zeroshot_d2.pretrained import results_of

CLASSES: dict[str, type[Predictor[Any]]] = {"AlignZeg": AlignZegPredictor, "Epsilon": EpsilonPredictor}
NAMES = ["striped red tile", "dark water|dark sea", "zebra"]
FILES = {"config.yaml", "model.safetensors", "README.md"}
WORDS = "MODEL.EPSILON.LABEL_EMBEDDINGS"


@pytest.fixture(scope="module", params=list(CLASSES))
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(system: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("private") / system
    save_run(folder, system)
    return folder


@pytest.fixture(scope="module")
def saved(run: Path, system: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one folder; tests must not change it."""
    return CLASSES[system].from_pretrained(run).save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def mine(saved: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "mine")


def photo() -> np.ndarray:
    """(64, 64, 3) BGR."""
    return np.ascontiguousarray(render(7, 0).image[:, :, ::-1])


def scores(predictor: Predictor[Any], vocabulary: list[str] | None = None) -> Any:
    wanted = {"scores": True} if "scores" in predictor.options else {}
    return predictor(photo(), vocabulary=vocabulary, **wanted).scores


# ---- the same model ----


@pytest.mark.parametrize("vocabulary", [None, NAMES])
def test_gives_what_the_run_gives(run: Path, saved: Path, system: str, vocabulary: list[str] | None) -> None:
    expected = build_predictor(load_config(run / "config.yaml", weights=run / "model_final.pth"))
    found = CLASSES[system].from_pretrained(saved)
    assert_close(scores(found, vocabulary), scores(expected, vocabulary))
    assert found.trained == expected.trained and found.vocabulary == expected.vocabulary
    fresh = build_predictor(load_config(run / "config.yaml", weights=run / "model_final.safetensors"))
    assert_close(scores(fresh, vocabulary), scores(expected, vocabulary))


def test_the_folder_holds_a_model_and_no_path_of_this_machine(run: Path, saved: Path, system: str) -> None:
    assert {path.name for path in saved.iterdir()} == FILES
    for path in saved.iterdir():
        for private in (run.parent, saved.parent):
            assert str(private).encode() not in path.read_bytes(), path.name
    config = yaml.safe_load((saved / "config.yaml").read_text())
    assert config["MODEL"]["META_ARCHITECTURE"] == system
    assert "WEIGHTS" not in config["MODEL"] and "OUTPUT_DIR" not in config and "WANDB_PROJECT" not in config["SOLVER"]
    assert load_config(saved / "config.yaml").MODEL.WEIGHTS == ""
    learnt, original = (read_checkpoint(path)["model"] for path in (saved / "model.safetensors", run / "model_final.pth"))
    torch.testing.assert_close(learnt, original, rtol=0, atol=0)
    with safe_open(saved / "model.safetensors", framework="pt") as opened:
        record = ModelRecord.from_dict(json.loads(opened.metadata()[ENTRY]))
    assert record == read_record(run / "model_final.pth") and record.vocabulary == SPLIT


def test_without_its_data_sets_the_record_says_the_classes(mine: Path, system: str) -> None:
    config = yaml.safe_load((mine / "config.yaml").read_text())
    config["DATASETS"] = {"TRAIN": ["nobody_has_it"], "TEST": ["nor_this"]}
    (mine / "config.yaml").write_text(yaml.safe_dump(config))
    found = CLASSES[system].from_pretrained(mine)
    assert found.vocabulary == SPLIT and found.trained == frozenset(SPLIT.only_seen().texts)


def test_a_pickle_beside_it_is_never_opened(mine: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.mkdir, (mine / "made",)

    for name in ("model_final.pth", "model.pth", "pytorch_model.bin", "model.pkl"):
        (mine / name).write_bytes(pickle.dumps(Payload()))

    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(pickle, "load", opened)
    monkeypatch.setattr(pickle, "Unpickler", opened)
    assert str(mine / "model.safetensors") == CLASSES[system].from_pretrained(mine).cfg.MODEL.WEIGHTS
    assert not (mine / "made").exists()


def test_the_class_that_fits_is_found(saved: Path, system: str) -> None:
    class Own(CLASSES[system]):  # type: ignore[misc, valid-type]
        pass

    assert type(Predictor.from_pretrained(saved)) is CLASSES[system]
    assert type(Own.from_pretrained(saved)) is Own
    (other,) = set(CLASSES) - {system}
    with pytest.raises(
        ValueError, match=rf"holds a model of {system}, which {other}Predictor does not run: use {system}Pred"
    ):
        CLASSES[other].from_pretrained(saved)


def test_options(saved: Path, system: str) -> None:
    found = Predictor.from_pretrained(saved, device="cpu", opts=["INPUT.MAX_PIXELS", 5], batch_size=3)
    assert found.batch_size == 3 and found.max_pixels == 5 and found.cfg.MODEL.DEVICE == "cpu"
    with pytest.raises(ValueError, match="MODEL.DEVICE must be a device such as cpu, cuda"):
        Predictor.from_pretrained(saved, device="gpu")


def test_a_gpu_is_any_gpu(run: Path, system: str, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(run)
    predictor.cfg.defrost()
    predictor.cfg.MODEL.DEVICE = "cuda:3"
    written = predictor.save_pretrained(tmp_path / "model")
    assert yaml.safe_load((written / "config.yaml").read_text())["MODEL"]["DEVICE"] == "cuda"


# ---- what is refused ----


def test_another_clip_is_refused(saved: Path, system: str) -> None:
    others = [word for key in CLIP[system] for word in (key, "bundled")]
    with pytest.raises(ValueError, match=r"model\.safetensors: the checkpoint was trained with the (CLIP|backbone)"):
        Predictor.from_pretrained(saved, opts=others)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_cut_weights_are_refused(mine: Path, share: float) -> None:
    whole = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"mine.model\.safetensors (is damaged or cut off|cannot be used: it is empty)"):
        Predictor.from_pretrained(mine)


def test_a_changed_byte_is_noticed(mine: Path) -> None:
    whole = bytearray((mine / "model.safetensors").read_bytes())
    whole[-40] ^= 1
    (mine / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        Predictor.from_pretrained(mine)


def rewritten(file: Path, change: Callable[[dict[str, Any]], Any] = lambda weights: None, **texts: str) -> None:
    """Write a file of safetensors anew as another program would: with other tensors and texts."""
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, metadata=texts)


def test_nan_is_refused(mine: Path) -> None:
    rewritten(mine / "model.safetensors", lambda weights: next(iter(weights.values())).view(-1)[:1].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"model\.safetensors has NaN in .*: its training had failed"):
        Predictor.from_pretrained(mine)


def test_a_weight_that_is_missing_is_named(mine: Path) -> None:
    rewritten(mine / "model.safetensors", lambda weights: weights.popitem())
    with pytest.raises(ValueError, match=r"model\.safetensors: the checkpoint lacks 1 weights of"):
        Predictor.from_pretrained(mine)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", "[" * 100_000])
def test_a_record_that_says_nothing_is_refused(mine: Path, text: str) -> None:
    rewritten(mine / "model.safetensors", **{ENTRY: text})
    with pytest.raises(ValueError, match=r"the record in the checkpoint .*model\.safetensors is not one that this version"):
        Predictor.from_pretrained(mine)


def test_weights_of_others_have_no_record_and_are_taken_with_a_warning(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewritten(mine / "model.safetensors")
    assert read_record(mine / "model.safetensors") is None
    with caplog.at_level(logging.WARNING, logger="zeroshot_d2"):
        Predictor.from_pretrained(mine)
    assert "does not say which" in caplog.text


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_missing_file_is_named(mine: Path, name: str) -> None:
    (mine / name).unlink()
    expected = name if name == "config.yaml" else "model_final.pth"
    with pytest.raises(
        FileNotFoundError, match=rf"mine has no {expected}: name the folder of a saved model or of a finished"
    ):
        Predictor.from_pretrained(mine)


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ann/demo is no folder .*; a model on the Hub is spelt hub:ann/demo"):
        Predictor.from_pretrained("ann/demo")


# ---- parts that lie in files ----


def test_a_clip_that_lies_somewhere_is_named_and_not_contained(system: str, tmp_path: Path) -> None:
    file, run = tmp_path / "private/clip.safetensors", tmp_path / "private/run"
    file.parent.mkdir()
    shutil.copy(DEMO_CLIP.weights, file)
    cfg = save_run(run, system, *(word for key in CLIP[system] for word in (key, str(file))))
    predictor = build_predictor(cfg)
    folder = predictor.save_pretrained(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(str(file.parent).encode() not in path.read_bytes() for path in folder.iterdir())
    for facts in read_record(folder / "model.safetensors").frozen.values():
        assert facts["pretrained"] == "clip.safetensors" and len(facts["sha256"]) == 64
    with pytest.raises(
        FileNotFoundError, match=rf"needs the file clip\.safetensors, .*: give its path as `{CLIP[system][0]} P"
    ):
        Predictor.from_pretrained(folder)
    moved = file.rename(tmp_path / "moved.safetensors")
    opts = [word for key in CLIP[system] for word in (key, str(moved))]
    assert_close(scores(Predictor.from_pretrained(folder, opts=opts)), scores(predictor))
    absent = [word for key in CLIP[system] for word in (key, str(file))]
    with pytest.raises(ValueError, match=r"clip\.safetensors' is neither a weights file nor an open_clip tag"):
        Predictor.from_pretrained(folder, opts=absent)


@pytest.mark.parametrize("value", ["folder:../clip.pt", "folder:/etc/passwd", "folder:", "folder:..", "folder:a:b"])
def test_a_config_names_no_file_outside_of_its_folder(mine: Path, system: str, value: str) -> None:
    section, key = CLIP[system][0].rsplit(".", 1)
    config = yaml.safe_load((mine / "config.yaml").read_text())
    node = config
    for part in section.split("."):
        node = node[part]
    node[key] = value
    (mine / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="names no file in the config's own folder: correct it"):
        Predictor.from_pretrained(mine)


def test_templates_of_a_file_go_along(system: str, tmp_path: Path) -> None:
    file, run = tmp_path / "private/mine.txt", tmp_path / "private/run"
    file.parent.mkdir()
    file.write_text("an aerial photo of a {}.\na map of a {}.\n", encoding="utf-8")
    predictor = build_predictor(save_run(run, system, TEMPLATES[system], str(file)))
    expected = scores(predictor)
    folder = predictor.save_pretrained(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {*FILES, "templates.txt"}
    shutil.rmtree(file.parent)
    again = Predictor.from_pretrained(folder)
    assert_close(scores(again), expected)
    assert again.save_pretrained(tmp_path / "again").joinpath("templates.txt").read_text().count("{}") == 2


# ---- word vectors ----

KNOWN = sorted({word for text in SPLIT.texts for word in text.split()})
OTHERS = ["zebra", "traffic", "light"]


@pytest.fixture(scope="module")
def glove(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of word vectors, of the words of the demo world and some more."""
    numbers = np.random.default_rng(0).normal(size=(len(KNOWN) + len(OTHERS), 6))
    lines = (" ".join([word, *map(str, row)]) for word, row in zip([*KNOWN, *OTHERS], numbers, strict=True))
    path = tmp_path_factory.mktemp("private") / "glove.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def worded(glove: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor[Any]:
    """Epsilon with label vectors of that file."""
    run = tmp_path_factory.mktemp("run")
    return build_predictor(save_run(run, "Epsilon", f"{WORDS}.SOURCE", "file", f"{WORDS}.FILE", str(glove)))


def test_word_vectors_of_the_classes_go_along(worded: Predictor[Any], glove: Path, tmp_path: Path) -> None:
    folder = worded.save_pretrained(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {*FILES, "word_vectors.npz"}
    assert all(str(glove.parent).encode() not in path.read_bytes() for path in folder.iterdir())
    found = Predictor.from_pretrained(folder)
    assert_close(scores(found), scores(worded))
    assert_close(scores(found, list(SPLIT.unseen)), scores(worded, list(SPLIT.unseen)))
    again = Predictor.from_pretrained(found.save_pretrained(tmp_path / "again"))
    assert_close(scores(again), scores(worded))
    assert_close(scores(Predictor.from_pretrained(again.save_pretrained(tmp_path / "again"))), scores(worded))


@pytest.mark.parametrize("name", ["zebra", "traffic light", "striped zebra"])
def test_other_classes_need_the_whole_file(worded: Predictor[Any], glove: Path, tmp_path: Path, name: str) -> None:
    """ "striped zebra" would otherwise be "striped", since the folder knows no zebra."""
    folder = worded.save_pretrained(tmp_path / "model")
    found = Predictor.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"word_vectors\.npz is an excerpt of glove\.txt for .* and \['{name}'\] are not"):
        found(photo(), vocabulary=["dark water", name])
    whole = Predictor.from_pretrained(folder, opts=[f"{WORDS}.FILE", str(glove)])
    assert_close(scores(whole, ["dark water", name]), scores(worded, ["dark water", name]))


def test_the_vocabulary_in_use_goes_along(worded: Predictor[Any], tmp_path: Path) -> None:
    try:
        worded.set_vocabulary(["zebra", "traffic light|light"])
        folder = worded.save_pretrained(tmp_path / "model")
    finally:
        worded.set_vocabulary(None)
    found = Predictor.from_pretrained(folder)
    assert found.vocabulary == worded.vocabulary
    assert_close(scores(found, ["light", "zebra"]), scores(worded, ["light", "zebra"]))


def test_other_word_vectors_are_refused(worded: Predictor[Any], glove: Path, tmp_path: Path) -> None:
    folder = worded.save_pretrained(tmp_path / "model")
    other = tmp_path / "other.txt"
    other.write_text(glove.read_text().replace("1", "2"), encoding="utf-8")
    with pytest.raises(ValueError, match="was trained with the label embeddings"):
        Predictor.from_pretrained(folder, opts=[f"{WORDS}.FILE", str(other)])
    content = (folder / "word_vectors.npz").read_bytes()
    (folder / "word_vectors.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"word_vectors\.npz is damaged or holds Python objects"):
        Predictor.from_pretrained(folder)


# ---- writing ----


def test_a_folder_with_other_files_is_left_alone(saved: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(saved)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files, such as notes\.txt: name a new folder for the model"):
        predictor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is a file: name a folder"):
        predictor.save_pretrained(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_was_interrupted_is_no_model(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_pretrained(mine)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("zeroshot_d2.pretrained.write_model", full)
        predictor.save_pretrained(mine)
    with pytest.raises(FileNotFoundError, match="mine has no model"):
        Predictor.from_pretrained(mine)
    shutil.rmtree(mine)
    assert_close(scores(Predictor.from_pretrained(predictor.save_pretrained(mine))), scores(predictor))


def test_a_folder_is_written_again(mine: Path) -> None:
    predictor = Predictor.from_pretrained(mine)
    (mine / "templates.txt").write_text("of an earlier model")
    predictor.save_pretrained(mine)
    assert {path.name for path in mine.iterdir()} == FILES
    assert_close(scores(Predictor.from_pretrained(mine)), scores(predictor))


# ---- results ----


def test_results_are_those_of_the_weights(run: Path, system: str, tmp_path: Path) -> None:
    cfg = load_config(run / "config.yaml", weights=run / "model_final.pth")
    assert results_of(cfg) == RESULTS
    cfg.SOLVER.EMA_DECAY = 0.9  # then they are about the average
    assert results_of(cfg) is None
    cfg.MODEL.WEIGHTS = str(run / "model_average.pth")
    assert results_of(cfg) == RESULTS
    cfg.MODEL.WEIGHTS = str(run / "model_best.pth")
    assert results_of(cfg) is None
    predictor = Predictor.from_pretrained(run)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"list\.json is no results\.json of an evaluation"):
        predictor.save_pretrained(tmp_path / "model", results=tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match=r"the file of results absent\.json does not exist"):
        predictor.save_pretrained(tmp_path / "model", results="absent.json")
    assert not (tmp_path / "model").exists()
    assert "61.23" in (predictor.save_pretrained(tmp_path / "model") / "README.md").read_text()


# ---- weights of a run ----


def test_which_weights_a_folder_has(tmp_path: Path) -> None:
    assert weights_in(tmp_path) == tmp_path / "model_final.pth"
    for name in ("model_final.safetensors", "model_final.pth", "model.safetensors"):
        (tmp_path / name).touch()
        assert weights_in(tmp_path) == tmp_path / name


def test_parameters_that_share_memory_are_written(tmp_path: Path) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    model[1].weight = torch.nn.Parameter(model[0].weight.T)
    Checkpointer(model, str(tmp_path)).save_weights("model_best")
    found = read_checkpoint(tmp_path / "model_best.safetensors")["model"]
    torch.testing.assert_close(found, dict(model.state_dict()), rtol=0, atol=0)


# ---- the Hub ----


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_server.Hub]:
    with hub_server.used(tmp_path / "home") as made:
        yield made


def test_to_the_hub_and_back(saved: Path, hub: hub_server.Hub, system: str) -> None:
    first = push(saved, "ann/demo")
    hub.repositories["ann/demo"].commit({"config.yaml": b"MODEL: {META_ARCHITECTURE: Nobody}", "model_final.pth": b"pickle"})
    found = CLASSES[system].from_pretrained("hub:ann/demo", revision=first)
    assert_close(scores(found), scores(Predictor.from_pretrained(saved)))
    with pytest.raises(ValueError, match="'Nobody' is no system"):
        Predictor.from_pretrained("hub:ann/demo")
    assert "model_final.pth" not in hub.fetched()
