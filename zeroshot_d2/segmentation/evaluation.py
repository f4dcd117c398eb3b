"""Evaluation of zero-shot segmentation, for any model of the task.

Protocols, from the metadata of the data set:

    GZS3            vocabulary = all classes: mIoU(S), mIoU(U), their harmonic mean hIoU, mIoU, pAcc
    ZS3             vocabulary = unseen classes alone, pixels of seen classes ignored: mIoU, pAcc
    supervised      vocabulary = the classes that were trained: mIoU, pAcc
    cross-dataset   trained on another data set: mIoU, pAcc

Means are over the classes that occur in the ground truth, as Detectron2 has it since July 2022. Its release 0.6, on which
SAN builds, and zsseg also count, as 0, a class that is predicted and occurs in no ground truth: those means are
"mIoU_gt_or_predicted" and so on. pAcc is over all labelled pixels; everything is in percent.
Shapes: K classes, H, W size of the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..class_split import ClassSplit
from ..joined_file import PREDICTIONS
from ..metrics import harmonic_mean, numbers_only
from ..storage import whole_file
from .labels import IGNORE_LABEL, read_label
from .metrics import confusion_matrix, iou_per_class, mean_over, pixel_accuracy, sum_confusions
from .predictions import PredictionSaver, image_names

GT_OR_PREDICTED = "_gt_or_predicted"
"""Ending of the means that also count a class that is predicted and occurs in no ground truth."""


class ZeroShotSemSegEvaluator(SemSegEvaluator):
    """Counts a confusion matrix over a data set and reports the numbers of its protocol.

    Beside Detectron2's evaluator: labels go through the data set's lookup table, so that one label folder
    serves every vocabulary; boundary IoU is not computed.

    Args:
        dataset_name: a data set registered with :func:`zeroshot_d2.register_sem_seg`, or anything that sets the same
            metadata.
        distributed: add up the counts of all processes.
        output_dir: of ``confusion/DATA_SET.npz``, the counts, and of saved predictions; None: nothing is written.
        save_predictions: "labels", "scores" or "json", see :mod:`zeroshot_d2.segmentation.predictions`; "": none.

    Raises:
        ValueError: the metadata lacks what is needed, or predictions are to be saved nowhere.
    """

    details: dict[str, Any] | None = None
    """What :meth:`report` found when :meth:`evaluate` last ran; results.json holds it."""

    protocol_suffix = ""
    """What a subclass that predicts otherwise adds to the protocol's name, in every table and file."""

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        save_predictions: str = "",
    ) -> None:
        meta = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("class_split", "label_table", "protocol", "stuff_classes") if not hasattr(meta, key)]
        if missing:
            raise ValueError(
                f"data set {dataset_name!r} has no {', '.join(missing)} in its metadata: "
                "register it with zeroshot_d2.register_sem_seg"
            )
        if save_predictions and not output_dir:
            raise ValueError("save_predictions needs an output_dir")
        super().__init__(dataset_name, distributed, output_dir)
        self._compute_boundary_iou = False
        self._split: ClassSplit = meta.class_split
        self._table = meta.label_table
        self._protocol: str = meta.protocol
        self._saver = self._build_saver(save_predictions) if save_predictions else None
        self.reset()

    @property
    def _file_name(self) -> str:
        """What files of this evaluation are called: another way to predict has others."""
        return self._dataset_name + self.protocol_suffix.replace(" (", "_").rstrip(")")

    def _build_saver(self, kind: str) -> PredictionSaver:
        return PredictionSaver(
            kind,
            Path(self._output_dir) / PREDICTIONS / self._file_name,
            self._split.names,
            image_names(DatasetCatalog.get(self._dataset_name), self._dataset_name),
            self.encode_json_sem_seg,
            distributed=self._distributed,
        )

    def reset(self) -> None:
        """Forget everything counted so far."""
        super().reset()
        self._num_images = 0
        if self._saver is not None:
            self._saver.discard()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch.

        Args:
            inputs: dataset dicts, of which "file_name" is read.
            outputs: one dict per input, with "sem_seg" (K, H, W) scores or "sem_seg_labels" (H, W) vocabulary
                indices, at the size of the label image.

        Raises:
            ValueError: batch sizes or image sizes differ, a score map has another number of classes, or an
                image is not one of the data set.
        """
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
        for record, output in zip(inputs, outputs, strict=True):
            truth = self._ground_truth(record["file_name"])
            prediction = self._prediction(output, truth)
            if prediction.shape != truth.shape:
                raise ValueError(
                    f"{record['file_name']}: the prediction is {prediction.shape[0]} x {prediction.shape[1]}, "
                    f"the label image {truth.shape[0]} x {truth.shape[1]} (height x width)"
                )
            self._conf_matrix += confusion_matrix(prediction, truth, self._num_classes)
            self._num_images += 1
            if self._saver is not None:
                self._saver.save(record["file_name"], prediction, output.get("sem_seg"))

    def _ground_truth(self, file_name: str) -> npt.NDArray[np.int64]:
        """(H, W) vocabulary indices; K where ignored."""
        if file_name not in self.input_file_to_gt_file:
            raise ValueError(f"{file_name} is not an image of data set {self._dataset_name!r}")
        label = read_label(self.input_file_to_gt_file[file_name], self._table, photo=file_name).astype(np.int64)
        label[label == IGNORE_LABEL] = self._num_classes
        return label

    def _prediction(self, output: Mapping[str, Any], truth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(H, W) vocabulary indices. The ground truth is for subclasses."""
        if "sem_seg_labels" in output:
            return np.asarray(output["sem_seg_labels"].to(self._cpu_device), dtype=np.int64)
        if "sem_seg" not in output:
            raise ValueError(f"an output needs 'sem_seg' or 'sem_seg_labels', got {sorted(output)}")
        scores = output["sem_seg"]
        if scores.shape[0] != self._num_classes:
            raise ValueError(
                f"the model scores {scores.shape[0]} classes, data set {self._dataset_name!r} has {self._num_classes}: "
                "predict with the vocabulary of this data set"
            )
        return np.asarray(scores.argmax(dim=0).to(self._cpu_device), dtype=np.int64)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The numbers among :meth:`report`, for Detectron2, whose tools take nothing else; :attr:`details` has the rest.

        On other processes than the main one: None.
        """
        self.details = self.report()
        return None if self.details is None else OrderedDict(sem_seg=numbers_only(self.details))

    def report(self) -> dict[str, Any] | None:
        """Numbers of everything counted, over all processes.

        Returns:
            {"protocol", "mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", the four again with "_gt_or_predicted", "pAcc",
            "IoU": {class: IoU}, "num_images"}, percent; a
            key is absent where the protocol has no such number; None where no labelled pixel tells. On other processes than
            the main one: None.
        """
        if self._saver is not None:
            self._saver.finish(is_main=not self._distributed or comm.is_main_process())
        if self._distributed:
            comm.synchronize()
            confusions = comm.gather(self._conf_matrix)
            image_counts = comm.gather(self._num_images)
            if not comm.is_main_process():
                return None
            confusion, num_images = sum_confusions(confusions), sum(image_counts)
        else:
            confusion, num_images = self._conf_matrix, self._num_images
        if self._output_dir:
            self._write_confusion(confusion)
        results = protocol_results(confusion, self._split, self._protocol, num_images)
        results["protocol"] += self.protocol_suffix
        self._logger.info("%s\n%s", self._dataset_name, format_results_table({self._dataset_name: results}))
        return results

    def _write_confusion(self, confusion: npt.NDArray[np.int64]) -> None:
        with whole_file(Path(self._output_dir) / "confusion" / f"{self._file_name}.npz") as temporary:
            np.savez_compressed(temporary, confusion=confusion, classes=np.array(self._split.names))


def build_evaluator(
    cfg: CfgNode, dataset_name: str, kind: type[ZeroShotSemSegEvaluator] = ZeroShotSemSegEvaluator
) -> ZeroShotSemSegEvaluator:
    """The evaluator of the protocol that the data set was registered with, which saves what the config says.

    Args:
        cfg: OUTPUT_DIR and TEST.SAVE_PREDICTIONS are read.
        dataset_name: the data set.
        kind: the class.
    """
    return kind(dataset_name, output_dir=cfg.OUTPUT_DIR, save_predictions=cfg.TEST.SAVE_PREDICTIONS)


def protocol_results(confusion: npt.NDArray[np.int64], split: ClassSplit, protocol: str, num_images: int) -> dict[str, Any]:
    """The numbers of a protocol from its counts; see :meth:`ZeroShotSemSegEvaluator.report` for the keys.

    Args:
        confusion: (K+1, K+1), see :mod:`zeroshot_d2.metrics`.
        split: the K classes of the data set's vocabulary.
        protocol: "GZS3", "ZS3", "supervised" or "cross-dataset".
        num_images: images counted.

    Raises:
        ValueError: unknown protocol.
    """
    if protocol not in ("GZS3", "ZS3", "supervised", "cross-dataset"):
        raise ValueError(f"unknown protocol {protocol!r}: use GZS3, ZS3, supervised or cross-dataset")
    iou = iou_per_class(confusion)
    results: dict[str, Any] = {"protocol": protocol, **_means(iou, split, protocol)}
    results["pAcc"] = pixel_accuracy(confusion)
    peers = _means(iou_per_class(confusion, predicted_counts=True), split, protocol)
    results |= {f"{key}{GT_OR_PREDICTED}": value for key, value in peers.items()}
    results["IoU"] = {name: None if np.isnan(value) else float(value) for name, value in zip(split.names, iou, strict=True)}
    results["num_images"] = num_images
    return results


def _means(iou: npt.NDArray[Any], split: ClassSplit, protocol: str) -> dict[str, float | None]:
    means = {"mIoU": mean_over(iou)}
    if protocol == "GZS3":
        seen, unseen = mean_over(iou, split.seen_mask), mean_over(iou, split.unseen_mask)
        means["mIoU_seen"], means["mIoU_unseen"] = seen, unseen
        means["hIoU"] = None if seen is None or unseen is None else harmonic_mean(seen, unseen)
    return means


_COLUMNS = {"pAcc": "pAcc", "mIoU_seen": "mIoU(S)", "mIoU_unseen": "mIoU(U)", "hIoU": "hIoU", "mIoU": "mIoU"}


def format_results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per data set, naming its protocol, and one with the means over "gt or predicted" where they differ.

    Args:
        results: {data set: what :meth:`ZeroShotSemSegEvaluator.report` returns}.

    Returns:
        A text table in percent; "-" where a protocol has no such number.
    """
    rows = []
    for dataset, numbers in results.items():
        protocol, num_images = numbers.get("protocol", "-"), numbers.get("num_images", "-")
        values = [numbers.get(key) for key in _COLUMNS]
        rows.append([dataset, protocol, *map(_percent, values), num_images])
        peers = [numbers.get(key if key == "pAcc" else f"{key}{GT_OR_PREDICTED}") for key in _COLUMNS]
        if any(peer is not None and peer != value for peer, value in zip(peers, values, strict=True)):
            rows.append([f"{dataset} (gt or predicted)", protocol, *map(_percent, peers), num_images])
    headers = ["data set", "protocol", *_COLUMNS.values(), "images"]
    align = ["left", "left", *["right"] * (len(_COLUMNS) + 1)]
    return tabulate(rows, headers=headers, tablefmt="github", colalign=align, disable_numparse=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
