"""Semantic inference: class probabilities and masks of proposals -> scores or labels of pixels.

Proposals are those of one image, or of its windows and sizes (:mod:`zeroshot_d2.segmentation.looks`): the score of a class
at a pixel is the sum over all proposals of class probability times mask times the weight of the window. Nothing but the
output has the size of the image: everything else is computed a strip of rows at a time.

Shapes: Q proposals, K classes, (h, w) the masks' grid, (H, W) the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from zeroshot_d2.segmentation.looks import Axis, Look, Place, regions

Function = TypeVar("Function", bound=Callable[..., Any])

CHUNK_PIXELS = 0
"""Output pixels handled at once unless MODEL.ALIGNZEG.TEST.CHUNK_PIXELS says otherwise; 0: what suits the device."""

# Few enough for a CPU's caches. Elsewhere starting kernels takes longer than what they do in a small strip: an image of
# 640 x 640 is one strip.
_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 65536, 524288

# Side in pixels of the tiles in which labels are decided. At 640 pixels it is a cell of the masks' grid, beyond which masks
# vary too much to rule out many classes.
_TILE = 16
_TILED_DEVICES = ("cpu",)
_SCORES_AT_ONCE = 2**27  # on the others: 0.5 GB


@dataclass(frozen=True, eq=False)
class PlacedProposals:
    """The proposals of one window.

    Args:
        probabilities: (Q, K).
        mask_logits: (Q, h, w).
        region: the part of the grid that the window covers, in cells from the upper left (the rest is padding).
        place: the window.
    """

    probabilities: Tensor
    mask_logits: Tensor
    region: tuple[float, float]
    place: Place

    @classmethod
    def of_image(
        cls, probabilities: Tensor, mask_logits: Tensor, region: tuple[float, float] | None = None
    ) -> PlacedProposals:
        """Those of an image that the network saw as a whole; ``region``: the whole grid by default."""
        grid = (mask_logits.shape[-2], mask_logits.shape[-1])
        (place,) = Look.whole(grid).places()
        return cls(probabilities, mask_logits, (float(grid[0]), float(grid[1])) if region is None else region, place)


@dataclass(frozen=True, eq=False)
class Labels:
    """The best class of every pixel.

    Args:
        labels: (H, W) long, class indices. Of equal scores the first class wins.
        confidence: (H, W) in [0, 1]: the score of that class, sum of p m over the proposals, over max(1, sum of m). Where
            many proposals cover a pixel, their scores add up to more than 1; divided, they are a mean of p, weighted by the
            masks.
    """

    labels: Tensor
    confidence: Tensor


def _in_float32(function: Function) -> Function:
    """``function`` without the caller's autocast: scores are sums of many small terms."""

    @functools.wraps(function)
    def computed(found: Sequence[PlacedProposals], **arguments: Any) -> Any:
        with torch.autocast(found[0].mask_logits.device.type, enabled=False):
            return function(found, **arguments)

    return computed  # type: ignore[return-value]


@_in_float32
def semantic_scores(
    found: Sequence[PlacedProposals], *, output_size: tuple[int, int], chunk_pixels: int
) -> tuple[Tensor, Tensor]:
    """Scores of all classes at every pixel: sum over proposals of class probability times mask.

    Args:
        found: the proposals of the windows, which together cover the output.
        output_size: (H, W).
        chunk_pixels: pixels handled at once, as :func:`pixels_at_once` has it; bounds the memory beyond the result to about
            12 Q chunk_pixels bytes.

    Returns:
        scores (K, H, W), and what makes confidences of them, max(1, sum of m) (H, W), see :class:`Labels`.
    """
    first = found[0].probabilities
    scores, coverage = first.new_empty(first.shape[1], *output_size), first.new_empty(output_size)
    width = output_size[1]
    for (rows, columns), probabilities, masks in strips(found, output_size, chunk_pixels):
        # The rows of a class lie together: the product goes where it belongs at once. Tracing, as of fvcore's counter of
        # operators, knows no ``out``.
        if columns == slice(0, width) and not torch.jit.is_tracing():
            torch.mm(probabilities.T, masks.flatten(1), out=scores.flatten(1)[:, rows.start * width : rows.stop * width])
        else:
            scores[:, rows, columns] = (probabilities.T @ masks.flatten(1)).view(-1, *masks.shape[1:])
        coverage[rows, columns] = _coverage(masks)
    return scores, coverage


