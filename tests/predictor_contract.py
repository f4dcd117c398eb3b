"""What every predictor promises, whichever its system: tests that the files of both systems inherit.

A subclass has the attributes below, and its file the fixtures ``cfg`` (``cfg("SOME.KEY", value)``: of a trained model),
``predictor`` (of it, three images at once, shared by tests that leave it as it is) and ``fresh`` (another, to be changed).
"""

from __future__ import annotations

import copy
import dataclasses
import io
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from comparisons import assert_close
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from PIL import Image
from timm.utils import ModelEmaV2
from torch.optim.swa_utils import AveragedModel

from zeroshot_d2 import ClassSplit
from zeroshot_d2.demo_world import SPLIT, render
from zeroshot_d2.predictor import Predictor, build_predictor

NAMES = ["striped red tile", "dark water|dark sea", "plain blue tile", "zebra"]  # training knew the plain blue tile only


def photo(index: int) -> np.ndarray:
    """(64, 64, 3) BGR."""
    return np.ascontiguousarray(render(7, index).image[:, :, ::-1])


NO_IMAGE_ARRAYS = [
    None,
    "photo.jpg",
    np.zeros((8, 8), dtype=np.uint8),
    np.zeros((8, 8, 4), dtype=np.uint8),
    np.zeros((8, 8, 3), dtype=np.float32),
    np.zeros((0, 8, 3), dtype=np.uint8),
]


