"""Scores of segmentations that any method has predicted and saved.

A data set of GZS3 is scored by GZS3, and where the predictions are scores of all its classes by ZS3 too; predictions that
were made among its unseen classes by ZS3; any other data set by its own protocol. The numbers are those of
:mod:`zeroshot_d2.segmentation.evaluation`.

Shapes: N images, K classes, V of the predictions' vocabulary, H, W the size of an image, R resamples.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ..class_split import ClassSplit
from ..metrics import harmonic_mean
from ..referee import Numbers, Scored, check_images, named_classes
from ..registration import DatasetDict
from .evaluation import format_results_table, protocol_results
from .labels import IGNORE_LABEL, LabelTable, read_label
from .metrics import class_counts, confusion_matrix, iou_of_counts
from .predictions import Array, image_names, open_predictions

_MOST_NAMED = 5  # faulty predictions that an error names
_NONE, _UNKNOWN = -1, -2  # in a lookup table of predicted values
_HEADLINES = ("pAcc", "mIoU_seen", "mIoU_unseen", "hIoU", "mIoU")

IntArray = npt.NDArray[np.int64]


@dataclass
class _Protocol:
    """One way to look at the same predictions."""

    name: str
    split: ClassSplit
    kept: IntArray  # (K,) indices in the data set's vocabulary
    confusion: IntArray
    per_image: list[tuple[int, IntArray]]  # (image, (3, K) counts), where they are wanted

    def truth(self, label: IntArray, num_classes: int) -> IntArray:
        """(H, W) indices of this vocabulary, K where ignored."""
        index = np.full(num_classes + 1, len(self.split), dtype=np.int64)
        index[self.kept] = np.arange(len(self.kept))
        return index[label]


class SegmentationReferee:
    """See :class:`zeroshot_d2.referee.Referee`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """What the values of the predictions mean."""
        parser.add_argument(
            "--values",
            choices=("index", "release"),
            help="what label images and the JSON's category_id hold: indices of the vocabulary, or the release's own values",
        )
        parser.add_argument(
            "--no-prediction", type=int, metavar="VALUE", help="the value of pixels without a class, which count as wrong"
        )
        parser.add_argument("--suffix", default=".png", help="of the files in a folder of predictions; default .png")

    def __init__(self, dataset_name: str, args: argparse.Namespace) -> None:
        """
        Raises:
            FileNotFoundError: the data set's files are missing.
            ValueError: arguments contradict each other, or leave open what the predictions mean.
        """
        meta = MetadataCatalog.get(dataset_name)
        self._dataset_name, self._args = dataset_name, args
        self._split: ClassSplit = meta.class_split
        self._table: LabelTable = meta.label_table
        self._protocol: str = meta.protocol
        self._unseen = args.vocabulary == "unseen"
        # The vocabulary of the predictions, in the order of this project.
        self._predicted = self._split.only_unseen() if self._unseen else self._split
        self._kept = self._split.unseen_indices if self._unseen else np.arange(len(self._split))
        # order[i]: the index in that vocabulary of the predictions' class i.
        self._order = named_classes(args.classes, None, self._predicted, dataset_name)
        self._rows = np.argsort(self._order)  # of scores, in the order of self._predicted
        records: Sequence[DatasetDict] = DatasetCatalog.get(dataset_name)
        self._lookup = None if args.values is None else self._lookup_of_values()
        names = image_names(records, dataset_name)
        self._records = {names[record["file_name"]]: (i, record) for i, record in enumerate(records)}

    def score(self, path: Path, *, keep_images: bool) -> Scored:
        """The numbers of the predictions at ``path``; see :class:`zeroshot_d2.referee.Referee`."""
        predictions = open_predictions(path, self._args.suffix, list(self._records))
        check_images(predictions.names(), list(self._records), path)
        protocols: list[_Protocol] = []
        is_scores = False
        faults: list[str] = []
        for name, read in tqdm(predictions.items(), desc=f"scoring {path.name}", total=len(self._records), leave=False):
            image, record = self._records[name]
            label = read_label(record["sem_seg_file_name"], self._table, photo=record["file_name"]).astype(np.int64)
            label[label == IGNORE_LABEL] = len(self._split)
            try:
                array = read(label.shape)
                if protocols and (array.ndim == 3) is not is_scores:
                    raise ValueError("it is of another kind than those before: give labels or scores for all images")
                is_scores = array.ndim == 3
                protocols = protocols or self._protocols(is_scores=is_scores)
                for protocol in protocols:
                    self._count(protocol, array, label, image if keep_images else None)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        if faults:
            more = f"\n  and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
            raise ValueError(
                f"{len(faults)} of the {len(self._records)} predictions in {path} cannot be scored, so none is:\n  "
                + "\n  ".join(faults[:_MOST_NAMED])
                + more
            )
        results = {
            protocol.name: protocol_results(protocol.confusion, protocol.split, protocol.name, len(self._records))
            for protocol in protocols
        }
        return SegmentationScored(results, protocols, len(self._records))

    def _protocols(self, *, is_scores: bool) -> list[_Protocol]:
        """What the data set allows with predictions of this kind."""
        if not is_scores and self._args.values is None:
            raise ValueError("say what the values mean: --values index (of the vocabulary) or --values release")
        wanted = {"ZS3" if self._unseen else self._protocol: self._kept}
        if is_scores and self._protocol == "GZS3":
            wanted["ZS3"] = self._split.unseen_indices
        result = []
        for name, kept in wanted.items():
            split = self._split if len(kept) == len(self._split) else self._split.only_unseen()
            result.append(_Protocol(name, split, kept, np.zeros((len(kept) + 1,) * 2, dtype=np.int64), []))
        return result

    def _count(self, protocol: _Protocol, array: Array, label: IntArray, image: int | None) -> None:
        prediction = self._best_classes(protocol, array) if array.ndim == 3 else self._indices(array)
        confusion = confusion_matrix(prediction, protocol.truth(label, len(self._split)), len(protocol.split))
        protocol.confusion += confusion
        if image is not None:
            protocol.per_image.append((image, np.stack(class_counts(confusion))))

    def _best_classes(self, protocol: _Protocol, scores: Array) -> IntArray:
        """(H, W) indices of the protocol's vocabulary from scores (V, H, W)."""
        if len(scores) != len(self._order):
            raise ValueError(f"it scores {len(scores)} classes, the vocabulary has {len(self._order)}: give --classes FILE")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN")
        ordered = scores[self._rows]
        return np.asarray(ordered[np.searchsorted(self._kept, protocol.kept)].argmax(axis=0), dtype=np.int64)

    def _indices(self, values: Array) -> IntArray:
        """(H, W) indices of the predictions' vocabulary from label values; its size where there is no prediction.

        Raises:
            ValueError: a value means no class of it.
        """
        lookup = self._lookup
        assert lookup is not None  # labels without a meaning are refused at the first image
        # The JSON's -1 is where no mask lies.
        found = np.where(values == -1, _NONE, _UNKNOWN)
        inside = (values >= 0) & (values < len(lookup))
        found[inside] = lookup[values[inside]]
        strange = np.unique(values[found == _UNKNOWN])
        if len(strange):
            shown = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
            kind = "an index" if self._args.values == "index" else "a label value"
            raise ValueError(
                f"it holds {shown}, which is not {kind} of one of the {len(self._predicted)} classes "
                "(--no-prediction VALUE names the value of pixels without a class)"
            )
        return np.where(found == _NONE, len(self._predicted), found)

    def _lookup_of_values(self) -> IntArray:
        """(65536,) from a predicted value to an index of the predictions' vocabulary."""
        lookup = np.full(65536, _UNKNOWN, dtype=np.int64)
        if self._args.values == "index":
            lookup[: len(self._order)] = self._order
        else:
            index = np.full(65536, _UNKNOWN, dtype=np.int64)
            index[self._kept] = np.arange(len(self._kept))
            lookup = index[self._table.lut]
        if self._args.no_prediction is not None:
            value = self._args.no_prediction
            if not 0 <= value < len(lookup):
                raise ValueError(f"--no-prediction {value} must be from 0 to {len(lookup) - 1}")
            if lookup[value] != _UNKNOWN:
                name = self._predicted.names[lookup[value]]
                raise ValueError(f"--no-prediction {value} is the value of class {name!r}: give another")
            lookup[value] = _NONE
        return lookup


