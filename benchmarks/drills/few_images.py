"""``--import benchmarks.drills.few_images``: the first three images of the demo world's test sets, as data sets."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

FEW = 3


def register(name: str, source: str) -> None:
    """``name`` has the first images of the data set ``source``."""

    def records() -> list[dict[str, Any]]:
        every = DatasetCatalog.get(source)
        return [{**every[index], "dataset_name": name} for index in range(FEW)]

    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(
        **{key: value for key, value in MetadataCatalog.get(source).as_dict().items() if key != "name"}
    )


for kind, demo in (("segmentation", "demo_world_val"), ("tags", "demo_world_multilabel_test")):
    register(f"drill_few_{kind}", demo)
