"""TIFF images that need not fit into memory: read in windows, segmented, and written row by row as a label raster.

The file is opened by rasterio, which is GDAL, for its TIFF driver alone. What georeference it has, the labels get.

Shapes: K classes, (H, W) the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..class_split import ClassSplit
from ..images import ImageArray, UnreadableImage, stored_orientation
from ..pictures.colors import Color
from ..predictor import Predictor
from ..storage import whole_file
from .looks import Look, Looks, Place, Size
from .mapper import test_resize
from .predictor import ClassCounts, with_other

SUFFIXES = (".tif", ".tiff")
_CACHE_MEGABYTES = 64  # of GDAL; by default it takes a twentieth of the machine's memory
_BLOCK = 256  # side of the tiles in which labels are written


def need_rasterio() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import rasterio
    except ModuleNotFoundError as error:
        if error.name != "rasterio":
            raise
        raise ValueError("--stream reads TIFF with rasterio, which is not installed: pip install rasterio") from None
    return rasterio


class StreamedImage:
    """A TIFF file of which parts are read, as RGB of 8 bits; used in a ``with`` block of :func:`opened`."""

    def __init__(self, path: Path, source: Any) -> None:
        """
        Args:
            path: of the file.
            source: as rasterio opened it.

        Raises:
            UnreadableImage: its bands are not grey, RGB or RGBA of 8 or 16 bits, or a palette; its pixels are turned.
        """
        from rasterio.enums import ColorInterp

        self.path, self._source = path, source
        self.size: Size = (source.height, source.width)
        kinds = {np.dtype(kind) for kind in source.dtypes}
        self._sixteen = kinds == {np.dtype(np.uint16)}
        self._palette = source.colormap(1) if source.count == 1 and source.colorinterp[0] == ColorInterp.palette else None
        colours = source.count - (source.count in (2, 4))
        self._has_alpha = source.count != colours
        alpha_is_last = source.colorinterp[-1] == ColorInterp.alpha
        if not (kinds <= {np.dtype(np.uint8)} or self._sixteen) or colours not in (1, 3):
            raise UnreadableImage(
                f"the TIFF {path} has {source.count} bands of {', '.join(sorted(map(str, kinds)))}: choose its red, green "
                f"and blue as 8 bits, for example with `gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale {path.name} rgb.tif`"
            )
        if self._has_alpha and not alpha_is_last:
            raise UnreadableImage(
                f"the TIFF {path} has {source.count} bands, the last of which is not marked as alpha: keep its red, green "
                f"and blue alone, for example with `gdal_translate -b 1 -b 2 -b 3 {path.name} rgb.tif`"
            )
        if stored_orientation(path) != 1:
            raise UnreadableImage(f"the TIFF {path} is stored turned, by its orientation tag: save it upright")
        self._bands = [1, 1, 1] if colours == 1 else [1, 2, 3]
        self._zero_is_white = source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"

    def read(self, top: float, left: float, height: float, width: float, size: Size) -> ImageArray:
        """Part of the image, in its pixels, at a size of (h, w): (h, w, 3) uint8 RGB. Smaller sizes are averaged."""
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        where: dict[str, Any] = {
            "window": Window(left, top, width, height),
            "resampling": Resampling.nearest if self._palette or self._zero_is_white else Resampling.bilinear,
        }
        bands = sorted(set(self._bands))
        pixels: npt.NDArray[Any] = self._source.read(bands, out_shape=(len(bands), *size), **where)
        if self._palette is not None:
            table = np.zeros((256, 3), np.uint8)
            for value, colour in self._palette.items():
                table[value] = colour[:3]
            return table[pixels[0]]
        rgb = pixels[[band - 1 for band in self._bands]].transpose(1, 2, 0)
        if self._sixteen:
            rgb = np.rint(rgb / 257).astype(np.uint8)  # 65535 becomes 255
        if self._zero_is_white:
            rgb = 255 - rgb
        if self._has_alpha:  # over white, as for other images
            alpha = self._source.read(self._source.count, out_shape=size, **where)[..., None]
            alpha = alpha / (65535 if self._sixteen else 255)
            rgb = np.rint(alpha * rgb + (1 - alpha) * 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)

    def whole(self, longest: int) -> ImageArray:
        """The image with no side longer than ``longest``."""
        height, width = self.size
        scale = min(1.0, longest / max(height, width))
        return self.read(0, 0, height, width, (max(1, round(scale * height)), max(1, round(scale * width))))

    @contextmanager
    def labels_beside(self, path: Path, num_classes: int, colors: list[Color]) -> Iterator[LabelRaster]:
        """A label raster of this image's size and georeference, at its final name when the block ends well."""
        rasterio = need_rasterio()
        source = self._source
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": 1,
            "dtype": "uint8" if num_classes <= 256 else "uint16",
            "height": self.size[0],
            "width": self.size[1],
            "compress": "deflate",
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "BIGTIFF": "IF_SAFER",
        }
        points, crs = source.gcps
        if points:
            profile |= {"gcps": points, "crs": crs}
        elif source.crs is not None or not source.transform.is_identity:
            profile |= {"crs": source.crs, "transform": source.transform}
        with whole_file(path) as temporary, _quiet(), rasterio.open(temporary, "w", **profile) as target:
            if num_classes <= 256:
                target.write_colormap(1, {k: (*color, 255) for k, color in enumerate(colors)})
            yield LabelRaster(target)