class PredictorContract:
    """Attributes:
    OPTION: something that calls may ask for, which is then no longer None in the result.
    ATTRIBUTE: where it is in the result.
    OUTPUT: what Detectron2's own predictor calls the scores.
    """

    OPTION: ClassVar[str]
    ATTRIBUTE: ClassVar[str]
    OUTPUT: ClassVar[str]

    @staticmethod
    def scores(predictor: Predictor[Any], image: Any, **arguments: Any) -> Any:
        """All scores of an image, the classes first."""
        raise NotImplementedError

    @staticmethod
    def numbers(result: Any) -> Any:
        """What is in every result, as an array."""
        raise NotImplementedError

    # ---- images ----

    def test_gives_what_detectron2s_own_predictor_gives(self, cfg: Callable[..., CfgNode], predictor: Predictor[Any]):
        assert_close(self.scores(predictor, photo(0)), DefaultPredictor(cfg())(photo(0))[self.OUTPUT])

    def test_every_kind_of_image(self, predictor: Predictor[Any], tmp_path):
        bgr = photo(0)
        pil = Image.fromarray(bgr[:, :, ::-1])
        pil.save(tmp_path / "image.png")
        turned = pil.transpose(Image.Transpose.ROTATE_90)
        turned.getexif()[0x0112] = 6  # "turn me by 90 degrees clockwise"
        images = [bgr, pil, pil.convert("RGBA"), tmp_path / "image.png", str(tmp_path / "image.png"), turned]
        expected = self.numbers(predictor(bgr))
        for image in images:
            assert_close(self.numbers(predictor(image)), expected)
        together = predictor(images)  # two batches
        assert isinstance(together, list) and len(together) == 6
        for result in together:
            assert_close(self.numbers(result), expected)

    def test_arrays_are_bgr_and_the_model_gets_rgb(self, predictor: Predictor[Any]):
        bgr = photo(0)
        assert predictor.cfg.INPUT.FORMAT == "RGB"
        given = predictor.model_input(bgr)["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(given, bgr[:, :, ::-1])
        with pytest.raises(AssertionError):
            assert_close(self.numbers(predictor(bgr[:, :, ::-1].copy())), self.numbers(predictor(bgr)), tolerance=0.01)

    def test_any_iterable_and_any_batch_size(self, cfg: Callable[..., CfgNode], predictor: Predictor[Any]):
        images = [photo(0), np.concatenate([photo(1), photo(2)], axis=1), photo(3)[:40], photo(4)]
        alone = [self.numbers(predictor(image)) for image in images]
        by_one = build_predictor(cfg(), 1)
        default = build_predictor(cfg("TEST.IMS_PER_BATCH", 2))
        assert (by_one.batch_size, default.batch_size, predictor.batch_size) == (1, 2, 3)
        for results in (
            predictor(images),
            predictor(tuple(images)),
            predictor(image for image in images),
            predictor(iter(images)),
            by_one(images),
            default(images),
        ):
            assert isinstance(results, list) and len(results) == 4
            for result, expected in zip(results, alone, strict=True):
                assert_close(self.numbers(result), expected)
        assert predictor([]) == predictor(iter(())) == []

    def test_images_are_taken_batch_by_batch(self, predictor: Predictor[Any], monkeypatch: pytest.MonkeyPatch):
        taken, seen = 0, []
        results = predictor.results

        def images() -> Iterator[np.ndarray]:
            nonlocal taken
            for index in range(5):
                taken += 1
                yield photo(index)

        def watched(inputs: list[Any], *arguments: Any) -> list[Any]:
            seen.append((len(inputs), taken))
            return results(inputs, *arguments)

        monkeypatch.setattr(predictor, "results", watched)
        assert len(predictor(images())) == 5
        assert seen == [(3, 3), (2, 5)]

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (None, "an image .* or several, got NoneType"),
            (7, "an image .* or several, got int"),
            (torch.zeros(3, 64, 64), "an image .* or several, got Tensor"),
            ({"image": torch.zeros(3, 64, 64)}, "an image .* or several, got dict"),
            (b"photo.jpg", "an image .* or several, got bytes"),
            ([1, 2, 3], "a BGR array, a PIL image or a path, got int"),
            ([None], "a BGR array, a PIL image or a path, got NoneType"),
            ([torch.zeros(3, 64, 64)], "a BGR array, a PIL image or a path, got Tensor"),
            ([[photo(0)]], "a BGR array, a PIL image or a path, got list"),
            (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) uint8 in BGR order, got \(4, 4\) uint8"),
            (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) float64"),
            (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
            (np.zeros((2, 4, 4, 3), np.uint8), r"got \(2, 4, 4, 3\)"),
        ],
        ids=lambda value: None if isinstance(value, str) else type(value).__name__,
    )
    def test_what_is_no_image_is_refused(self, predictor: Predictor[Any], images: Any, message: str):
        with pytest.raises(ValueError, match=message):
            predictor(images)

    def test_files_that_cannot_be_read_are_named(self, cfg: Callable[..., CfgNode], predictor: Predictor[Any], tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
        Image.fromarray(photo(0)).save(tmp_path / "large.png")
        for images in (tmp_path / "broken.jpg", [photo(0), tmp_path / "broken.jpg"]):
            with pytest.raises(ValueError, match=r"cannot read the image .*broken\.jpg"):
                predictor(images)
        with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
            predictor(str(tmp_path / "missing.jpg"))
        with pytest.raises(ValueError, match=r"large\.png.*INPUT\.MAX_PIXELS"):
            build_predictor(cfg("INPUT.MAX_PIXELS", 64 * 64 - 1))(tmp_path / "large.png")

    # ---- vocabularies ----

    def test_a_vocabulary_belongs_to_its_call(self, predictor: Predictor[Any]):
        before = predictor(photo(0))
        assert before.vocabulary == predictor.vocabulary == SPLIT
        found = predictor(photo(0), vocabulary=NAMES)
        assert found.vocabulary.names == ("striped red tile", "dark water", "plain blue tile", "zebra")
        assert found.vocabulary.prompts == tuple(NAMES)
        assert found.vocabulary.unseen == ("striped red tile", "dark water", "zebra")
        assert {entry["name"] for entry in found.classes()} <= set(found.vocabulary.names)
        marked = predictor(photo(0), vocabulary=NAMES, unseen=["plain blue tile"]).vocabulary
        assert marked.unseen == marked.names
        assert predictor(photo(0), unseen=["plain blue tile"]).vocabulary.unseen_mask.sum() == len(SPLIT.unseen) + 1
        several = predictor([photo(0), photo(1)], vocabulary=(name for name in NAMES))
        assert [result.vocabulary for result in several] == [found.vocabulary] * 2
        assert predictor.vocabulary == SPLIT
        assert_close(self.numbers(predictor(photo(0))), self.numbers(before))

    def test_a_vocabulary_that_was_set_stays(self, fresh: Predictor[Any]):
        split = fresh.set_vocabulary(NAMES)
        assert fresh.vocabulary == split == fresh(photo(0)).vocabulary == fresh.marked(NAMES)
        assert fresh(photo(0), vocabulary=["zebra"]).vocabulary.names == ("zebra",)
        assert fresh(photo(0)).vocabulary == split
        assert_close(self.scores(fresh, photo(0)), self.scores(fresh, photo(0), vocabulary=NAMES))
        assert fresh.set_vocabulary(None) == SPLIT

    def test_the_order_of_the_vocabulary_is_the_order_of_the_scores(self, predictor: Predictor[Any]):
        forward = self.scores(predictor, photo(0), vocabulary=NAMES)
        backward = self.scores(predictor, photo(0), vocabulary=NAMES[::-1])
        assert len(forward) == 4
        assert_close(backward, forward[[3, 2, 1, 0]])

    def test_unseen_is_what_training_did_not_know_or_the_caller_says(self, predictor: Predictor[Any]):
        names = ["plain blue tile", "dark grass|dark meadow", "thing|plain red tile"]  # the last by its synonym
        assert predictor.marked(names).unseen == ()
        assert predictor.marked(names, unseen=["dark grass|dark meadow"]).unseen == ("dark grass",)
        assert predictor.marked(ClassSplit(["plain blue tile"], unseen=["plain blue tile"])).unseen == ("plain blue tile",)
        assert predictor.trained == frozenset(SPLIT.only_seen().texts)

    @pytest.mark.parametrize(
        ("names", "unseen", "message"),
        [
            ("cat, dog", None, "must be a list of names, got the text 'cat, dog'"),
            ([], None, "empty|at least one"),
            (["cat", "cat|kitten"], None, "more than once"),
            (["cat", " "], None, "empty"),
            (["cat"], "cat", "unseen classes must be a list of names, got the text 'cat'"),
            (["cat"], ["dog"], r"unseen classes \['dog'\] are not in the vocabulary: cat"),
        ],
    )
    def test_faulty_vocabularies(self, predictor: Predictor[Any], names: Any, unseen: Any, message: str):
        with pytest.raises(ValueError, match=message):
            predictor.set_vocabulary(names, unseen)
        with pytest.raises(ValueError, match=message):
            predictor(photo(0), vocabulary=names, unseen=unseen)
        assert predictor.vocabulary == SPLIT

    # ---- what else a call may ask for ----

    def test_a_wish_belongs_to_its_call(self, predictor: Predictor[Any]):
        def asked(result: Any) -> bool:
            return getattr(result, self.ATTRIBUTE) is not None

        assert self.OPTION in predictor.options
        assert not asked(predictor(photo(0)))
        assert asked(predictor(photo(0), **{self.OPTION: True}))
        assert not asked(predictor(photo(0), **{self.OPTION: False}))
        assert all(map(asked, predictor([photo(0)] * 4, **{self.OPTION: True})))
        assert not any(map(asked, predictor([photo(0)] * 4)))

    def test_unknown_wishes_are_refused(self, predictor: Predictor[Any]):
        known = ", ".join(predictor.options)
        with pytest.raises(ValueError, match=rf"{type(predictor).__name__} does not know what masks means; .*: {known}$"):
            predictor(photo(0), masks=True)

    def test_results_are_frozen(self, predictor: Predictor[Any]):
        result = predictor(photo(0))
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.vocabulary = None

    def test_threads_get_what_each_asked_for(self, predictor: Predictor[Any]):
        calls: list[dict[str, Any]] = [
            {"vocabulary": NAMES},
            {self.OPTION: True},
            {"vocabulary": NAMES[::-1], self.OPTION: True},
            {},
            {"vocabulary": ["light sand", "plain red tile"], "unseen": ["light sand"]},
        ] * 4
        images = [photo(index % 3) for index in range(len(calls))]
        expected = [predictor(image, **call) for image, call in zip(images, calls, strict=True)]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda image, call: predictor(image, **call), images, calls))
        for result, alone, call in zip(results, expected, calls, strict=True):
            assert result.vocabulary == alone.vocabulary
            assert (getattr(result, self.ATTRIBUTE) is not None) == (self.OPTION in call)
            assert_close(self.numbers(result), self.numbers(alone))
        assert predictor.vocabulary == SPLIT

    def test_a_call_keeps_the_vocabulary_that_it_began_with(self, fresh: Predictor[Any]):
        def images() -> Iterator[np.ndarray]:
            for index in range(5):
                yield photo(index)
                fresh.set_vocabulary(NAMES)  # as another thread may do meanwhile

        assert {result.vocabulary for result in fresh(images())} == {SPLIT}
        assert fresh(photo(0)).vocabulary.prompts == tuple(NAMES)

    def test_threads_while_another_one_sets_vocabularies(self, fresh: Predictor[Any]):
        choices = {names: fresh.marked(names) for names in (("zebra",), ("dark water", "plain blue tile"), tuple(NAMES))}
        images = [photo(index % 3) for index in range(7)]
        done = threading.Event()

        def change() -> None:
            while not done.is_set():
                for names in choices:
                    fresh.set_vocabulary(names)

        fresh.set_vocabulary(NAMES)
        with ThreadPoolExecutor(4) as pool:
            changing = pool.submit(change)
            calls = [pool.submit(fresh, images) for _ in range(6)]
            found = [call.result(timeout=300) for call in calls]
            done.set()
            changing.result(timeout=300)
        for results in found:
            (vocabulary,) = {result.vocabulary for result in results}
            assert vocabulary in choices.values()
            for result in results:
                assert len(self.numbers(result)) and {entry["name"] for entry in result.classes()} <= set(vocabulary.names)

    # ---- copies ----

    def test_copies_answer_as_before(self, predictor: Predictor[Any]):
        expected = self.numbers(predictor(photo(0), vocabulary=NAMES))
        file = io.BytesIO()
        torch.save(predictor.model, file)
        file.seek(0)
        whole = copy.copy(predictor)
        whole.model = torch.load(file, weights_only=False)
        for copied in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor)), whole):
            assert copied.model is not predictor.model and copied.vocabulary == predictor.vocabulary
            assert_close(self.numbers(copied(photo(0), vocabulary=NAMES)), expected)
            assert copied(photo(0), vocabulary=["quagga", "dark water"]).vocabulary.names == ("quagga", "dark water")

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_worker_processes_answer_as_this_one(self, predictor: Predictor[Any], method: str):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            found = pool.submit(predictor, photo(0)).result(timeout=500)
        assert found.vocabulary == SPLIT
        assert_close(self.numbers(found), self.numbers(predictor(photo(0))))

    def test_averaged_weights_are_weights(self, cfg: Callable[..., CfgNode], predictor: Predictor[Any], tmp_path):
        model, expected = predictor.model, self.numbers(predictor(photo(0)))
        ema, swa = ModelEmaV2(model, decay=0.5), AveragedModel(model)
        ema.update(model)
        for _ in range(2):
            swa.update_parameters(model)
        mean = {key: sum([value] * 3) / 3 for key, value in model.state_dict().items()}
        original = torch.load(cfg().MODEL.WEIGHTS, weights_only=True)
        for number, state in enumerate((ema.module.state_dict(), swa.module.state_dict(), mean)):
            path = tmp_path / f"{number}.pth"
            torch.save({**original, "model": state}, path)
            averaged = build_predictor(cfg("MODEL.WEIGHTS", str(path)))
            assert averaged.model.frozen_record == model.frozen_record
            assert_close(self.numbers(averaged(photo(0))), expected)

    # ---- weights and batches ----

    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            ("", ValueError, "MODEL.WEIGHTS is empty: a model with random weights"),
            ("nowhere.pth", FileNotFoundError, r"the weights nowhere\.pth do not exist"),
            ("https://example.org/model.pth", ValueError, "is an address: download the file"),
        ],
    )
    def test_weights_are_needed(self, cfg: Callable[..., CfgNode], weights: str, error: type[Exception], message: str):
        with pytest.raises(error, match=message):
            build_predictor(cfg("MODEL.WEIGHTS", weights))

    def test_batch_size_must_be_positive(self, cfg: Callable[..., CfgNode]):
        with pytest.raises(ValueError, match="batch size must be positive, got 0"):
            build_predictor(cfg(), 0)

    def test_the_config_is_the_predictors_own(self, cfg: Callable[..., CfgNode]):
        given = cfg()
        before = given.dump()
        predictor = build_predictor(given)
        assert predictor.cfg.is_frozen() and not given.is_frozen() and given.dump() == before
        assert not predictor.model.training
