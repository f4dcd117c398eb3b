"""Checkpoints: what they say about themselves, which are refused and how, and that writing is all or nothing."""

import io
import logging
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from zeroshot_d2 import ClassSplit, register_multilabel
from zeroshot_d2.checkpoint import (
    ENTRY,
    Checkpointer,
    Knowledge,
    ModelRecord,
    check_record,
    read_checkpoint,
    read_record,
)
from zeroshot_d2.frozen import leave_out_frozen

SPLIT = ClassSplit(["cat", "tvmonitor", "sheep"], ["sheep"], ["cat|kitten", "tv monitor", "sheep"], ["", "television", ""])
CLIP = {"CLIP": {"name": "small", "pretrained": "a.pt", "sha256": "1" * 64}}
RECORD = ModelRecord("Toy", SPLIT, ("cat", "kitten"), CLIP)
TRAIN, TEST = "test_checkpoint_train", "test_checkpoint_test"


class Model(nn.Module):
    def __init__(self, frozen=CLIP, width=2) -> None:
        super().__init__()
        self.clip, self.head = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, width)
        leave_out_frozen(self, ["clip"], frozen)


@pytest.fixture
def file(tmp_path) -> Path:
    """A checkpoint with a record."""
    Checkpointer(Model(), str(tmp_path), record=RECORD).save("model")
    return tmp_path / "model.pth"


