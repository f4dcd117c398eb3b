"""Checkpoints: what they say about themselves, which are refused and how, and that writing is all or nothing."""

import io
import logging
import os
import pickle
import subprocess
import sys
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
    checkpoints_in,
    newest_whole_checkpoint,
    read_checkpoint,
    read_record,
    read_run,
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


def test_names_of_compiled_models_are_understood(tmp_path):
    model, other = Model(), Model()
    compiled = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": compiled}, tmp_path / "a.pth")
    Checkpointer(other).load(str(tmp_path / "a.pth"))
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounded_weights_load_and_say_so(tmp_path, dtype, caplog):
    model, other = Model(), Model()
    torch.save({"model": {name: value.to(dtype) for name, value in model.state_dict().items()}}, tmp_path / "a.pth")
    Checkpointer(other).load(str(tmp_path / "a.pth"))
    assert other.head.weight.dtype == torch.float32 and f"holds weights in {dtype}: they are used in float32" in caplog.text
    torch.testing.assert_close(other.head.weight, model.head.weight, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


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


@pytest.fixture
def run_folder(tmp_path):
    """A folder with the checkpoints of iterations 1, 2 and 3."""
    checkpointer = Checkpointer(Model(), str(tmp_path), record=RECORD)
    for number in (1, 2, 3):
        checkpointer.save(f"model_{number:07d}", iteration=number)
    return tmp_path


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("tag", ["model_0000003.pth", "", "model_0000009.pth", "../other.pth", "weights.pkl", None])
def test_the_newest_whole_checkpoint_is_found_whatever_the_tag_says(run_folder, tag):
    (run_folder / "last_checkpoint").unlink()
    if tag is not None:
        (run_folder / "last_checkpoint").write_text(tag)
    assert newest_whole_checkpoint(run_folder) == run_folder / "model_0000003.pth"


@pytest.mark.parametrize("damage", [cut, lambda file: file.write_bytes(b""), lambda file: file.write_text("<html>")])
def test_a_damaged_checkpoint_is_passed_over_and_named(run_folder, damage, caplog):
    damage(run_folder / "model_0000003.pth")
    assert newest_whole_checkpoint(run_folder) == run_folder / "model_0000002.pth"
    assert "passed over: the checkpoint" in caplog.text and "model_0000003.pth" in caplog.text
    model = Model()
    assert Checkpointer(model, str(run_folder)).resume_or_load("", resume=True)["iteration"] == 2


def test_a_changed_byte_is_noticed(run_folder):
    file = run_folder / "model_0000003.pth"
    weight = torch.load(file, weights_only=True)["model"]["head.weight"].numpy().tobytes()
    content = file.read_bytes()
    assert content.count(weight) == 1
    file.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    assert newest_whole_checkpoint(run_folder) == run_folder / "model_0000002.pth"


def test_a_checkpoint_written_behind_the_tag_counts(run_folder):
    """A run can be killed between the two."""
    (run_folder / "last_checkpoint").write_text("model_0000002.pth")
    assert newest_whole_checkpoint(run_folder) == run_folder / "model_0000003.pth"


def test_files_of_an_earlier_run_do_not_count(run_folder):
    (run_folder / "model_0000009.pth").write_bytes((run_folder / "model_0000001.pth").read_bytes())
    os.utime(run_folder / "model_0000009.pth", (1, 1))
    assert newest_whole_checkpoint(run_folder) == run_folder / "model_0000003.pth"


def test_without_a_whole_checkpoint_the_way_out_is_said(run_folder, tmp_path_factory):
    assert newest_whole_checkpoint(tmp_path_factory.mktemp("empty")) is None
    torch.save({"model": Model().state_dict()}, run_folder / "model_0000002.pth")
    for number in (1, 3):
        cut(run_folder / f"model_000000{number}.pth")
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints in .* can be resumed from: .*Start anew"):
        newest_whole_checkpoint(run_folder)


def test_older_checkpoints_are_pruned(tmp_path):
    checkpointer = Checkpointer(Model(), str(tmp_path), record=RECORD, keep=2)
    (tmp_path / "model_mine.pth").write_text("not one of the run's")
    for number in range(5):
        checkpointer.save(f"model_{number:07d}", iteration=number)
    checkpointer.save("model_final", iteration=4)
    final = ["model_final.pth", "model_final.safetensors"]
    names = ["last_checkpoint", "model_0000003.pth", "model_0000004.pth", *final, "model_mine.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(ValueError, match="SOLVER.CHECKPOINT_KEEP must be 0 .*, got -1"):
        Checkpointer(Model(), keep=-1)


@pytest.mark.parametrize("name", ["model_final", "model_best", "model_average"])
def test_what_people_take_away_is_written_as_safetensors_too(tmp_path, name):
    model = Model()
    checkpointer = Checkpointer(model, str(tmp_path), record=RECORD)
    checkpointer.save(name, iteration=3) if name == "model_final" else checkpointer.save_weights(name)
    file = tmp_path / f"{name}.safetensors"
    assert read_record(file) == RECORD
    torch.testing.assert_close(read_checkpoint(file)["model"], model.state_dict(), rtol=0, atol=0)
    other = Model()
    Checkpointer(other).load(str(file))
    assert torch.equal(other.head.weight, model.head.weight)


def test_no_run_goes_on_from_safetensors(tmp_path, caplog):
    checkpointer = Checkpointer(Model(), str(tmp_path), record=RECORD, keep=1)
    for number in (1, 2):
        checkpointer.save(f"model_{number:07d}", iteration=number)
    checkpointer.save("model_final", iteration=3)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_final.safetensors")
    assert checkpoints_in(tmp_path) == [tmp_path / "model_0000002.pth"]
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "model_0000002.pth"
    assert read_run(tmp_path / "model_final.safetensors") is None


def test_whoever_has_the_checkpoint_has_the_safetensors(tmp_path, monkeypatch):
    """A run that is killed between the two writes both again."""
    monkeypatch.setattr(torch, "save", lambda content, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Checkpointer(Model(), str(tmp_path), record=RECORD).save("model_final")
    assert [path.name for path in tmp_path.iterdir()] == ["model_final.safetensors"]


@pytest.mark.parametrize("name", ["model", "model_final"])
def test_a_full_disk_is_said_with_the_file(tmp_path, name):
    """The limit on the size of files stands for the disk: writing ends in the middle."""
    ending = {"model": "pth", "model_final": "safetensors"}[name]  # the first of them
    code = f"""
import resource, signal, torch
from zeroshot_d2.checkpoint import Checkpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
Checkpointer(torch.nn.Linear(500, 500), {str(tmp_path)!r}).save({name!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"cannot write {tmp_path}/{name}.{ending}: " in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


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
