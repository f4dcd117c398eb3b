"""Prediction for people: images of any kind and any vocabulary in, the task's result out.

K is the number of classes of the vocabulary; (H, W) is an image. One predictor may be shared by several threads: what to
return and the vocabulary belong to the call.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image, ImageOps

from .checkpoint import Checkpointer, Knowledge, refuse_address
from .class_split import ClassSplit, first_text
from .images import MAX_PIXELS, ImageArray, UnreadableImage, check_image_array, read_image, to_rgb
from .pictures.colors import Color, class_colors
from .precision import compile_parts
from .system import find_system
from .vocabulary import VocabularyLike, as_vocabulary, is_registered

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # a third of a second, and predictions without pictures need none of it

ImageLike = npt.NDArray[np.uint8] | Image.Image | str | os.PathLike[str]
Result = TypeVar("Result")
Self = TypeVar("Self", bound="Predictor[Any]")
T = TypeVar("T")


class Predictor(Generic[Result]):
    """A trained model with any vocabulary, in batches, on arrays, PIL images and paths. Tasks subclass it.

    ::

        predictor = AlignZegPredictor(cfg)
        segmentation = predictor("photo.jpg")
        segmentations = predictor(["a.jpg", "b.jpg"], vocabulary=["cat", "traffic light", "tree|bush|shrub"])

    Arrays are (H, W, 3) uint8 in BGR order, as for Detectron2's DefaultPredictor and as cv2 reads them. Files and PIL images
    are turned upright by their EXIF tag. The vocabulary is that of cfg.DATASETS.TEST[0], or the one in the checkpoint, until
    :meth:`set_vocabulary` or a call says otherwise.

    Attributes:
        cfg: the config, frozen.
        model: in evaluation mode.
        trained: names and prompt texts of the classes that the model was trained on.
        batch_size: images that run together.
        options: what calls may ask for beside the result itself.
        explanation_needs: those of the options that :meth:`explain` needs.
    """

    options: ClassVar[tuple[str, ...]] = ()
    explanation_needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: CfgNode, batch_size: int | None = None) -> None:
        """
        Args:
            cfg: with MODEL.WEIGHTS.
            batch_size: images that run together, cfg.TEST.IMS_PER_BATCH by default.

        Raises:
            FileNotFoundError: the weights do not exist.
            ValueError: there are none, they do not fit the config, or the batch size is not positive.
        """
        self.batch_size = cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be positive, got {self.batch_size}")
        check_weights_exist(cfg)
        self.cfg = cfg.clone()
        self.cfg.defrost()
        if self.cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            self.cfg.MODEL.DEVICE = "cpu"
        self.cfg.freeze()
        self.model = build_model(self.cfg).eval()
        compile_parts(self.model, self.cfg)
        Checkpointer(self.model).load(self.cfg.MODEL.WEIGHTS)
        knowledge = Knowledge.of_config(self.cfg)
        self.trained = knowledge.trained
        self.default_vocabulary = knowledge.vocabulary
        self._vocabulary = None if knowledge.vocabulary is None else knowledge.vocabulary.with_unseen(self.trained)

    # ---- a model as one folder ----
    @classmethod
    def from_pretrained(
        cls: type[Self],
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | None = None,
        opts: Sequence[object] = (),
        batch_size: int | None = None,
    ) -> Self:
        """The predictor of a model that was saved as one folder, here or on the Hugging Face Hub, or of a finished run.

        ``Predictor.from_pretrained`` finds the class that fits the model.

        Args:
            model: a folder, or ``hub:OWNER/NAME[@REVISION]``. Nothing is fetched for a name that is not spelt so.
            revision: on the Hub: a branch, a tag or a commit.
            device: such as "cuda:1"; by default the config's, or the CPU where there is no GPU.
            opts: KEY, VALUE, KEY, VALUE, ... over the folder's config, such as the path of a CLIP that it does not contain.
            batch_size: images that run together.

        Raises:
            FileNotFoundError: there is no such folder or it lacks a file, or a file that the model needs is not there.
            ValueError: the model is of another system than this class is for; its config, weights or frozen parts are not
                those that it was saved with.
            OSError: the Hub has no such model, or cannot be reached.
        """
        from .pretrained import config_of  # which imports the whole of the command line

        cfg = config_of(model, revision=revision, device=device, opts=opts)
        fitting = find_system(cfg.MODEL.META_ARCHITECTURE).part("predictor")
        if not issubclass(cls, fitting) and not issubclass(fitting, cls):
            raise ValueError(
                f"{os.fspath(model)} holds a model of {cfg.MODEL.META_ARCHITECTURE}, which {cls.__name__} does not run: use "
                f"{fitting.__name__}, or Predictor, which finds the class that does"
            )
        return (cls if issubclass(cls, fitting) else fitting)(cfg, batch_size)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        results: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the model as one folder, which :meth:`from_pretrained` reads; see :func:`zeroshot_d2.pretrained.save`."""
        from .pretrained import save

        return save(self, folder, license=license, results=results)

    # ---- vocabularies ----
    @property
    def vocabulary(self) -> ClassSplit:
        """The K classes in use; its unseen ones are those that the model was not trained on, or that were called unseen.

        Raises:
            ValueError: none was set, and neither the config nor the checkpoint has one.
        """
        if self._vocabulary is None:
            raise ValueError("there is no vocabulary: pass one, or name a data set in DATASETS.TEST")
        return self._vocabulary

    def set_vocabulary(self, names: VocabularyLike | None, unseen: Iterable[str] | None = None) -> ClassSplit:
        """Choose among these classes from now on.

        Args:
            names: in the order of the scores; a name may list synonyms ("tree|bush|shrub"), of which the first is displayed
                and all take part in the embedding. None: back to the config's.
            unseen: names that count as unseen even if the model was trained on them. Classes that it was not trained on are
                unseen in any case.

        Returns:
            the vocabulary with all its unseen classes marked.

        Raises:
            ValueError: it is empty, has duplicates, or lacks a name of ``unseen``.
        """
        self._vocabulary = self.marked(names, unseen)
        return self._vocabulary

    def marked(self, names: VocabularyLike | None, unseen: Iterable[str] | None = None) -> ClassSplit:
        """What :meth:`set_vocabulary` would return, without setting it."""
        if isinstance(unseen, str):
            raise ValueError(f"unseen classes must be a list of names, got the text {unseen!r}")
        split = self.default_vocabulary if names is None else as_vocabulary(names)
        if split is None:
            raise ValueError("there is no vocabulary to go back to: DATASETS.TEST is empty")
        return split.with_unseen(self.trained, [first_text(name) for name in unseen or ()])

    @property
    def colors(self) -> list[Color]:
        """Those of the vocabulary in use, see :meth:`colors_of`."""
        return self.colors_of(self.vocabulary)

    def colors_of(self, vocabulary: ClassSplit) -> list[Color]:
        """K colours: those of the config's test data set where it has all classes, else distinct ones."""
        known: dict[str, Color] = {}
        for name in self.cfg.DATASETS.TEST[:1]:
            if is_registered(name):
                metadata = MetadataCatalog.get(name)
                known = dict(zip(metadata.class_split.names, metadata.get("stuff_colors", ()), strict=False))
        names = vocabulary.names
        return [known[name] for name in names] if known.keys() >= set(names) else class_colors(len(names))

    # ---- prediction ----
    @overload  # a path may be a str, which is a Sequence too
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        *,
        vocabulary: VocabularyLike | None = ...,
        unseen: Iterable[str] | None = ...,
        **wanted: bool,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        images: Iterable[ImageLike],
        *,
        vocabulary: VocabularyLike | None = ...,
        unseen: Iterable[str] | None = ...,
        **wanted: bool,
    ) -> list[Result]: ...

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        vocabulary: VocabularyLike | None = None,
        unseen: Iterable[str] | None = None,
        **wanted: bool,
    ) -> Result | list[Result]:
        """
        Args:
            images: one image or several; each a BGR array, a PIL image or a path.
            vocabulary, unseen: for this call, as for :meth:`set_vocabulary`; None: the one in use.
            wanted: what else to return, such as ``scores=True``; the names are in :attr:`options`.

        Returns:
            a result, or a list of them in the order of the images.

        Raises:
            FileNotFoundError, UnreadableImage: a file does not exist or cannot be read; it is named.
            ValueError: an array is not (H, W, 3) uint8, or the vocabulary is faulty.
        """
        unknown = sorted(set(wanted).difference(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"{type(self).__name__} does not know what {', '.join(unknown)} means; its options: {known}")
        asked = frozenset(name for name, value in wanted.items() if value)
        split = self.vocabulary if vocabulary is None and unseen is None else self.marked(vocabulary, unseen)
        if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
            return self._predict([to_bgr(images, self.max_pixels)], split, asked)[0]
        if images is None or not isinstance(images, Iterable) or isinstance(images, torch.Tensor | Mapping | bytes):
            raise ValueError(f"expected an image (BGR array, PIL image or path) or several, got {type(images).__name__}")
        results: list[Result] = []
        for batch in batches(images, self.batch_size):
            results += self._predict([to_bgr(image, self.max_pixels) for image in batch], split, asked)
        return results

    @property
    def max_pixels(self) -> int:
        """Files with more pixels are refused."""
        return self.cfg.INPUT.MAX_PIXELS

    @torch.no_grad()
    def _predict(self, images: list[ImageArray], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Result]:
        inputs = [{**self.model_input(image), "vocabulary": vocabulary} for image in images]
        return self.results(inputs, vocabulary, wanted)

    @abstractmethod
    def model_input(self, image: ImageArray) -> dict[str, Any]:
        """BGR (H, W, 3) -> what the model takes for one image, without its vocabulary."""

    @abstractmethod
    def results(self, inputs: list[dict[str, Any]], vocabulary: ClassSplit, wanted: frozenset[str]) -> list[Result]:
        """Run the model on a batch; ``wanted`` are the :attr:`options` that were asked for."""

    def explain(self, image: ImageArray, result: Result) -> dict[str, Figure]:
        """Pictures of how the model came to a result, by name; ``image`` is BGR (H, W, 3). None in general."""
        return {}


def build_predictor(cfg: CfgNode, batch_size: int | None = None) -> Predictor[Any]:
    """The predictor of the config's system; errors as :class:`Predictor`."""
    return find_system(cfg.MODEL.META_ARCHITECTURE).part("predictor")(cfg, batch_size)


def check_weights_exist(cfg: CfgNode) -> None:
    """Raise FileNotFoundError or ValueError where MODEL.WEIGHTS is no file on this machine."""
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("MODEL.WEIGHTS is empty: a model with random weights would give random results")
    refuse_address("MODEL.WEIGHTS", weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"the weights {weights} do not exist (looked for them from {Path.cwd()}): train first")


def to_bgr(image: ImageLike, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """A BGR array, a PIL image or a path -> (H, W, 3) uint8 in BGR order.

    Raises:
        FileNotFoundError, UnreadableImage: as :func:`zeroshot_d2.images.read_image`.
        ValueError: an array is not (H, W, 3) uint8, or it is no image at all.
    """
    if isinstance(image, np.ndarray):
        return check_image_array(image, "BGR order")
    if isinstance(image, Image.Image):
        try:
            rgb = to_rgb(ImageOps.exif_transpose(image) or image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImage(f"cannot use the {type(image).__name__}: {error}") from error
        return np.ascontiguousarray(rgb[:, :, ::-1])
    if not isinstance(image, str | os.PathLike):
        raise ValueError(f"expected a BGR array, a PIL image or a path, got {type(image).__name__}")
    return np.ascontiguousarray(read_image(image, max_pixels=max_pixels)[:, :, ::-1])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one possibly shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def describe_vocabulary(split: ClassSplit) -> list[dict[str, Any]]:
    """Index, name, synonyms and whether unseen, of every class."""
    unseen = split.unseen_mask
    return [
        {"index": k, "name": name, "synonyms": list(synonyms), "unseen": bool(unseen[k])}
        for k, (name, synonyms) in enumerate(zip(split.names, split.synonyms, strict=True))
    ]