@pytest.fixture
def registered():
    """A data set to train on, of seen classes, and one to test on."""
    register_multilabel(TRAIN, SPLIT, "", {"a": ["cat"]}, vocabulary="seen")
    register_multilabel(TEST, SPLIT, "", {"a": ["cat"]})
    yield
    for name in (TRAIN, TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(weights: Path | str = "", train: tuple[str, ...] = (), test: tuple[str, ...] = ()) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.MODEL.META_ARCHITECTURE = str(weights), "Toy"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    return cfg


# ---- the record ----


@pytest.mark.parametrize("record", [RECORD, ModelRecord("Toy"), ModelRecord("Toy", None, ("ä",), {})])
def test_a_record_comes_back_from_its_file(tmp_path, record):
    assert ModelRecord.from_dict(record.to_dict()) == record
    Checkpointer(Model(), str(tmp_path), record=record).save("model")
    assert read_record(tmp_path / "model.pth") == record


def test_weights_of_others_have_none(tmp_path):
    torch.save({"model": Model().state_dict()}, tmp_path / "a.pth")
    torch.save(Model().state_dict(), tmp_path / "b.pth")
    assert read_record(tmp_path / "a.pth") is None and read_record(tmp_path / "b.pth") is None


@pytest.mark.parametrize(
    "entry", [3, {}, {"system": "Toy"}, {**RECORD.to_dict(), "vocabulary": 3}, {**RECORD.to_dict(), "vocabulary": {}}]
)
def test_a_record_that_says_nothing_is_refused(tmp_path, entry):
    torch.save({"model": Model().state_dict(), ENTRY: entry}, tmp_path / "odd.pth")
    for read in (read_record, Checkpointer(Model()).load):
        with pytest.raises(ValueError, match=r"the record in the checkpoint .*odd\.pth is not one that this version writes"):
            read(str(tmp_path / "odd.pth"))


def test_the_record_of_a_training_has_the_classes_of_its_data(registered):
    record = ModelRecord.for_training(config(train=(TRAIN,), test=(TEST,)), Model())
    assert record.system == "Toy" and record.vocabulary == SPLIT and record.frozen == CLIP
    assert record.trained == ("cat", "kitten", "tv monitor", "tvmonitor")
    assert ModelRecord.for_training(config(train=(TRAIN,)), Model()).vocabulary == SPLIT.only_seen()
    assert ModelRecord.for_training(config(train=("absent",)), nn.Linear(1, 1)) == ModelRecord("Toy")


def test_what_the_weights_knew_before_is_still_known(registered, tmp_path):
    before = ModelRecord("Toy", None, ("zebra",), CLIP)
    Checkpointer(Model(), str(tmp_path), record=before).save("model")
    record = ModelRecord.for_training(config(tmp_path / "model.pth", train=(TRAIN,)), Model())
    assert record.trained == ("cat", "kitten", "tv monitor", "tvmonitor", "zebra")


# ---- knowledge ----


def test_without_weights_the_registered_data_sets_say_it(registered):
    knowledge = Knowledge.of_config(config(train=(TRAIN,), test=(TEST,)))
    assert knowledge == Knowledge(frozenset({"cat", "kitten", "tv monitor", "tvmonitor"}), SPLIT)
    assert Knowledge.of_config(config(train=(TRAIN,))).vocabulary is None
    with pytest.raises(ValueError, match="no data set 'absent' is registered: `--import FILE`"):
        Knowledge.of_config(config(train=("absent",)))


def test_the_record_makes_up_for_data_sets_that_are_not_registered(file):
    assert Knowledge.of_config(config(file, ("absent",), ("gone",))) == Knowledge(frozenset({"cat", "kitten"}), SPLIT)
    assert Knowledge.of_config(config(file)).vocabulary == SPLIT


def test_the_record_alone_says_what_was_trained(file, registered):
    """The config may name other training data than the checkpoint saw."""
    knowledge = Knowledge.of_config(config(file, (TRAIN,), (TRAIN,)))
    assert knowledge.trained == {"cat", "kitten"} and knowledge.vocabulary == SPLIT.only_seen()


def test_other_frozen_weights_are_refused_before_anything_is_loaded(file):
    Knowledge.of_config(config(file), CLIP)
    with pytest.raises(ValueError, match="trained with the CLIP"):
        Knowledge.of_config(config(file), {"CLIP": {"sha256": "2"}})


# ---- comparing ----


def test_equal_weights_from_elsewhere_are_the_same(file, caplog):
    with caplog.at_level(logging.WARNING, logger="zeroshot_d2"):
        Checkpointer(Model({"CLIP": {"pretrained": "elsewhere.pt", "sha256": "1" * 64}})).load(str(file))
    assert not caplog.records


@pytest.mark.parametrize("ours", [{"CLIP": {"name": "large", "sha256": "2" * 64}}, {"words": {"sha256": "1" * 64}}])
def test_other_frozen_weights_are_refused(file, ours):
    with pytest.raises(ValueError, match=r"was trained with the (CLIP|words) .*this model has .*config\.yaml beside"):
        Checkpointer(Model(ours)).load(str(file))


def test_both_sides_are_described():
    with pytest.raises(
        ValueError, match=r"\{'name': 'small', 'pretrained': 'a\.pt'\} \(111111111111\), this model has .*22"
    ):
        check_record(RECORD, {"CLIP": {"name": "large", "sha256": "22"}}, "a.pth")


def test_weights_without_a_record_are_taken_with_a_warning(tmp_path, caplog):
    torch.save({"model": Model().state_dict()}, tmp_path / "mean.pth")
    target = Model()
    with caplog.at_level(logging.WARNING, logger="zeroshot_d2"):
        Checkpointer(target).load(str(tmp_path / "mean.pth"))
    assert "mean.pth does not say which CLIP it was trained with" in caplog.text
    caplog.clear()
    check_record(None, {}, "mean.pth")  # a model with nothing frozen
    assert not caplog.records


def test_bare_weights_are_taken(tmp_path):
    source, target = Model(), Model()
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    Checkpointer(target).load(str(tmp_path / "bare.pth"))
    assert torch.equal(target.head.weight, source.head.weight)


@pytest.mark.parametrize("width", [3, 4])
def test_weights_of_another_shape_are_refused(file, width):
    with pytest.raises(ValueError, match=r"lacks 2 weights of Model or has them in another shape.*'head\.weight'"):
        Checkpointer(Model(width=width)).load(str(file))


def test_detectron2s_own_checkpointer_reads_it(file):
    target = Model()
    DetectionCheckpointer(target).load(str(file))
    assert torch.equal(target.head.weight, read_checkpoint(file)["model"]["head.weight"])


# ---- files that are refused ----


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    content = {"model": Model().state_dict(), "extra": Touch(str(tmp_path / "made"))}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pth holds more than tensors, .*; nothing in it was run"):
        read_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content["extra"]))
    with pytest.raises(ValueError, match=r"plain\.pth"):
        read_checkpoint(tmp_path / "plain.pth")
    assert not (tmp_path / "made").exists()


