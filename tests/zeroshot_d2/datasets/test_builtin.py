"""The papers' data sets: class lists, split lists, folders, counts, and the conversion of tiny releases."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_releases
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy.io import savemat
from tiny_releases import prepare_script as script

from zeroshot_d2 import IGNORE_LABEL, read_label
from zeroshot_d2.datasets.builtin import MULTILABEL_DATASETS, SEM_SEG_DATASETS, load_class_list
from zeroshot_d2.datasets.preparation.jobs import run_jobs, save_label
from zeroshot_d2.datasets.preparation.json_stream import stream_json_arrays
from zeroshot_d2.images import read_label_image
from zeroshot_d2.storage import whole_file

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def names_in_order(dataset: str, record: dict) -> list[str | None]:
    """Names of the label's stripes from left to right; None where it is ignored."""
    meta = MetadataCatalog.get(dataset)
    row = read_label(record["sem_seg_file_name"], meta.label_table)[0]
    starts = np.flatnonzero(np.diff(row.astype(int), prepend=-1))
    return [None if row[i] == IGNORE_LABEL else meta.stuff_classes[row[i]] for i in starts]


# -------------------------------------------------------------------------------------------------- class lists
@pytest.mark.parametrize(
    ("name", "classes", "unseen_values"),
    [
        ("coco_stuff_164k", 171, [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]),
        ("voc2012", 20, [16, 17, 18, 19, 20]),
        ("pascal_context_59", 59, [1, 7, 8, 15, 20, 25, 32, 34, 49, 55]),
        ("pascal_context_459", 459, []),
        ("ade20k_150", 150, []),
        ("ade20k_847", 847, []),
    ],
)
def test_class_lists(name, classes, unseen_values):
    content = load_class_list(name)
    assert len(content.split) == classes == len(set(content.label_values))
    assert sorted(content.label_values[k] for k in content.split.unseen_indices) == unseen_values
    assert not set(content.label_values) & set(content.ignore_values)
    assert content.source
    for text in (*content.split.names, *(s for synonyms in content.split.synonyms for s in synonyms)):
        assert text == text.strip() and "_" not in text


def test_prompts_are_words_and_names_stay_those_of_the_release():
    voc = load_class_list("voc2012").split
    assert voc.synonyms[voc.names.index("tvmonitor")][0] == "tv monitor"
    coco = load_class_list("coco_stuff_164k").split
    assert coco.prompts[coco.names.index("wall-concrete")] == "concrete wall"
    assert not [prompt for prompt in coco.prompts if prompt.endswith(("-other", "-stuff"))]


def test_foreign_spellings_of_trained_classes_are_known():
    """Trained on COCO-Stuff, all 20 classes of VOC are seen ones."""
    coco = load_class_list("coco_stuff_164k").split
    trained = [*coco.names, *coco.prompts]
    voc = load_class_list("voc2012").split
    assert voc.trained_mask(trained).all()
    context = load_class_list("pascal_context_59").split
    unknown = {name for name, known in zip(context.names, context.trained_mask(trained), strict=True) if not known}
    assert not unknown & {"aeroplane", "motorbike", "sofa", "tvmonitor", "diningtable", "sidewalk", "shelves"}
    assert "computer" in unknown


def test_context_59_is_a_part_of_context_459():
    part, whole = load_class_list("pascal_context_59"), load_class_list("pascal_context_459")
    for name, release_id in zip(part.split.names, part.release_ids, strict=True):
        assert whole.split.names[release_id - 1] == {"diningtable": "table"}.get(name, name)


def test_an_unknown_list_is_named():
    with pytest.raises(ValueError, match="no class list 'ade'; there are ade20k_150"):
        load_class_list("ade")