class LabelRaster:
    """Labels on their way into a TIFF file."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def write(self, top: int, labels: npt.NDArray[np.integer[Any]]) -> None:
        """Rows (h, W) of labels, from the row ``top`` on."""
        from rasterio.windows import Window

        window = Window(0, top, labels.shape[1], labels.shape[0])
        self._target.write(labels.astype(self._target.dtypes[0]), 1, window=window)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning that a file has no georeference: most photos have none."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def opened(path: Path) -> Iterator[StreamedImage]:
    """A TIFF file to read parts of.

    Raises:
        ValueError: rasterio is not installed.
        UnreadableImage: it is no TIFF, damaged, or its bands are not understood.
    """
    rasterio = need_rasterio()
    from rasterio.errors import RasterioError

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), _quiet():
        try:
            source = rasterio.open(str(path), driver="GTiff")
        except RasterioError as error:
            raise UnreadableImage(f"cannot read the TIFF {path} ({error}): save it anew") from error
        with source:
            image = StreamedImage(path, source)
            try:
                yield image
            except RasterioError as error:
                raise UnreadableImage(f"cannot read the TIFF {path} to its end ({error}): fetch or save it anew") from error


# ------------------------------------------------------------------------------------------------------ prediction
@dataclass(frozen=True, eq=False)
class StreamedSegmentation:
    """What is left in memory of a segmented file.

    Args:
        vocabulary: the K classes, and the one of all other pixels if there is a threshold.
        size: (H, W).
        classes: as :meth:`zeroshot_d2.segmentation.predictor.Segmentation.classes`.
        image, labels: of at most ``longest`` pixels, for a picture.
    """

    vocabulary: ClassSplit
    size: Size
    classes: list[dict[str, Any]]
    image: ImageArray
    labels: npt.NDArray[np.int64]


def look_at_file(cfg: CfgNode, size: Size) -> Look:
    """How a file of this size is looked at: at the size of testing, in the windows of TEST.SLIDE.

    Raises:
        ValueError: TEST.AUG is on.
    """
    looks = Looks.of_config(cfg)
    if looks.min_sizes:
        raise ValueError("--stream reads each part of a file once: set TEST.AUG.ENABLED False")
    resize = test_resize(cfg)
    height, width = size
    short = resize.short_edge_length[0]
    if short:
        height, width = resize.get_output_shape(height, width, short, resize.max_size)
    (look,) = looks.of_image((max(1, height), max(1, width)))
    return look


def segment_file(
    predictor: Predictor[Any],
    path: Path,
    labels_path: Path,
    colors: list[Color],
    *,
    threshold: float | None = None,
    other: str = "",
    longest: int = 1600,
) -> StreamedSegmentation:
    """Segment a TIFF file part by part, and write its labels.

    Args:
        predictor: of a system that can segment rows one after another.
        path: the file.
        labels_path: of the label raster, a TIFF.
        colors: of the classes.
        threshold, other: as for :meth:`zeroshot_d2.segmentation.predictor.Segmentation.with_other`; None: all are labelled.
        longest: side of the picture that is kept.

    Raises:
        ValueError: the system cannot, TEST.AUG is on, or rasterio is not installed.
        UnreadableImage: as :func:`opened`.
    """
    segment_rows = getattr(predictor.model, "segment_rows", None)
    if segment_rows is None:
        raise ValueError(f"{predictor.cfg.MODEL.META_ARCHITECTURE} cannot segment a file part by part: leave --stream out")
    vocabulary = predictor.vocabulary
    known = vocabulary if threshold is None else with_other(vocabulary, threshold, other)
    is_rgb = predictor.cfg.INPUT.FORMAT == "RGB"
    with opened(path) as image:
        look = look_at_file(predictor.cfg, image.size)
        down, across = (full / side for full, side in zip(image.size, look.size, strict=True))

        def read(place: Place) -> Tensor:
            height, width = look.window
            top, left = look.rows.starts[place.row], look.columns.starts[place.column]
            pixels = image.read(top * down, left * across, height * down, width * across, (height, width))
            ordered = pixels if is_rgb else pixels[:, :, ::-1]
            return torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))

        counts = ClassCounts(known)
        small = image.whole(longest)
        rows_kept = _centres(small.shape[0], image.size[0])
        columns_kept = _centres(small.shape[1], image.size[1])
        small_labels = np.zeros(small.shape[:2], np.int64)
        with image.labels_beside(labels_path, len(known), colors) as raster:
            for rows, best in segment_rows(look, read, vocabulary, output_size=image.size):
                labels, confidence = best.labels.cpu().numpy(), best.confidence.float().cpu().numpy()
                if threshold is not None:
                    labels = np.where(confidence < threshold, len(vocabulary), labels)
                raster.write(rows.start, labels)
                counts.add(labels, confidence)
                here = (rows_kept >= rows.start) & (rows_kept < rows.stop)
                small_labels[here] = labels[rows_kept[here] - rows.start][:, columns_kept]
    return StreamedSegmentation(known, image.size, counts.classes(), small, small_labels)


def _centres(count: int, of: int) -> npt.NDArray[np.int64]:
    """``count`` pixels spread evenly over ``of``."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)