class SegmentationScored(Scored):
    """The numbers of one method's segmentations."""

    per_class_unit = "IoU"

    def __init__(self, results: Mapping[str, Numbers], protocols: Sequence[_Protocol], num_images: int) -> None:
        super().__init__(results, num_images)
        self._protocols = protocols

    def table(self, title: str) -> str:
        several = len(self.results) > 1
        return format_results_table({f"{title} ({name})" if several else title: r for name, r in self.results.items()})

    def headlines(self, name: str) -> dict[str, float]:
        return {key: value for key in _HEADLINES if (value := self.results[name].get(key)) is not None}

    def per_class(self, name: str) -> Mapping[str, float | None]:
        return self.results[name]["IoU"]

    def resampled(self, name: str, weights: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
        """(R,) of each headline, from how often each image counts, (R, N)."""
        protocol = next(protocol for protocol in self._protocols if protocol.name == name)
        counts = np.zeros((self.num_images, 3, len(protocol.split)), dtype=np.float64)
        for image, of_image in protocol.per_image:
            counts[image] = of_image
        hit, truth, predicted = np.moveaxis(np.tensordot(weights.astype(np.float64), counts, axes=1), 1, 0)
        iou = iou_of_counts(hit, truth, predicted)
        with np.errstate(invalid="ignore"):
            result = {"mIoU": _mean(iou), "pAcc": 100 * hit.sum(axis=1) / truth.sum(axis=1)}
        if protocol.name == "GZS3":
            seen, unseen = _mean(iou[:, protocol.split.seen_mask]), _mean(iou[:, protocol.split.unseen_mask])
            both = [np.nan if np.isnan(s + u) else harmonic_mean(s, u) for s, u in zip(seen, unseen, strict=True)]
            result |= {"mIoU_seen": seen, "mIoU_unseen": unseen, "hIoU": np.array(both)}
        return result


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the last axis of what is a number; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