# ------------------------------------------------------------------------------------------------- registration
def test_every_view_has_its_vocabulary_and_protocol():
    expected = {"train_seen": "supervised", "train_all": "supervised", "val": "GZS3", "val_unseen": "ZS3"}
    for release, classes, unseen in (
        ("coco_stuff_164k", 171, 15),
        ("voc2012", 20, 5),
        ("pascal_context_59", 59, 10),
    ):
        sizes = {"train_seen": classes - unseen, "train_all": classes, "val": classes, "val_unseen": unseen}
        for view, protocol in expected.items():
            meta = MetadataCatalog.get(f"{release}_{view}")
            assert meta.protocol == protocol and len(meta.class_split) == sizes[view] == len(meta.stuff_colors)
        seen = MetadataCatalog.get(f"{release}_train_seen").class_split
        whole = MetadataCatalog.get(f"{release}_val").class_split
        assert seen == whole.only_seen() and not set(seen.names) & set(whole.unseen)
        colors = dict(zip(whole.names, MetadataCatalog.get(f"{release}_val").stuff_colors, strict=True))
        only_unseen = MetadataCatalog.get(f"{release}_val_unseen")
        assert only_unseen.stuff_colors == [colors[name] for name in only_unseen.stuff_classes]
    for name in ("pascal_context_459_val", "ade20k_150_val", "ade20k_847_val", "voc2012_val_cross_dataset"):
        meta = MetadataCatalog.get(name)
        assert meta.protocol == "cross-dataset" and meta.class_split.unseen == ()


def test_readme_has_every_name_with_count_classes_and_protocol():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+|not checked) \| (\d+) \| ([\w-]+) \|$",
        (REPOSITORY / "datasets/README.md").read_text(),
        re.M,
    )
    table = {
        name: (None if images == "not checked" else int(images.replace(",", "")), int(classes), protocol)
        for name, images, classes, protocol in rows
    }
    for dataset in (*SEM_SEG_DATASETS, *MULTILABEL_DATASETS):
        meta = MetadataCatalog.get(dataset.name)
        assert table.pop(dataset.name) == (dataset.num_images, len(meta.class_split), meta.protocol)
    assert not table