def test_a_pickle_is_refused_by_its_name(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"model\.pkl is a pickle, which can run code: convert it"):
        read_checkpoint(tmp_path / "model.pkl")
    with pytest.raises(ValueError, match="is a pickle"):
        Checkpointer(Model()).load(str(tmp_path / "model.pkl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: the run or the download was cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "only a pointer of Git LFS: .*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b'{"error": "no such file"}', "or is no checkpoint|is damaged"),
        (b"PK\x03\x04" + bytes(200), "is damaged or cut off"),
        (bytes(1000), "or is no checkpoint|is damaged"),
    ],
)
def test_downloads_that_went_wrong(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"the checkpoint .*a\.pth .*({message})"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_files_are_named(tmp_path, zipped, share):
    torch.save({"model": {"a": torch.randn(2000)}}, tmp_path / "cut.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    for mapped in (False, True):
        with pytest.raises(ValueError, match=r"the checkpoint .*cut\.pth (is damaged|holds more than)"):
            read_checkpoint(tmp_path / "cut.pth", mapped=mapped)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "photos")
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not named weights"),
        (torch.zeros(1), "holds a Tensor, not named weights"),
        ({"model": torch.zeros(1)}, "holds a Tensor as its model"),
        ({"model": {"frozen_record": torch.zeros(3, dtype=torch.uint8)}}, "was written by version 0.1.0: train again"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"the checkpoint .*a\.pth {message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"the checkpoint absent\.pth does not exist \(looked for it from {tmp_path}\)"
    ):
        read_checkpoint("absent.pth")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_both_of_torchs_formats_are_read(tmp_path, zipped, mapped):
    weights = {"a": torch.randn(3)}
    torch.save({"model": weights, "iteration": 7}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(tmp_path / "a.pth", mapped=mapped)
    assert content["iteration"] == 7 and torch.equal(content["model"]["a"], weights["a"])


# ---- writing ----


def test_the_last_checkpoint_is_named_and_found_again(tmp_path):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    checkpointer = Checkpointer(model, str(tmp_path / "new"), record=RECORD, optimizer=optimizer)
    checkpointer.save("model_1", iteration=1)
    checkpointer.save("model_2", iteration=2)
    names = ["last_checkpoint", "model_1.pth", "model_2.pth"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert (tmp_path / "new/last_checkpoint").read_text() == "model_2.pth"
    other = Model()
    again = Checkpointer(other, str(tmp_path / "new"), optimizer=torch.optim.SGD(other.parameters(), 0.5, momentum=0.9))
    rest = again.resume_or_load("", resume=True)
    assert rest["iteration"] == 2 and again.checkpointables["optimizer"].param_groups[0]["lr"] == 0.1
    assert torch.equal(other.head.weight, model.head.weight)


def test_only_the_main_process_writes(tmp_path):
    Checkpointer(Model(), str(tmp_path), save_to_disk=False).save("model")
    Checkpointer(Model()).save("model")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpointer = Checkpointer(Model(), str(tmp_path), record=RECORD)
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def full_disk(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    for name in ("model", "model_2"):
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save(name)
    assert (tmp_path / "model.pth").read_bytes() == before and (tmp_path / "last_checkpoint").read_text() == "model.pth"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_a_checkpoint_holds_what_a_careful_reader_takes(file):
    content = torch.load(io.BytesIO(file.read_bytes()), weights_only=True)
    assert set(content) == {"model", ENTRY} and set(content["model"]) == {"head.weight", "head.bias"}
