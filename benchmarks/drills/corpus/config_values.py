"""Config values out of their range, each given to the verb that takes it, with data of a few images."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zeroshot_d2.demo_world import SPLIT, render

from .case import Case, command, finished_run, write

KIND = "config_values"

ALIGNZEG, EPSILON = "MODEL.ALIGNZEG", "MODEL.EPSILON"
# Values that cannot mean anything, by key; the trainer's and the tasks' are tried with AlignZeg unless the key is Epsilon's.
FAULTY: dict[str, Sequence[object]] = {
    "SOLVER.MAX_ITER": (0, -5),
    "SOLVER.MAX_EPOCHS": (-1,),
    "SOLVER.IMS_PER_BATCH": (0, -2),
    "SOLVER.BASE_LR": (0.0, -1e-3, "1e999"),
    "SOLVER.BIAS_LR_FACTOR": (-1.0,),
    "SOLVER.CHECKPOINT_PERIOD": (0, -1),
    "SOLVER.OPTIMIZER": ("ADAMM", ""),
    "SOLVER.MOMENTUM": (-0.1, 1.5),
    "SOLVER.WEIGHT_DECAY": (-0.1,),
    "SOLVER.WEIGHT_DECAY_NORM": (-0.1,),
    "SOLVER.WEIGHT_DECAY_EMBED": (-0.1,),
    "SOLVER.WEIGHT_DECAY_EMBED_NAMES": ("[1]",),
    "SOLVER.GAMMA": (-0.5, 0.0),
    "SOLVER.STEPS": ("(-3,)", "('a',)"),
    "SOLVER.STEPS_EPOCHS": ("[-1]",),
    "SOLVER.LR_SCHEDULER_NAME": ("Cosine", ""),
    "SOLVER.POLY_LR_POWER": (-1.0,),
    "SOLVER.POLY_LR_CONSTANT_ENDING": (-0.1, 2.0),
    "SOLVER.WARMUP_ITERS": (-1,),
    "SOLVER.WARMUP_FACTOR": (-0.5, 1.5),
    "SOLVER.WARMUP_METHOD": ("cosine",),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("all",),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0.0, -1.0),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (-2.0,),
    "SEED": (-2, 2**40),
    "OUTPUT_DIR": ("",),
    "MODEL.DEVICE": ("gpu", "cuda:one", ""),
    "MODEL.BACKBONE.NAME": ("ResNet",),
    "MODEL.PIXEL_MEAN": ("[0.0]", "['a', 'b', 'c']"),
    "MODEL.PIXEL_STD": ("[1.0, 0.0, 1.0]", "[1.0, 1.0, 1.0, 1.0]"),
    "MODEL.WEIGHTS": ("absent.pth", "https://example.org/model.pth"),
    "DATASETS.TRAIN": ("()", "('absent',)", "(3,)", "('demo_world_multilabel_train',)"),
    "DATASETS.TEST": ("('absent',)", "('demo_world_multilabel_test',)", "('fuzz', 'fuzz')"),
    "DATALOADER.NUM_WORKERS": (-1,),
    "DATALOADER.SAMPLER_TRAIN": ("RepeatFactorTrainingSampler",),
    "DATALOADER.ASPECT_RATIO_GROUPING": (True,),
    "INPUT.FORMAT": ("GBR", "L", ""),
    "INPUT.RANDOM_FLIP": ("both",),
    "INPUT.MAX_PIXELS": (0, -1),
    "INPUT.MIN_SIZE_TRAIN": ("()", "(0,)", "(-64,)", "(6.5,)"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("random", "range"),
    "INPUT.MAX_SIZE_TRAIN": (0, -1),
    "INPUT.MIN_SIZE_TEST": (-1,),
    "INPUT.MAX_SIZE_TEST": (0,),
    "INPUT.CROP.SIZE": ("[0, 64]", "[64]", "[0.5, 0.5]"),
    "INPUT.CROP.TYPE": ("relative", "relative_range"),
    "TEST.EVAL_PERIOD": (-1,),
    "TEST.IMS_PER_BATCH": (0, -1),
    "TEST.AUG.ENABLED": (True,),
    "TEST.PRECISE_BN.ENABLED": (True,),
    f"{ALIGNZEG}.CLIP.NAME": ("ViT-B16", ""),
    f"{ALIGNZEG}.CLIP.PRETRAINED": ("opnai", "absent.pt", "https://example.org/clip.pt"),
    f"{ALIGNZEG}.CLIP.RESOLUTION": (0.0, -1.0, 0.3),
    f"{ALIGNZEG}.CLIP.TAP": (0, -1, 6),
    f"{ALIGNZEG}.CLIP.NUM_PROMPTS": (-1,),
    f"{ALIGNZEG}.CLIP.PROMPT_DROPOUT": (-0.1, 1.0),
    f"{ALIGNZEG}.CLIP.NAMES": ("short",),
    f"{ALIGNZEG}.CLIP.TEMPLATES": ("coco", ""),
    f"{ALIGNZEG}.IMAGE_ENCODER.IMAGE_SIZE": (0, -64, 65),
    f"{ALIGNZEG}.IMAGE_ENCODER.PATCH_SIZE": (0, -4, 5),
    f"{ALIGNZEG}.IMAGE_ENCODER.WIDTH": (0, 97),
    f"{ALIGNZEG}.IMAGE_ENCODER.DEPTH": (0, -1),
    f"{ALIGNZEG}.IMAGE_ENCODER.NUM_HEADS": (0, 5),
    f"{ALIGNZEG}.IMAGE_ENCODER.DROP_PATH_RATE": (-0.1, 1.0),
    f"{ALIGNZEG}.PIXEL_DECODER.NAME": ("MaskFormer", ""),
    f"{ALIGNZEG}.PIXEL_DECODER.NUM_QUERIES": (0, -1, 4),
    f"{ALIGNZEG}.PIXEL_DECODER.NUM_HEADS": (0, 7),
    f"{ALIGNZEG}.PIXEL_DECODER.MLP_RATIO": (0.0, -1.0),
    f"{ALIGNZEG}.PIXEL_DECODER.DECODER_LAYERS": (0,),
    f"{ALIGNZEG}.PIXEL_DECODER.DECODER_HEADS": (0,),
    f"{ALIGNZEG}.SEMANTIC_DECODER.NAME": ("None",),
    f"{ALIGNZEG}.SEMANTIC_DECODER.NUM_LAYERS": (0, -1, 6, 60),
    f"{ALIGNZEG}.GEPC.NUM_BACKGROUND_PROTOTYPES": (0,),
    f"{ALIGNZEG}.GEPC.ALPHA": (0.0, -3.0),
    f"{ALIGNZEG}.PBC.POSTPROCESSOR": ("None", "pbc"),
    f"{ALIGNZEG}.PBC.TOP_K": (0, -1, 17),
    f"{ALIGNZEG}.PBC.GAMMA": (-0.1,),
    f"{ALIGNZEG}.LOSS.CE_WEIGHT": (-1.0,),
    f"{ALIGNZEG}.LOSS.NO_OBJECT_WEIGHT": (-0.1,),
    f"{ALIGNZEG}.LOSS.NUM_POINTS": (-1,),
    f"{ALIGNZEG}.LOSS.OVERSAMPLE_RATIO": (0.0, 0.5),
    f"{ALIGNZEG}.LOSS.IMPORTANCE_SAMPLE_RATIO": (-0.1, 1.5),
    f"{ALIGNZEG}.TEST.OUTPUT": ("label",),
    f"{ALIGNZEG}.TEST.CHUNK_PIXELS": (-1,),
    "INPUT.IMAGE_SIZE": (0, -64, 65),
    "INPUT.CROP_SCALE": ("(0.0, 1.0)", "(0.9, 0.5)", "(0.5, 1.5)", "(0.5,)"),
    "TEST.TOP_K": ("()", "(0,)", "(-1,)", "(3, 3)", "(1000,)", "(2.5,)"),
    f"{EPSILON}.NUM_GROUPS": (0, -1),
    f"{EPSILON}.BACKBONE.NAME": ("vit_base", ""),
    f"{EPSILON}.BACKBONE.PRETRAINED": ("in21k", "absent.pth"),
    f"{EPSILON}.BACKBONE.TAP": (-1, 60),
    f"{EPSILON}.GPA.ENCODER_LAYERS": (0, -1),
    f"{EPSILON}.GPA.ENCODER_HEADS": (0, 7),
    f"{EPSILON}.GPA.ENCODER_FFN": (0,),
    f"{EPSILON}.GPA.DROPOUT": (-0.1, 1.5),
    f"{EPSILON}.GFP.MLP_RATIO": (0.0, -1.0, 1e-6),
    f"{EPSILON}.LABEL_EMBEDDINGS.SOURCE": ("glove",),
    f"{EPSILON}.LABEL_EMBEDDINGS.FILE": ("absent.txt",),
    f"{EPSILON}.LABEL_EMBEDDINGS.CLIP_NAME": ("ViT-B16",),
    f"{EPSILON}.LABEL_EMBEDDINGS.TEMPLATES": ("coco",),
    f"{EPSILON}.LABEL_EMBEDDINGS.NORMALISE": (False,),
    f"{EPSILON}.LOSS.LAMBDA": (-0.1, 1.1),
    f"{EPSILON}.LOSS.RANK_FORM": ("SDL",),
    f"{EPSILON}.LOSS.VARIANCE": ("group",),
}
# Keys that matter only where another has a certain value.
WITH: dict[str, tuple[object, ...]] = {
    "INPUT.CROP.SIZE": ("INPUT.CROP.ENABLED", True),
    "INPUT.CROP.TYPE": ("INPUT.CROP.ENABLED", True),
    f"{ALIGNZEG}.PIXEL_DECODER.DECODER_LAYERS": (f"{ALIGNZEG}.PIXEL_DECODER.NAME", "TransformerPixelDecoder"),
    f"{ALIGNZEG}.PIXEL_DECODER.DECODER_HEADS": (f"{ALIGNZEG}.PIXEL_DECODER.NAME", "TransformerPixelDecoder"),
    f"{EPSILON}.LABEL_EMBEDDINGS.FILE": (f"{EPSILON}.LABEL_EMBEDDINGS.SOURCE", "file"),
    "SOLVER.MAX_EPOCHS": ("SOLVER.MAX_ITER", 1),
}
EPSILONS_OWN = ("INPUT.IMAGE_SIZE", "INPUT.CROP_SCALE", "TEST.TOP_K", "SOLVER.MAX_EPOCHS", "SOLVER.STEPS_EPOCHS")
# Which keys `predict` takes as well: they must be refused there in the same words.
OF_PREDICT = (
    "INPUT.MIN_SIZE_TEST",
    "INPUT.FORMAT",
    "TEST.IMS_PER_BATCH",
    f"{ALIGNZEG}.PBC.TOP_K",
    f"{ALIGNZEG}.TEST.CHUNK_PIXELS",
)
FITTING: dict[str, object] = {
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": "1e-5",
    "INPUT.MAX_PIXELS": 4096,
    "TEST.IMS_PER_BATCH": 3,
    "SEED": -1,
    f"{ALIGNZEG}.PBC.TOP_K": 16,
    f"{ALIGNZEG}.LOSS.NUM_POINTS": 0,
    f"{ALIGNZEG}.CLIP.NUM_PROMPTS": 2,
    f"{ALIGNZEG}.TEST.OUTPUT": "labels",
    f"{EPSILON}.NUM_GROUPS": 1,
    f"{EPSILON}.LOSS.LAMBDA": 1.0,
    "TEST.TOP_K": "(1, 2)",
    "INPUT.CROP_SCALE": "(0.5, 0.5)",
}

_DATA = """
from zeroshot_d2 import register_multilabel, register_sem_seg
from zeroshot_d2.demo_world import SPLIT

