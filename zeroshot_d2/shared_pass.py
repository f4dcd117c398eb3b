"""Test sets of the same images in one pass: the network runs once for an image, whatever the number of vocabularies.

GZS3 and ZS3, or two of your own vocabularies, are data sets that differ in their classes alone. A batch then holds an input
for each of them, with one and the same image tensor, and a system computes once what does not depend on the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from torch import nn

from .training_stream import DatasetDict, Mapper, Sample

Inputs = Mapping[str, Any]


def distinct_images(batched_inputs: Sequence[Inputs]) -> tuple[list[int], list[int]]:
    """Which inputs hold an image that none before them holds, and for each input the place of its image among those.

    Returns:
        indices of inputs (M,), and for each of the N inputs an index below M.
    """
    place: dict[int, int] = {}
    first: list[int] = []
    which = []
    for index, inputs in enumerate(batched_inputs):
        key = id(inputs["image"])
        if key not in place:
            place[key] = len(first)
            first.append(index)
        which.append(place[key])
    return first, which


def sets_of_same_images(records: Mapping[str, Sequence[DatasetDict]]) -> list[list[str]]:
    """Data sets that list the same files in the same order, together.

    Args:
        records: {data set: its dataset dicts}.
    """
    groups: list[list[str]] = []
    for name, of_set in records.items():
        for group in groups:
            if _same_files(records[group[0]], of_set):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _same_files(first: Sequence[DatasetDict], second: Sequence[DatasetDict]) -> bool:
    if len(first) != len(second):
        return False
    files = ((first[i].get("file_name"), second[i].get("file_name")) for i in range(len(first)))
    return all(a is not None and a == b for a, b in files)


class SharedRecords(Sequence[list[DatasetDict]]):
    """The dataset dicts of several sets of the same images, those of an image together."""

    def __init__(self, sets: Sequence[Sequence[DatasetDict]]) -> None:
        self._sets = sets

    def __len__(self) -> int:
        return len(self._sets[0])

    def __getitem__(self, index: Any) -> Any:
        return [records[index] for records in self._sets]


class SharedMapper:
    """Reads an image once: its inputs for all sets hold the same tensor."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def __call__(self, records: list[DatasetDict]) -> list[Sample]:
        first = self._mapper(records[0])
        assert first is not None  # evaluation skips no image
        read = {key: value for key, value in first.items() if key not in records[0] or key in ("height", "width")}
        return [first, *({**read, **record} for record in records[1:])]


class SharedPass(nn.Module):
    """A model on batches of :class:`SharedMapper`: the outputs of all inputs, one after another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # the evaluation restores it

    def forward(self, batch: list[list[Sample]]) -> Any:
        return self.model([inputs for of_image in batch for inputs in of_image])


class EachEvaluator(DatasetEvaluator):
    """An evaluator for each of the sets that share a pass."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self.evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self.evaluators:
            evaluator.reset()

    def process(self, inputs: list[list[Sample]], outputs: list[Any]) -> None:
        number = len(self.evaluators)
        for index, evaluator in enumerate(self.evaluators):
            evaluator.process([of_image[index] for of_image in inputs], outputs[index::number])

    def evaluate(self) -> list[Any]:
        return [evaluator.evaluate() for evaluator in self.evaluators]