@_in_float32
def best_classes(
    found: Sequence[PlacedProposals], *, output_size: tuple[int, int], chunk_pixels: int, rows: slice | None = None
) -> Labels:
    """The best class of every pixel, as :func:`semantic_scores` gives it but without computing all scores.

    Args:
        found, output_size, chunk_pixels: as there.
        rows: only these rows of the output; None: all.
    """
    offset, height = (0, output_size[0]) if rows is None else (rows.start, rows.stop - rows.start)
    first = found[0]
    labels = torch.empty(height, output_size[1], dtype=torch.long, device=first.mask_logits.device)
    confidence = first.probabilities.new_empty(height, output_size[1])
    for (down, across), probabilities, masks in strips(found, output_size, chunk_pixels, rows):
        where = slice(down.start - offset, down.stop - offset), across
        of_strip, best = labels[where], confidence[where]
        by_class = probabilities.T.contiguous()
        for tile, classes in _contenders(probabilities, masks):
            in_tile = masks[(slice(None), *tile)]
            highest, index = torch.mm(by_class[classes], in_tile.flatten(1)).max(dim=0)
            of_strip[tile] = classes[index].view(in_tile.shape[1:])
            best[tile] = highest.view(in_tile.shape[1:])
        best /= _coverage(masks)
    return Labels(labels, confidence)


def pixels_at_once(chunk_pixels: int, device: torch.device) -> int:
    """``chunk_pixels``, or where it is 0 what suits the device."""
    return chunk_pixels or (_CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ELSEWHERE)


def _coverage(masks: Tensor) -> Tensor:
    """max(1, sum of m): (Q, ...) -> (...)."""
    return masks.sum(dim=0).clamp(min=1)


