"""The stream of training samples: a pure function of the seed and of the position in the stream.

Sample p (p = 0, 1, 2, ...) is the image ``permutation(seed, epoch)[p mod n]`` of epoch ``p div n``, augmented with
random numbers that depend on (seed, p) only. Iteration i takes positions i*B ... (i+1)*B - 1, B being the total batch
size, and process r of W takes every W-th of them. So the content of a batch depends neither on the number of processes
nor on the number of loader workers, and a resumed run goes on with exactly the samples that it would have had.

A sample brings a seed for what the model draws for this image, again a function of (seed, p): see :func:`image_seeds`.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import build_batch_data_loader
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, Sampler

from .processes import use_served_forks
from .system import WithImports

logger = logging.getLogger(__name__)

DatasetDict = dict[str, Any]
Sample = dict[str, Any]
Mapper = Callable[[DatasetDict], "Sample | None"]

# One number per use, so that two uses of one seed never share a random sequence.
_EPOCH_ORDER, _AUGMENTATION, _REPLACEMENT, _ITERATION, _MODEL = range(5)
# After so many unreadable images in a row the fault is the data folder, not an image.
MAX_REPLACEMENTS = 100


def _seed_words(seed: int, *key: int) -> tuple[int, int]:
    """Two 32-bit words mixed from ``seed`` and ``key``."""
    first, second = np.random.SeedSequence((seed, *key)).generate_state(2)
    return int(first), int(second)


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed Python, numpy and torch (all devices) for the model's own randomness in one iteration.

    All processes get the same numbers, whatever was drawn before: the dropout of a resumed run is that of the uninterrupted
    one.
    """
    numpy_seed, torch_seed = _seed_words(seed, _ITERATION, iteration)
    random.seed(torch_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002  (the global state is what models and augmentations draw from)
    torch.manual_seed(torch_seed)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Around what seeds the global generators, or as its decorator: afterwards a program draws what it would have drawn."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


_seeds_of_batch: ContextVar[tuple[int, ...] | None] = ContextVar("seeds of the batch", default=None)


@contextlib.contextmanager
def using_seeds(inputs: Sequence[Sample]) -> Iterator[None]:
    """Within the block :func:`image_seeds` gives the seeds that these samples of :class:`SampleStream` bring."""
    seeds = tuple(sample["seed"] for sample in inputs if "seed" in sample)
    token = _seeds_of_batch.set(seeds if len(seeds) == len(inputs) else None)
    try:
        yield
    finally:
        _seeds_of_batch.reset(token)


def image_seeds(count: int) -> tuple[int, ...]:
    """A seed for each of the ``count`` images of the batch, for what a model draws for this image in this iteration.

    With numbers from a generator of its own, an image gets the same ones in whichever process it is. Samples that bring no
    seed, or no :func:`using_seeds`, get one from torch's generator.
    """
    seeds = _seeds_of_batch.get()
    if seeds is None:
        return tuple(torch.randint(2**62, (count,), device="cpu").tolist())
    assert len(seeds) == count, f"{len(seeds)} samples, {count} images"
    return seeds


def image_generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """A generator on ``device`` for each of :func:`image_seeds`."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


@contextlib.contextmanager
def augmentation_rng(seed: int, position: int) -> Iterator[None]:
    """Seed the CPU generators of Python, numpy and torch with (seed, position); restore their states afterwards."""
    numpy_seed, torch_seed = _seed_words(seed, _AUGMENTATION, position)
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    random.seed(torch_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002
    torch.default_generator.manual_seed(torch_seed)  # not torch.manual_seed: that reseeds the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


class PositionSampler(Sampler[int]):
    """Positions of this process in the stream: start + rank, start + rank + world size, ... without an end.

    ``start`` may be set until the loader starts to iterate.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        position = self.start + self._rank
        while True:
            yield position
            position += self._world_size


class SampleStream(Dataset[tuple[Sample, list[str]]]):
    """Map-style view of the stream: position -> (mapped sample, names of unreadable files that it replaces)."""

    def __init__(
        self, dataset_dicts: Sequence[DatasetDict], mapper: Mapper, *, seed: int, skip_unreadable: bool = False
    ) -> None:
        if len(dataset_dicts) == 0:
            raise ValueError("the training stream has no images: DATASETS.TRAIN names no dataset or an empty one")
        # A list is serialised once and shared by the loader's workers, instead of a copy in each.
        self._dicts = DatasetFromList(dataset_dicts, copy=False) if isinstance(dataset_dicts, list) else dataset_dicts
        self._mapper = PicklableWrapper(mapper)  # a lambda too can go to a worker
        self._seed = seed
        self._skip_unreadable = skip_unreadable
        self._epoch_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._dicts)

    def index(self, position: int) -> int:
        """Index of the image at ``position`` of the stream; each epoch is a permutation of all images."""
        epoch, offset = divmod(position, len(self))
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng((self._seed, _EPOCH_ORDER, epoch))
            self._epoch_order = epoch, rng.permutation(len(self))
        return int(self._epoch_order[1][offset])

    def __getitem__(self, position: int) -> tuple[Sample, list[str]]:
        replacements = np.random.default_rng((self._seed, _REPLACEMENT, position))
        index = self.index(position)
        skipped: list[str] = []
        while len(skipped) < MAX_REPLACEMENTS:
            with augmentation_rng(self._seed, position):
                sample = self._mapper(self._dicts[index])
            if sample is not None:
                high, low = _seed_words(self._seed, _MODEL, position)
                return {**sample, "seed": (high << 32 | low) >> 2}, skipped  # 62 bits: torch has no unsigned arithmetic
            skipped.append(str(self._dicts[index].get("file_name", f"image {index}")))
            if not self._skip_unreadable:
                raise ValueError(
                    f"the mapper gave no sample for {skipped[-1]}; mend or remove the file, or set "
                    "INPUT.SKIP_UNREADABLE True to train without it"
                )
            index = int(replacements.integers(len(self)))
        raise ValueError(f"{MAX_REPLACEMENTS} images in a row are unreadable, the first ones: {skipped[:3]}")


