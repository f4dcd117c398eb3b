"""Labels of one's own images.

    python -m epsilon_d2.predict image.jpg other.jpg --top-k 10
    python -m epsilon_d2.predict image.jpg --labels names.txt --threshold 1.5 --output pictures/
    python -m epsilon_d2.predict image.jpg --config-file configs/nus_wide/epsilon.yaml --weights model_final.pth

Prints a line per label, best first: score and name, an asterisk behind a name that the model was not trained on. A score is
a dot product of an image's semantics with a label's vector: it ranks labels, it is no probability, and a useful threshold
depends on the model; find it on images whose labels are known.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image

from epsilon_d2 import Epsilon, add_epsilon_config
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.vocabulary import split_of_dataset, vocabulary_from_names

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo" / "epsilon.yaml"


class Predictor:
    """Epsilon on images from files or arrays, with any vocabulary.

    ::

        predictor = Predictor(cfg, ["red car", "blue sky|sky", "dog"])
        scores = predictor(image)["scores"]          # (3,)
        names = predictor.vocabulary.names
    """

    def __init__(self, cfg: CfgNode, vocabulary: Sequence[str] | ClassSplit | None = None) -> None:
        """
        Args:
            cfg: with MODEL.WEIGHTS.
            vocabulary: names, which may list synonyms ("tree|bush"); by default that of cfg.DATASETS.TEST[0]. Names that
                training did not know count as unseen.

        Raises:
            FileNotFoundError: the weights do not exist.
            ValueError: there are none, they do not fit, or the vocabulary is empty or has duplicates.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: random weights would give random labels")
        if not Path(cfg.MODEL.WEIGHTS).is_file():
            raise FileNotFoundError(f"the weights {cfg.MODEL.WEIGHTS} do not exist: train first, with train_net.py")
        cfg = cfg.clone()
        cfg.defrost()
        if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        self.model = Epsilon(cfg).to(cfg.MODEL.DEVICE).eval()
        self.image_format = cfg.INPUT.FORMAT
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self._training_sets = tuple(cfg.DATASETS.TRAIN)
        self.set_vocabulary(split_of_dataset(cfg.DATASETS.TEST[0]) if vocabulary is None else vocabulary)

    def set_vocabulary(self, vocabulary: Sequence[str] | ClassSplit) -> ClassSplit:
        """Rank these labels from now on; gives them with those marked as unseen that no training set has.

        Raises:
            ValueError: it is empty or has duplicates.
        """
        split = vocabulary if isinstance(vocabulary, ClassSplit) else vocabulary_from_names(vocabulary)
        self.vocabulary = _marked_unseen(split, self._training_sets)
        return self.vocabulary

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """``image`` (H, W, 3) uint8 RGB -> what :class:`Epsilon` gives: "scores" (K,) and, if asked for, attention."""
        pixels = image if self.image_format == "RGB" else image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        (output,) = self.model([{"image": tensor, "vocabulary": self.vocabulary}])
        return {key: value.cpu() for key, value in output.items()}


def _marked_unseen(vocabulary: ClassSplit, training_sets: Sequence[str]) -> ClassSplit:
    """The vocabulary with its unseen classes: those that no training set has, by name or synonym."""
    trained = {
        text
        for name in training_sets
        for split in [split_of_dataset(name)]
        for text in (*split.names, *(synonym for synonyms in split.synonyms for synonym in synonyms))
    }
    unseen = ~vocabulary.trained_mask(trained)
    names = tuple(name for name, is_unseen in zip(vocabulary.names, unseen, strict=True) if is_unseen)
    return ClassSplit(vocabulary.names, unseen=names, prompts=vocabulary.prompts)


def load_config(config_file: str | Path, weights: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """The config of a command line.

    Args:
        config_file: a yaml file.
        weights: the checkpoint; without one that of MODEL.WEIGHTS, else model_final.pth in OUTPUT_DIR.
        opts: KEY VALUE pairs.

    Raises:
        FileNotFoundError: there is no such config.
    """
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"--config-file {config_file} does not exist (looked for it from {Path.cwd()})")
    cfg = get_cfg()
    add_epsilon_config(cfg)
    cfg.merge_from_file(str(config_file))
    cfg.merge_from_list(list(opts))
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS or str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    return cfg


def read_names(file: Path) -> list[str]:
    """One name per line; empty lines and those that start with # are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no name.
    """
    if not file.is_file():
        raise FileNotFoundError(f"the label file {file} does not exist")
    lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"the label file {file} holds no name")
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    from epsilon_d2.visualization import (
        MODULES,
        LabelledImage,
        attention_by_module,
        attention_figure,
        best_labels,
        save_figure,
        spoken_labels,
        top_labels_figure,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--config-file", type=Path, default=CONFIG)
    parser.add_argument("--weights", default="", help="default: model_final.pth in the config's OUTPUT_DIR")
    parser.add_argument("--labels", type=Path, help="text file with a name per line, instead of the test set's")
    parser.add_argument("--top-k", type=int, help="labels per image; default: 10, or all of a smaller vocabulary")
    parser.add_argument("--threshold", type=float, help="print only labels of at least this score")
    parser.add_argument("--output", type=Path, help="folder for pictures: the labels, and where the groups look")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_args(arguments)

    cfg = load_config(args.config_file, args.weights, args.opts)
    cfg.MODEL.EPSILON.TEST.RETURN_ATTENTION = args.output is not None
    images = {path: _read(path) for path in args.images}
    predictor = Predictor(cfg, None if args.labels is None else read_names(args.labels))
    split = predictor.vocabulary
    top_k = min(10, len(split)) if args.top_k is None else args.top_k
    examples: list[LabelledImage] = []
    for path, image in images.items():
        output = {key: value.numpy() for key, value in predictor(image).items()}
        scores = output["scores"]
        print(path)
        for k in best_labels(scores, top_k, args.threshold):
            print(f"  {scores[k]:8.3f}  {split.names[k]}{' *' if split.names[k] in split.unseen else ''}")
        examples.append(LabelledImage(image, scores, title=path.name))
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            labels = spoken_labels(output, split, top_k)
            for module, attention in attention_by_module(output).items():
                key = MODULES[module]
                title = f"{path.name}: {key.replace('_', ' ')}"
                figure = attention_figure(image, attention, title=title, labels=labels)
                save_figure(figure, args.output / f"{path.stem}_{key}.png")
    if args.output is not None:
        figure = top_labels_figure(examples, split, top_k=top_k, threshold=args.threshold)
        save_figure(figure, args.output / "labels.png")
        print(f"pictures in {args.output}")


def _read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright.

    Raises:
        FileNotFoundError, OSError: missing or unreadable; named.
    """
    try:
        return read_image(str(path), format="RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"the image {path} does not exist") from None
    except OSError as error:
        raise OSError(f"cannot read the image {path}: {error}") from error


if __name__ == "__main__":
    main()
