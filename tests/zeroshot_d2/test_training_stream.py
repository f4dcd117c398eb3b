"""The training stream is a function of (seed, position) alone."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch

from zeroshot_d2 import training_stream
from zeroshot_d2.training_stream import (
    PositionSampler,
    SampleStream,
    TrainingLoader,
    augmentation_rng,
    image_generators,
    image_seeds,
    seed_iteration,
    using_seeds,
)


def mapper(dataset_dict: dict[str, Any]) -> dict[str, Any]:
    noise = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    return {"image_id": dataset_dict["image_id"], "noise": noise}


def none_for_even_images(dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
    return None if dataset_dict["image_id"] % 2 == 0 else mapper(dataset_dict)


def dicts(num_images: int = 7) -> list[dict[str, Any]]:
    return [{"file_name": f"{i}.jpg", "image_id": i} for i in range(num_images)]


def take(loader: TrainingLoader, num_batches: int) -> list[list[dict[str, Any]]]:
    return [batch for batch, _ in zip(loader, range(num_batches), strict=False)]


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """Let the loaders built from here on believe that they run in process ``rank`` of ``world_size``."""
    monkeypatch.setattr(training_stream.comm, "get_rank", lambda: rank)
    monkeypatch.setattr(training_stream.comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: world_size)


def test_each_epoch_is_another_permutation() -> None:
    stream = SampleStream(dicts(50), mapper, seed=1)
    first = [stream.index(p) for p in range(50)]
    second = [stream.index(p) for p in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert [SampleStream(dicts(50), mapper, seed=1).index(p) for p in range(50)] == first
    assert [SampleStream(dicts(50), mapper, seed=2).index(p) for p in range(50)] != first


def test_a_sample_does_not_depend_on_what_was_read_before() -> None:
    forward = SampleStream(dicts(), mapper, seed=5)
    samples = [forward[p] for p in range(20)]
    backward = SampleStream(dicts(), mapper, seed=5)
    assert [backward[p] for p in reversed(range(20))] == samples[::-1]


def test_the_same_image_is_augmented_anew_in_the_next_epoch() -> None:
    stream = SampleStream(dicts(1), mapper, seed=5)
    noises = {stream[p][0]["noise"] for p in range(10)}
    assert len(noises) == 10


def test_augmentation_leaves_the_global_generators_as_they_were() -> None:
    seed_iteration(0, 0)
    expected = (random.random(), np.random.rand(), torch.rand(3).tolist())  # noqa: NPY002
    seed_iteration(0, 0)
    with pytest.raises(KeyError), augmentation_rng(3, 4):
        random.random(), np.random.rand(5), torch.rand(5)  # noqa: NPY002
        raise KeyError
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected  # noqa: NPY002


def test_iterations_have_random_numbers_of_their_own() -> None:
    def draw(seed: int, iteration: int) -> tuple[float, float, float]:
        seed_iteration(seed, iteration)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    draws = [draw(seed, iteration) for seed in (0, 1) for iteration in range(5)]
    assert len({value for triple in draws for value in triple}) == 30
    assert draw(1, 3) == draws[8]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(num_workers: int) -> None:
    reference = take(TrainingLoader(dicts(), mapper, batch_size=3, seed=9), 8)
    assert take(TrainingLoader(dicts(), mapper, batch_size=3, seed=9, num_workers=num_workers), 8) == reference


def test_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = take(TrainingLoader(dicts(), mapper, batch_size=4, seed=9), 6)
    parts = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        parts.append(take(TrainingLoader(dicts(), mapper, batch_size=4, seed=9), 6))
    for batch, *halves in zip(reference, *parts, strict=True):
        assert [sample for pair in zip(*halves, strict=True) for sample in pair] == batch


def test_start_in_the_middle() -> None:
    reference = take(TrainingLoader(dicts(), mapper, batch_size=3, seed=9), 8)
    loader = TrainingLoader(dicts(), mapper, batch_size=3, seed=9, num_workers=2)
    loader.start_at(5)
    assert take(loader, 3) == reference[5:]


def test_iterating_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    take(TrainingLoader(dicts(), mapper, batch_size=3, seed=9), 2)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_batch_size_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH 3 .* 2 process"):
        TrainingLoader(dicts(), mapper, batch_size=3, seed=9)


def test_empty_dataset() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        SampleStream([], mapper, seed=0)


def test_unreadable_image_is_an_error_that_names_the_file() -> None:
    stream = SampleStream(dicts(2), none_for_even_images, seed=0)
    position = next(p for p in range(2) if stream.index(p) == 0)
    with pytest.raises(ValueError, match=r"0\.jpg.*SKIP_UNREADABLE"):
        stream[position]


def test_unreadable_images_are_replaced_the_same_way_everywhere_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def loader(**arguments: Any) -> TrainingLoader:
        return TrainingLoader(dicts(), none_for_even_images, batch_size=4, seed=9, skip_unreadable=True, **arguments)

    single = loader()
    with caplog.at_level(logging.WARNING):
        reference = take(single, 7)  # 28 samples: four epochs of 7
    assert all(sample["image_id"] % 2 for batch in reference for sample in batch)
    # Each of the four even images comes up once in an epoch, and replacements may hit one again.
    assert set(single.skipped) == {"0.jpg", "2.jpg", "4.jpg", "6.jpg"}
    assert min(single.skipped.values()) >= 4
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 4  # one warning per file, not per sample
    parallel = loader(num_workers=2)
    assert take(parallel, 7) == reference
    assert parallel.skipped == single.skipped
    as_process(monkeypatch, 1, 2)
    assert take(loader(), 7) == [batch[1::2] for batch in reference]


def test_a_dataset_without_any_readable_image_ends() -> None:
    stream = SampleStream(dicts(), lambda _: None, seed=0, skip_unreadable=True)
    with pytest.raises(ValueError, match="in a row are unreadable"):
        stream[0]


def test_positions_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 2, 3)
    positions = iter(PositionSampler(start=30))
    assert [next(positions) for _ in range(3)] == [32, 35, 38]


# ---- seeds for what a model draws ----


def test_a_sample_has_the_seed_of_its_position() -> None:
    stream = SampleStream(dicts(), mapper, seed=5)
    seeds = [stream[p][0]["seed"] for p in range(30)]
    assert len(set(seeds)) == 30 and all(0 <= seed < 2**62 for seed in seeds)
    assert [SampleStream(dicts(), mapper, seed=5)[p][0]["seed"] for p in reversed(range(30))] == seeds[::-1]
    assert SampleStream(dicts(), mapper, seed=6)[0][0]["seed"] != seeds[0]


def test_the_seeds_of_the_batch_are_those_that_its_samples_bring() -> None:
    with using_seeds([{"seed": 5}, {"seed": 3}]):
        assert image_seeds(2) == (5, 3)
        with using_seeds([{"seed": 9}]):
            assert image_seeds(1) == (9,)
        assert image_seeds(2) == (5, 3)


def test_samples_without_a_seed_get_one_from_torchs_generator() -> None:
    torch.manual_seed(0)
    first = image_seeds(2)
    with using_seeds([{}, {}]):
        second = image_seeds(2)
    assert len({*first, *second}) == 4
    torch.manual_seed(0)
    assert image_seeds(2) == first


def test_generators_give_an_image_its_numbers_in_any_batch() -> None:
    cpu = torch.device("cpu")
    first, second = (torch.rand(3, generator=generator) for generator in image_generators((7, 8), cpu))
    (alone,) = image_generators((8,), cpu)
    torch.testing.assert_close(torch.rand(3, generator=alone), second, rtol=0, atol=0)
    assert not torch.equal(first, second)