def test_importing_reads_no_data_file(tmp_path):
    """Names are there after the import; no JSON has been opened and the current folder is left alone."""
    program = (
        "import sys, detectron2.data\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "import zeroshot_d2\n"
        "assert 'ade20k_847_val' in detectron2.data.DatasetCatalog.list()\n"
        "print([path for path in opened if path.endswith('.json')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DETECTRON2_DATASETS": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_missing_folders_say_where_they_were_looked_for(root):
    with pytest.raises(FileNotFoundError, match=f"looked for the folder {root}/coco/val2017"):
        DatasetCatalog.get("coco_stuff_164k_val")
    (root / "VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    (root / "VOCdevkit/VOC2012/SegmentationClassAug").mkdir()
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt .*this makes it: ls SegmentationClassAug"):
        DatasetCatalog.get("voc2012_train_seen")
    (root / "VOCdevkit/VOC2010/JPEGImages").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"made by `python datasets/prepare_pascal_context.py`"):
        DatasetCatalog.get("pascal_context_59_val")


# ------------------------------------------------------------------------ tiny releases in the official formats
def test_coco_stuff_from_the_raw_maps(root, caplog):
    tiny_releases.coco_stuff(root)
    with caplog.at_level(logging.WARNING):
        record = DatasetCatalog.get("coco_stuff_164k_val")[0]
        train = DatasetCatalog.get("coco_stuff_164k_train_seen")
    assert "found 2 images, the whole release has 5000" in caplog.text
    assert "1 of 5 images have no label image" in caplog.text and "000000000099" in caplog.text
    assert names_in_order("coco_stuff_164k_val", record) == ["person", "cow", "wall-concrete"]
    assert names_in_order("coco_stuff_164k_val_unseen", record) == [None, "cow", "wall-concrete"]
    assert len(train) == 4
    assert names_in_order("coco_stuff_164k_train_seen", train[0]) == ["person", None]  # the cow and 255
    assert names_in_order("coco_stuff_164k_train_all", train[0]) == ["person", "cow", None]


def test_voc_with_palette_labels_and_both_kinds_of_list(root):
    tiny_releases.voc2012(root)
    first, second = DatasetCatalog.get("voc2012_val")
    assert names_in_order("voc2012_val", first) == [None, "aeroplane", "tvmonitor", None]
    assert names_in_order("voc2012_val", second) == ["person", "pottedplant"]
    first, second = DatasetCatalog.get("voc2012_train_seen")
    assert first["image_id"] == "2007_000032"
    assert names_in_order("voc2012_train_seen", first) == [None, "person", None]


@pytest.mark.parametrize("workers", [1, 2])
def test_context_59(root, workers, capsys):
    voc = tiny_releases.pascal_context_json(root)
    script("prepare_pascal_context").convert(voc / "trainval_merged.json", voc / "pascal_context_59", workers)
    assert "1 segments of 1 categories outside the 59" in capsys.readouterr().out
    first, second = DatasetCatalog.get("pascal_context_59_train_all")
    assert names_in_order("pascal_context_59_train_all", first) == ["aeroplane", "sky"]
    assert names_in_order("pascal_context_59_train_all", second) == ["car", None]
    assert names_in_order("pascal_context_59_train_seen", first) == [None, "sky"]
    (val,) = DatasetCatalog.get("pascal_context_59_val")
    assert names_in_order("pascal_context_59_val", val) == ["dog", None]


def test_context_59_continues_and_rejects_a_wrong_size(root):
    voc, prepare = tiny_releases.pascal_context_json(root), script("prepare_pascal_context")
    output = voc / "pascal_context_59"
    save_label(output / "labels/2008_000002.png", np.full((4, 6), 7))
    prepare.convert(voc / "trainval_merged.json", output)
    assert read_label_image(output / "labels/2008_000002.png").max() == 7  # was there: not done again
    content = json.loads((voc / "trainval_merged.json").read_text())
    content["annos_segmentation"][2]["segmentation"] = {"size": [3, 3], "counts": [0, 9]}
    (voc / "trainval_merged.json").write_text(json.dumps(content))
    (output / "labels/2008_000003.png").unlink()
    with pytest.raises(ValueError, match="2008_000003: a mask of"):
        prepare.convert(voc / "trainval_merged.json", output)


def test_context_59_without_or_with_half_a_json(root):
    prepare = script("prepare_pascal_context")
    with pytest.raises(FileNotFoundError, match="trainval_merged.json not found"):
        prepare.convert(root / "trainval_merged.json", root / "out")
    voc = tiny_releases.pascal_context_json(root)
    text = (voc / "trainval_merged.json").read_text()
    (voc / "trainval_merged.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="ends in the middle"):
        prepare.convert(voc / "trainval_merged.json", root / "out")
    assert not (root / "out").exists()


def test_context_459(root):
    tiny_releases.pascal_context_459(root)
    (record,) = DatasetCatalog.get("pascal_context_459_val")
    assert names_in_order("pascal_context_459_val", record) == [None, "accordion", "wool", "plume"]


def test_context_459_downloads_that_are_wrong(root):
    voc, prepare = tiny_releases.pascal_context_json(root), script("prepare_pascal_context_459")
    arguments = voc / "trainval", voc / "trainval_merged.json", voc / "pascal_context_459"
    with pytest.raises(FileNotFoundError, match="the folder of the .mat files not found"):
        prepare.convert(*arguments)
    (voc / "trainval").mkdir()
    savemat(voc / "trainval/2008_000003.mat", {"LabelMap": np.ones((2, 2), dtype=np.uint16)})
    with pytest.raises(FileNotFoundError, match=r"2 of 3 label files are missing.*2008_000002\.mat"):
        prepare.convert(*arguments)
    (voc / "trainval_merged.json").unlink()
    with pytest.raises(FileNotFoundError, match="trainval_merged.json not found"):
        prepare.convert(*arguments)


def test_context_459_damaged_files_are_named(root):
    prepare = script("prepare_pascal_context_459")
    savemat(root / "a.mat", {"Other": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="a.mat has no LabelMap"):
        prepare.rewrite((root / "a.mat", root / "a.png"))
    savemat(root / "a.mat", {"LabelMap": np.full((2, 2), 460)})
    with pytest.raises(ValueError, match="460 is larger"):
        prepare.rewrite((root / "a.mat", root / "a.png"))
    (root / "a.mat").write_bytes((root / "a.mat").read_bytes()[:150])
    with pytest.raises(ValueError, match="a.mat is unreadable or truncated"):
        prepare.rewrite((root / "a.mat", root / "a.png"))


def test_ade_150_as_released(root):
    tiny_releases.ade20k_150(root)
    assert names_in_order("ade20k_150_val", DatasetCatalog.get("ade20k_150_val")[0]) == [None, "wall", "flag"]


def test_ade_847_from_colour_coded_segmentations(root):
    tiny_releases.ade20k_847(root)
    (record,) = DatasetCatalog.get("ade20k_847_val")
    assert names_in_order("ade20k_847_val", record) == ["wall", "building", None]
    with Image.open(record["file_name"]) as image:
        assert image.size == (tiny_releases.WIDTH // 2, tiny_releases.HEIGHT // 2)
        assert read_label_image(record["sem_seg_file_name"]).shape == image.size[::-1]
    release = root / "ADE20K_2021_17_01"
    with pytest.raises(FileNotFoundError, match="no image found below"):
        script("prepare_ade20k_847").convert(release, release / "ade20k_847", "training")


def test_ade_847_missing_segmentation_is_named(root):
    tiny_releases.save_photo(root / "x.jpg")
    with pytest.raises(ValueError, match="x.jpg or its _seg.png"):
        script("prepare_ade20k_847").rewrite((root / "x.jpg", root / "o.jpg", root / "o.png", 0))


# -------------------------------------------------------------------------------------------------- preparation
def test_a_half_written_file_never_gets_the_final_name(tmp_path):
    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), whole_file(tmp_path / "sub" / "x.txt") as temporary:
        Path(temporary).write_text("half")
        raise Interrupted
    assert list((tmp_path / "sub").iterdir()) == []
    with whole_file(tmp_path / "x.txt") as temporary:
        Path(temporary).write_text("whole")
    assert (tmp_path / "x.txt").read_text() == "whole"


def test_labels_are_8_or_16_bit(tmp_path):
    for values, mode in (([[0, 255]], "L"), ([[0, 256]], "I;16")):
        save_label(tmp_path / "x.png", np.array(values))
        with Image.open(tmp_path / "x.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), values)
    with pytest.raises(ValueError, match="65536"):
        save_label(tmp_path / "x.png", np.array([[65536]]))


def _fail_on_three(job: int) -> None:
    if job == 3:
        raise ValueError("job three is damaged")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_not_swallowed(workers):
    run_jobs(_fail_on_three, [1, 2], workers, "test")
    with pytest.raises(ValueError, match="job three"):
        run_jobs(_fail_on_three, list(range(20)), workers, "test")
    with pytest.raises(ValueError, match="got 0"):
        run_jobs(_fail_on_three, [1], 0, "test")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streamed_json_equals_parsed_json(tmp_path, chunk):
    content = {
        "info": {"text": 'a "quoted" [bracket], {brace} and \\', "n": -1.5e3},
        "a": [{"x": [1, 2, {"y": "é"}]}, 12345, -0.25, "z", None, True, []],
        "empty": [],
        "last": 12,
    }
    (tmp_path / "x.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    assert [e for _, e in stream_json_arrays(tmp_path / "x.json", ("a", "empty"), chunk)] == content["a"]


def test_bad_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2')
    with pytest.raises(ValueError, match="ends in the middle"):
        list(stream_json_arrays(tmp_path / "x.json", ("a",)))
    (tmp_path / "x.json").write_text('{"a": [1]}')
    with pytest.raises(ValueError, match=r"no array \['b'\]; it has \['a'\]"):
        list(stream_json_arrays(tmp_path / "x.json", ("b",)))
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        list(stream_json_arrays(tmp_path / "x.json", ("b",)))
    with pytest.raises(FileNotFoundError, match="gone.json"):
        list(stream_json_arrays(tmp_path / "gone.json", ("b",)))
