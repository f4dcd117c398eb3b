"""Label vectors from a file of word vectors, such as GloVe's or fastText's.

Shapes: K labels, D length of the vectors, V words of a file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .label_embeddings import LabelEmbeddings
from .storage import datasets_root

logger = logging.getLogger(__name__)


class WordVectorEmbeddings(LabelEmbeddings):
    """Label vectors out of a file of word vectors.

    A file is text (a word and its D numbers per line, as GloVe's and fastText's) or ``.npz`` with "names" (V,) and
    "vectors" (V, D). A label is looked up as it is written, in lower case, and with its spaces as "_", "-" or nothing. One
    that is not there is the mean of its words, a word that is not there the mean of the shorter ones it is composed of
    ("goldengate"). Labels that were put together are logged.
    """

    def __init__(self, file: str | os.PathLike[str], kept: int = 16) -> None:
        """
        Args:
            file: as above; a relative path is also looked for in ``$DETECTRON2_DATASETS`` (./datasets by default).
            kept: how many vocabularies stay in memory.

        Raises:
            FileNotFoundError: there is no such file.
        """
        self.file = _find_word_vectors(Path(file).expanduser())
        self.weights_hash = _file_hash(self.file)
        super().__init__(source=f"words {self.weights_hash}", templates=(), kept=kept)

    def compute(self, prompts: tuple[str, ...]) -> Tensor:
        """Unit vectors (K, D) of ``prompts``; of "tree|bush" the mean of both.

        Raises:
            ValueError: labels none of whose parts is in the file, or a malformed file.
        """
        if not prompts:
            raise ValueError("the vocabulary is empty: give at least one class name")
        synonyms = [[text.strip() for text in prompt.split("|") if text.strip()] for prompt in prompts]
        wanted = {spelling for texts in synonyms for text in texts for spelling in _all_spellings(text)}
        vectors = read_word_vectors(self.file, wanted)
        embeddings: list[np.ndarray] = []
        unknown: list[str] = []
        composed: dict[str, tuple[str, ...]] = {}
        for prompt, texts in zip(prompts, synonyms, strict=True):
            found = [words for words in (_words_of(text, vectors) for text in texts) if words]
            if not found:
                unknown.append(prompt)
                continue
            for text, words in zip(texts, (_words_of(text, vectors) for text in texts), strict=True):
                if len(words) != 1 or words[0] not in _spellings(text):
                    composed[text] = words
            rows = [np.mean([vectors[word] for word in words], axis=0) for words in found]
            embeddings.append(np.mean([row / np.linalg.norm(row) for row in rows], axis=0))
        if unknown:
            raise ValueError(
                f"{self.file} has no vector for {len(unknown)} of {len(prompts)} labels, nor for their parts: "
                f"{unknown[:20]}. Give them another prompt (ClassSplit.prompts) or take word vectors that know them"
            )
        if composed:
            shown = ", ".join(f"{text} = {' + '.join(words) or 'not found'}" for text, words in list(composed.items())[:20])
            logger.warning(
                "%d labels are not in %s and were put together from their parts: %s", len(composed), self.file, shown
            )
        return F.normalize(torch.from_numpy(np.stack(embeddings)).float(), dim=-1)


def read_word_vectors(file: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors (D,) float32 of those of ``wanted`` that a file has; a text file is read line by line.

    Raises:
        ValueError: the file is not of the form that :class:`WordVectorEmbeddings` describes.
    """
    path = Path(file)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            if not {"names", "vectors"} <= set(stored.files):
                raise ValueError(f'{path} must hold "names" and "vectors", it holds {stored.files}')
            names, table = stored["names"].tolist(), stored["vectors"]
        if table.ndim != 2 or len(names) != len(table):
            raise ValueError(f"{path}: {len(names)} names for vectors of shape {table.shape}")
        return {name: table[row].astype(np.float32) for row, name in enumerate(names) if name in wanted}
    vectors: dict[str, np.ndarray] = {}
    width = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not width:
                fields = line.split()
                width = int(fields[1]) if len(fields) == 2 and number == 1 else len(fields) - 1  # fastText's first line: V D
                if len(fields) == 2 and number == 1:
                    continue
            if line.partition(" ")[0] not in wanted:
                continue
            word, *numbers = line.rstrip().rsplit(" ", width)
            if word not in wanted:  # GloVe 840B has words with spaces, such as ". . ."
                continue
            if len(numbers) != width:
                raise ValueError(f"{path}, line {number}: {len(numbers)} numbers where the first line has {width}")
            try:
                vectors.setdefault(word, np.array(numbers, dtype=np.float32))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no word followed by {width} numbers ({error})") from error
    return vectors


def centred(vectors: Tensor, mean: Tensor) -> Tensor:
    """``vectors`` (K, D) without the ``mean`` (D,) of a vocabulary, brought back to unit length.

    Label vectors share a large common part; without it they differ more clearly.
    """
    return F.normalize(vectors - mean, dim=-1)


def _find_word_vectors(file: Path) -> Path:
    root = datasets_root()
    for path in (file, root / file):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"word vectors {file} not found, neither there nor in {root}. Download GloVe (nlp.stanford.edu/projects/glove) "
        "or give another file of word vectors"
    )


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _spellings(text: str) -> list[str]:
    """How a file may write a label, the likeliest first."""
    lower = text.casefold()
    return list(dict.fromkeys([text, lower, *(sign.join(lower.split()) for sign in ("_", "-", ""))]))


def _parts(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold().replace("_", " "))


def _all_spellings(text: str) -> set[str]:
    """Everything that :func:`_words_of` may look up."""
    pieces = (part[i:j] for part in _parts(text) for i in range(len(part)) for j in range(i + 2, len(part) + 1))
    return {*_spellings(text), *_parts(text), *pieces}


def _words_of(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The words whose mean stands for ``text``: itself if it is known; () if none of its parts is."""
    for spelling in _spellings(text):
        if spelling in known:
            return (spelling,)
    words: list[str] = []
    for part in _parts(text):
        words += [part] if part in known else _compound(part, known)
    return tuple(words)


def _compound(word: str, known: Collection[str]) -> list[str]:
    """``word`` cut into known words of at least two letters, long ones preferred; [] where that is impossible."""
    best: list[tuple[int, list[str]] | None] = [(0, [])] + [None] * len(word)
    for end in range(2, len(word) + 1):
        for start in range(end - 1):
            before = best[start]
            if before is None or word[start:end] not in known:
                continue
            score = before[0] + (end - start) ** 2
            current = best[end]
            if current is None or score > current[0]:
                best[end] = score, [*before[1], word[start:end]]
    whole = best[-1]
    return whole[1] if whole else []