class WorkerDataset(Dataset[Any]):
    """A data set as loader workers get it: with what ``--import`` named, which they may not have imported."""

    def __init__(self, dataset: Any) -> None:
        self._held = WithImports(dataset)

    def __len__(self) -> int:
        return len(self._held.value)

    def __getitem__(self, index: int) -> Any:
        return self._held.value[index]


class TrainingLoader:
    """Iterable over this process's batches (lists of mapped samples), without an end.

    Args:
        dataset_dicts: the images, in Detectron2's format: a list, or anything with a length and an index.
        mapper: dataset dict -> sample, or None where the image is unreadable.
        batch_size: images per iteration, all processes together; must be divisible by their number.
        seed: seed of order and augmentation.
        num_workers: loader processes per training process.
        skip_unreadable: replace samples that the mapper returns None for, instead of raising ``ValueError``.

    Attributes:
        images: names of the images of the last batch.
        skipped: how often each unreadable file was replaced in this process so far.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[DatasetDict],
        mapper: Mapper,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        world_size = comm.get_world_size()
        if batch_size <= 0 or batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared evenly by {world_size} process(es); "
                "choose a positive multiple of their number"
            )
        self.batch_size = batch_size
        self.images: list[str] = []
        self.skipped: Counter[str] = Counter()
        self._stream = SampleStream(dataset_dicts, mapper, seed=seed, skip_unreadable=skip_unreadable)
        self._sampler = PositionSampler()
        # A seed of its own keeps the loader from drawing one out of the global generator, which would make the model's
        # random numbers depend on where the loader was started.
        self._loader = use_served_forks(
            build_batch_data_loader(
                WorkerDataset(self._stream), self._sampler, batch_size, num_workers=num_workers, seed=seed
            )
        )

    @property
    def num_images(self) -> int:
        """Images in one epoch."""
        return len(self._stream)

    def start_at(self, iteration: int) -> None:
        """Let the next iterator begin with the batch of ``iteration``."""
        self._sampler.start = iteration * self.batch_size

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self._loader:
            for _, skipped in batch:
                for name in skipped:
                    if name not in self.skipped:
                        logger.warning("skipped unreadable %s, another image takes its place", name)
                    self.skipped[name] += 1
            samples = [sample for sample, _ in batch]
            self.images = [str(sample.get("file_name", sample.get("image_id"))) for sample in samples]
            yield samples
