"""The papers' data sets: class lists, split lists, folders, counts."""

import csv
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_releases
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_releases import names_in_order

from zeroshot_d2.datasets.builtin import MULTILABEL_DATASETS, SEM_SEG_DATASETS, load_class_list

REPOSITORY = Path(__file__).parents[3]
SHARED = REPOSITORY.parent / "shared" / "data"


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
    assert coco.released == coco.names and voc.released == voc.names  # as SAN gives them to CLIP


def test_released_names_of_ade20k_are_one_text_with_all_synonyms():
    small, large = (load_class_list(f"ade20k_{n}").split for n in (150, 847))
    assert small.released[small.names.index("road")] == "road, route"
    assert large.released[large.names.index("toilet")].startswith("toilet, can, commode")
    for split in (small, large):
        different = [k for k in range(len(split)) if split.released[k] != split.prompts[k]]
        assert different == [k for k, synonyms in enumerate(split.synonyms) if len(synonyms) > 1]


def test_released_names_of_open_images_have_no_mid():
    images = load_class_list("open_images_v4").split
    assert images.released == images.prompts and not [text for text in images.released if "/m/" in text]


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


def test_multilabel_class_lists():
    nus, images = load_class_list("nus_wide"), load_class_list("open_images_v4")
    assert (len(nus.split.seen), len(nus.split.unseen)) == (925, 81) and nus.class_ids == nus.split.names
    assert (len(images.split.seen), len(images.split.unseen)) == (7186, 400)
    assert len(set(images.class_ids)) == 7586 and all(mid.startswith("/m/") for mid in images.class_ids)
    assert all(text == text.strip() for text in (*images.split.names, *images.split.prompts))
    collided = [k for k, name in enumerate(images.split.names) if name.startswith("Snowshoe (")]
    assert len(collided) == 2 and {images.split.prompts[k] for k in collided} == {"Snowshoe"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official lists are not there")
def test_class_lists_against_the_official_files():
    tags = (SHARED / "nus_wide/TagList1k.txt").read_text().split()
    concepts = (SHARED / "nus_wide/Concepts81.txt").read_text().split()
    split = load_class_list("nus_wide").split
    assert split.unseen == tuple(concepts) and split.seen == tuple(t for t in tags if t not in set(concepts))
    folder = SHARED / "open_images_v4"
    with open(folder / "class-descriptions.csv", encoding="utf-8", newline="") as file:
        description = dict(csv.reader(file))
    trainable = (folder / "classes-trainable.txt").read_text().split()
    candidates = (folder / "unseen_labels.txt").read_text().split()
    top = [candidates[int(k)] for k in (folder / "top_400_unseen.csv").read_text(encoding="utf-8-sig").split()]
    content = load_class_list("open_images_v4")
    assert content.class_ids == (*trainable, *top) and not set(trainable) & set(top)
    assert content.split.prompts == tuple(description[mid].strip() for mid in content.class_ids)


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


def test_multilabel_vocabularies():
    sizes = {d.name: len(MetadataCatalog.get(d.name).class_split) for d in MULTILABEL_DATASETS}
    assert sizes == {
        "nus_wide_train": 925,
        "nus_wide_test": 1006,
        "nus_wide_81_train": 81,
        "nus_wide_81_test": 81,
        "open_images_v4_train": 7186,
        "open_images_v4_train_boxes": 7186,
        "open_images_v4_val": 7586,
        "open_images_v4_test": 7586,
    }
    assert MetadataCatalog.get("open_images_v4_test").protocol == "GZSL"


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


@pytest.mark.slow
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
    with pytest.raises(FileNotFoundError, match=r"made by `python -m zeroshot_d2 datasets prepare pascal_context`"):
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


def test_ade_150_as_released(root):
    tiny_releases.ade20k_150(root)
    assert names_in_order("ade20k_150_val", DatasetCatalog.get("ade20k_150_val")[0]) == [None, "wall", "flag"]