folders = {"image_root": "data/images", "label_root": "data/labels", "image_suffix": ".png"}
register_sem_seg("fuzz", SPLIT, **folders, replace=True)
register_sem_seg("fuzz_seen", SPLIT, vocabulary="seen", **folders, replace=True)
labels = {f"{index}.png": [SPLIT.seen[index], SPLIT.unseen[0]] for index in range(4)}
register_multilabel("fuzz_tags", SPLIT, "data/images", labels, replace=True)
register_multilabel("fuzz_tags_seen", SPLIT, "data/images", labels, vocabulary="seen", replace=True)
"""


def _data(folder: Path) -> Path:
    for index in range(4):
        scene = render(7, index)
        for name, array in (("images", scene.image), ("labels", scene.label)):
            path = folder / "data" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(array)).save(path)
    return write(folder / "fuzz_data.py", _DATA)


def _is_epsilons(key: str) -> bool:
    return key.startswith(EPSILON) or key in EPSILONS_OWN


def train(folder: Path, epsilon: bool, *opts: object) -> str:
    """One iteration on four images and an evaluation; ``results.json``."""
    exec(compile(_data(folder).read_text(), "fuzz_data.py", "exec"), {})  # registered anew, whatever a case did to it
    batch = 4 if epsilon else 2
    common: dict[str, object] = {
        "DATASETS.TRAIN": "('fuzz_tags_seen',)" if epsilon else "('fuzz_seen',)",
        "DATASETS.TEST": "('fuzz_tags',)" if epsilon else "('fuzz',)",
        "SOLVER.MAX_ITER": 1,
        "SOLVER.MAX_EPOCHS": 0,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.WARMUP_ITERS": 0,
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": "out",
    }
    words = [word for pair in common.items() for word in pair]
    command("train", "--config-file", "demo/epsilon.yaml" if epsilon else "demo/alignzeg.yaml", *words, *opts)
    return (folder / "out/results.json").read_text()


def _case(key: str, value: object) -> Case:
    def run(folder: Path) -> str:
        return train(folder, _is_epsilons(key), *WITH.get(key, ()), key, value)

    shown = {"1e999": "inf", "range": "INPUT.MIN_SIZE_TRAIN"}.get(str(value), str(value))
    # A list is shown as Python shows it: what is within its brackets is looked for.
    shown = "no value" if value == "None" else shown
    # The model does not know in which section the number of queries is: SAN has another one.
    said = key.rpartition(".")[2] if key.endswith("NUM_QUERIES") else key
    names = (said, *filter(None, shown.strip("()[],").replace("'", "").split(", ")[:1]))
    return Case(KIND, f"train: {key} {value!r}", run, names, None)


def _predict(key: str, value: object) -> Case:
    def run(folder: Path) -> str:
        _data(folder)
        return command(*f"predict --model {finished_run()} --input data/images --output out {key}".split(), value)

    return Case(KIND, f"predict: {key} {value!r}", run, (key, str(value)), None)


def _fitting(key: str, value: object) -> Case:
    def run(folder: Path) -> str:
        return train(folder, _is_epsilons(key), key, value)

    return Case(KIND, f"train: {key} {value!r}, which is right", run, None, lambda results: "fuzz" in results)


def _from_python(name: str, build: Callable[[Any], Any], key: str, value: object, *words: str) -> Case:
    """A config that Python code has changed after it was read."""

    def run(folder: Path) -> Any:
        from zeroshot_d2.cli import load_config

        cfg = load_config("demo/epsilon.yaml" if key.startswith(EPSILON) else "demo/alignzeg.yaml")
        node = cfg
        for part in key.split(".")[:-1]:
            node = node[part]
        node[key.rpartition(".")[2]] = value
        return build(cfg)

    return Case(KIND, f"in Python: {name}: {key} {value!r}", run, (key, *words), None)


def cases(rng: random.Random) -> list[Case]:
    from detectron2.modeling import build_model

    from zeroshot_d2.segmentation.mapper import SegmentationMapper
    from zeroshot_d2.trainer import Trainer

    assert len(SPLIT) > 4
    return [
        *(_case(key, value) for key, values in FAULTY.items() for value in values),
        *(_predict(key, value) for key in OF_PREDICT for value in FAULTY[key] if value != ""),
        *(_fitting(key, value) for key, value in FITTING.items()),
        _from_python("model", build_model, f"{ALIGNZEG}.PIXEL_DECODER.NUM_HEADS", 0, "0"),
        _from_python("model", build_model, f"{ALIGNZEG}.PBC.TOP_K", 0, "0"),
        _from_python("model", build_model, f"{EPSILON}.GPA.DROPOUT", 2.0, "2.0"),
        _from_python("model", build_model, f"{ALIGNZEG}.LOSS.OVERSAMPLE_RATIO", None, "None"),
        _from_python("model", build_model, f"{ALIGNZEG}.LOSS.OVERSAMPLE_RATIO", float("nan"), "nan"),
        _from_python("mapper", SegmentationMapper, "INPUT.MIN_SIZE_TRAIN", ()),
        _from_python("trainer", Trainer, "SOLVER.MAX_ITER", 0, "0"),
        _from_python("trainer", Trainer, "DATASETS.TRAIN", ()),
    ]