def _contenders(probabilities: Tensor, masks: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Tiles of a strip, each with the classes, in rising order, that may be the best of one of its pixels.

    Within a small tile few classes can win, often one in a hundred, and the scores of the others need not be computed.
    Let lowest(q) and highest(q) be the extremes of mask q in a tile, and r the *rival*: the class with the best lower bound
    sum_q p(q, r) lowest(q). At every pixel class k leads r by

        sum_q (p(q, k) - p(q, r)) mask(q)  <=  sum_q (p(q, k) - p(q, r)) middle(q) + |p(q, k) - p(q, r)| reach(q)

    where middle and reach are half the sum and half the difference of the extremes. If the right side is negative, k never
    wins. It must be negative by more than the rounding, so that k does not win by a rounded score either.

    On other devices than a CPU, starting kernels for each tile takes longer than the arithmetic that it saves; there the
    tiles are as large as the memory of their scores may be, and all classes contend.

    Args:
        probabilities: (Q, K), none below 0.
        masks: (Q, strip, W), none below 0.
    """
    if masks.device.type not in _TILED_DEVICES:
        classes = torch.arange(probabilities.shape[1], device=masks.device)
        height = max(1, _SCORES_AT_ONCE // max(1, len(classes) * masks.shape[2]))
        for top in range(0, masks.shape[1], height):
            yield (slice(top, top + height), slice(None)), classes
        return
    lowest, highest = (_of_tiles(masks, extreme) for extreme in (torch.amin, torch.amax))  # (T, Q), T tiles
    lower, upper = lowest @ probabilities, highest @ probabilities  # (T, K)
    middle, reach = (upper + lower) / 2, (highest - lowest) / 2
    # A sum of Q terms is off by at most Q/2 steps of its size. Two scores and the bound, which has two more sums, are off by
    # less than 1.25 Q + 3 steps of both scores together. Below the smallest normal number a product may become 0.
    number, steps = torch.finfo(upper.dtype), 2 * (len(probabilities) + 4)
    rivals = lower.argmax(dim=1)
    possible = torch.empty_like(upper, dtype=torch.bool)
    for rival in rivals.unique():  # the tiles of one rival share |p(q, k) - p(q, r)|
        tiles = rivals == rival
        lead = middle[tiles] - middle[tiles, rival, None]
        lead += reach[tiles] @ (probabilities - probabilities[:, rival, None]).abs()
        rounding = steps * (number.eps * (upper[tiles] + upper[tiles, rival, None]) + 4 * number.tiny)
        possible[tiles] = ~(lead < -rounding)  # written so that NaN leaves a class in
    corners = product(*(range(0, size, _TILE) for size in masks.shape[1:]))
    found = possible.nonzero()[:, 1].split(possible.sum(dim=1).tolist())
    for (top, left), classes in zip(corners, found, strict=True):
        yield (slice(top, top + _TILE), slice(left, left + _TILE)), classes


def _of_tiles(masks: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """``torch.amin`` or ``torch.amax`` of masks (Q, strip, W) within each tile, row by row -> (T, Q)."""
    rows = torch.stack([extreme(band, dim=1) for band in masks.split(_TILE, dim=1)])
    return torch.stack([extreme(block, dim=2) for block in rows.split(_TILE, dim=2)], dim=1).flatten(0, 1)


def strips(
    found: Sequence[PlacedProposals], output_size: tuple[int, int], chunk_pixels: int, rows: slice | None = None
) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
    """The masks of all proposals that meet in parts of the output, a strip of rows at a time.

    Args:
        found, output_size, rows: as for :func:`best_classes`.
        chunk_pixels: at most so many values of a mask in a strip, over all windows that meet there; 0: as the device likes.

    Yields:
        rows and columns of the strip; class probabilities (Q', K); masks (Q', strip, columns) in [0, 1], multiplied by the
        weights of their windows.
    """
    chunk = pixels_at_once(chunk_pixels, found[0].mask_logits.device)
    for down, across, members in regions([part.place for part in found], output_size, rows):
        parts = [found[index] for index in members]
        probabilities = _joined([part.probabilities for part in parts])
        columns = [_ColumnsOf(part, across, output_size[1]) for part in parts]
        step = max(1, chunk // ((across.stop - across.start) * len(parts)))
        step -= step % _TILE if step > _TILE else 0
        for start in range(down.start, down.stop, step):
            strip = slice(start, min(start + step, down.stop))
            masks = [_masks(part, of_part, strip, output_size[0]) for part, of_part in zip(parts, columns, strict=True)]
            yield (strip, across), probabilities, _joined(masks)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _ColumnsOf:
    """How the masks of a window go along the rows of the output.

    As one product with a (w, columns) matrix: for many columns that is faster than gathering neighbours.
    """

    def __init__(self, part: PlacedProposals, columns: slice, width: int) -> None:
        place, cells, masks = part.place, part.mask_logits.shape[-1], part.mask_logits
        pixels = _pixels(columns, masks)
        left, right, weight = _neighbours(place.look.columns, place.column, pixels, width, cells, part.region[1], masks)
        self.matrix = masks.new_zeros(cells, len(pixels))
        index = torch.arange(len(pixels), device=masks.device)
        self.matrix[left, index] += 1 - weight
        self.matrix[right, index] += weight
        self.share: Tensor | None = None  # of the window in each column
        if not place.is_alone:
            share = place.look.share * place.look.columns.weights(place.column, pixels, width)
            self.share = share.to(masks)


def _upsampled(part: PlacedProposals, columns: _ColumnsOf, rows: slice, height: int) -> Tensor:
    """Mask logits (Q, rows, columns), bilinear (``align_corners=False``)."""
    logits, place = part.mask_logits, part.place
    pixels = _pixels(rows, logits)
    above, below, down = _neighbours(place.look.rows, place.row, pixels, height, logits.shape[-2], part.region[0], logits)
    return torch.lerp(logits[:, above], logits[:, below], down[:, None]) @ columns.matrix


def _masks(part: PlacedProposals, columns: _ColumnsOf, rows: slice, height: int) -> Tensor:
    """(Q, rows, columns) in [0, 1], multiplied by the window's weights."""
    masks = _upsampled(part, columns, rows, height).sigmoid_()
    if columns.share is not None:
        down = part.place.look.rows.weights(part.place.row, _pixels(rows, masks), height)
        masks *= down.to(masks)[:, None] * columns.share
    return masks


def cropped_masks(mask_logits: Tensor, region: tuple[float, float]) -> Tensor:
    """The part of mask logits (Q, h, w) that an image covers, ``region``, rounded to whole cells."""
    height, width = (max(1, round(cells)) for cells in region)
    (place,) = Look.whole((height, width)).places()
    part = PlacedProposals(mask_logits, mask_logits, region, place)
    return _upsampled(part, _ColumnsOf(part, slice(0, width), width), slice(0, height), height)


def _pixels(span: slice, like: Tensor) -> Tensor:
    """Numbers of rows or columns of the output on the device of ``like``, so that nothing waits for a copy; on the CPU where
    that is an Apple GPU, which has no float64."""
    return torch.arange(span.start, span.stop, device="cpu" if like.device.type == "mps" else like.device)


def _neighbours(
    axis: Axis, window: int, pixels: Tensor, output: int, cells: int, covered: float, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells between which pixels of the output lie, and the weight of the second, of which ``covered`` of ``cells``
    cells cover the window."""
    position = axis.positions(window, pixels, output, covered).clamp(0, cells - 1)
    lower = position.floor()
    weight = (position - lower).to(like)
    lower = lower.long().to(like.device)
    return lower, (lower + 1).clamp(max=cells - 1), weight
