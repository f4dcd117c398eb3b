"""Label embeddings: class names -> one vector per class, computed once per vocabulary and kept in memory and on disk.

Shapes: K classes, D embedding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .storage import DAMAGED_ARCHIVE, cache_directory, whole_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What was computed for a vocabulary.

    Args:
        vectors: (K, D), on the CPU.
        note: what the user must know of how they came about; logged, also when they come from the cache. Empty: nothing.
    """

    vectors: Tensor
    note: str = ""


class LabelEmbeddings:
    """Prompts -> unit vectors; a subclass computes them. Safe to call from several threads."""

    def __init__(self, *, source: str, templates: Sequence[str], kept: int = 16) -> None:
        """
        Args:
            source: identifies where the vectors come from, e.g. "ViT-B-16-quickgelu <sha256>"; part of the cache's key.
            templates: texts with one ``{}`` for the class, if there are any; part of the cache's key.
            kept: how many vocabularies stay in memory.
        """
        self.source, self.templates = source, tuple(templates)
        self._kept = kept
        self._memory: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()  # of the memory, held for a moment: known vocabularies wait for no new one
        self._computing = threading.RLock()

    @abstractmethod
    def compute(self, prompts: tuple[str, ...], **at_hand: Any) -> Embedded:
        """The vectors (K, D) of ``prompts``."""

    def __call__(self, prompts: Sequence[str], **at_hand: Any) -> Tensor:
        """Unit vectors (K, D) of ``prompts``, on the CPU, as a copy of the caller's own.

        Args:
            prompts: a text per class; synonyms are separated by ``|``.
            at_hand: what spares :meth:`compute` loading it, such as a CLIP.
        """
        key = tuple(prompts)
        vectors = self._recall(key)
        if vectors is None:
            with self._computing:  # the text encoder is loaded once, not once a thread
                vectors = self._recall(key)
                if vectors is None:
                    vectors = self._keep(key, self._found(key, at_hand))
        return vectors.clone()

    def _recall(self, key: tuple[str, ...]) -> Tensor | None:
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)

    def _keep(self, key: tuple[str, ...], vectors: Tensor) -> Tensor:
        with self._lock:
            self._memory[key] = vectors
            if len(self._memory) > self._kept:
                self._memory.popitem(last=False)
        return vectors

    def _found(self, key: tuple[str, ...], at_hand: Mapping[str, Any]) -> Tensor:
        # Outside of inference mode: vectors that are made in it could not take part in a later training.
        with torch.inference_mode(False), torch.no_grad():
            found = cached_embeddings(
                lambda: self.compute(key, **at_hand), source=self.source, prompts=key, templates=self.templates
            )
        if found.note:
            logger.warning("%s", found.note)
        return found.vectors

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {**self.__dict__, "_memory": OrderedDict(self._memory)}
        return {key: value for key, value in state.items() if key not in ("_lock", "_computing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_locks()

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelEmbeddings:
        copied = type(self).__new__(type(self))
        copied.__setstate__(self.__getstate__())
        return copied


def cached_embeddings(
    compute: Callable[[], Embedded], *, source: str, prompts: Sequence[str], templates: Sequence[str]
) -> Embedded:
    """``compute()``, or what it gave before for the same source, prompts and templates.

    An entry that is damaged is computed again. Without a folder that can be written to, nothing is kept.

    Args:
        compute: called only when the cache has no entry.
        source: identifies the model and its weights, e.g. "ViT-B-16-quickgelu <sha256>".
    """
    key = json.dumps({"source": source, "prompts": list(prompts), "templates": list(templates)}, sort_keys=True)
    path = cache_directory() / f"text_{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["key"]) == key:
                    found = stored["embeddings"]
                    if found.ndim != 2 or len(found) != len(prompts) or found.dtype != np.float32:
                        raise ValueError(f"{found.dtype} values of shape {found.shape} for {len(prompts)} classes")
                    if not np.isfinite(found).all():
                        raise ValueError("it holds NaN or infinity")
                    return Embedded(torch.from_numpy(found), str(stored["note"]))
        except DAMAGED_ARCHIVE as error:
            logger.warning("the cache entry %s is damaged (%s): computed again", path, error)
    # Loading a text encoder draws random numbers. Whether the cache had an entry must not change what training draws next.
    with torch.random.fork_rng(devices=[]):
        embeddings = compute()
    try:
        with whole_file(path) as temporary:
            np.savez(temporary, key=np.array(key), embeddings=embeddings.vectors.numpy(), note=np.array(embeddings.note))
    except OSError as error:
        _warn_not_kept(str(cache_directory()), str(error))
    return embeddings


@functools.cache
def _warn_not_kept(folder: str, problem: str) -> None:
    """Say once that the cache cannot be used."""
    logger.warning(
        "label embeddings are not kept: %s cannot be written (%s); $ZEROSHOT_D2_CACHE names another folder", folder, problem
    )
