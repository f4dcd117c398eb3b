"""Label vectors from a file of word vectors, such as GloVe's or fastText's.

Shapes: K labels, D length of the vectors, V words of a file.
"""

from __future__ import annotations

import functools
import gzip
import logging
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .class_split import weighted_texts
from .label_embeddings import Embedded, LabelEmbeddings
from .storage import DAMAGED_ARCHIVE, PathLike, datasets_root, file_sha256, whole_file, wrong_content

logger = logging.getLogger(__name__)

_SMALLEST_PIECE = 3  # letters of a word that a compound may be cut into
_JOINERS = "\u200c\u200d"  # within words of Indic scripts
_RULES = "2"  # counted up when other vectors come out of the same file: part of the cache's key


@dataclass(frozen=True)
class Excerpt:
    """Where an ``.npz`` with the vectors of some labels comes from.

    Args:
        source: name of the whole file.
        sha256: of the whole file.
        labels: the texts that have the vectors which the whole file gives them; any other may have a worse one.
    """

    source: str
    sha256: str
    labels: tuple[str, ...]


class WordVectorEmbeddings(LabelEmbeddings):
    """Label vectors out of a file of word vectors.

    A file is text (a word and its D numbers per line, as GloVe's and fastText's; gzipped or not) or ``.npz`` with "names"
    (V,) and "vectors" (V, D). Of a word that it has twice, the first vector counts. Words are compared in Unicode's composed
    form.

    A label is looked up as it is written, in lower case and case-folded, with its spaces as they are, as "_", "-" or
    nothing. One that is not there is the mean of its words; a word that is not there is taken in the singular, and else as
    the mean of the known words of at least three letters that it is composed of ("goldengate"). Labels that were put
    together are logged.

    An excerpt, see :func:`write_excerpt`, stands for the whole file and takes the labels that it was made for alone.

    Attributes:
        given: the file, as it was given.
        file: where it is.
        weights_hash: SHA-256 of the file, or of the whole one where it is an excerpt.
    """

    def __init__(self, file: PathLike, kept: int = 16, *, unit_length: bool = True) -> None:
        """
        Args:
            file: as above; a relative path is also looked for in ``$DETECTRON2_DATASETS`` (./datasets by default).
            kept: how many vocabularies stay in memory.
            unit_length: bring vectors to unit length; False takes them as the file has them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is a damaged excerpt.
        """
        self.given = os.fspath(file)
        self.file = _find_word_vectors(Path(file).expanduser())
        self.unit_length = unit_length
        self.excerpt = _read_excerpt(self.file) if self.file.suffix.lower() == ".npz" else None
        self.weights_hash = file_sha256(self.file) if self.excerpt is None else self.excerpt.sha256
        length = "unit" if unit_length else "raw"
        super().__init__(source=f"words {_RULES} {length} {self.weights_hash}", templates=(), kept=kept)

    def compute(self, prompts: tuple[str, ...], **at_hand: Any) -> Embedded:
        """Vectors (K, D) of ``prompts``; of "tree|bush" the mean of both.

        Raises:
            ValueError: labels none of whose parts is in the file, labels whose vector is zero, or a malformed file.
        """
        if not prompts:
            raise ValueError("the vocabulary is empty: give at least one class name")
        weighted = [weighted_texts(prompt) for prompt in prompts]
        synonyms = [[text for text, _ in of_prompt] for of_prompt in weighted]
        self._check_covered(text for texts in synonyms for text in texts)
        vectors = read_word_vectors(self.file, _wanted(text for texts in synonyms for text in texts))
        embeddings: list[np.ndarray] = []
        unknown: list[str] = []
        zero: list[str] = []
        composed: list[str] = []
        for prompt, of_prompt in zip(prompts, weighted, strict=True):
            found = {text: _words_of(text, vectors) for text, _ in of_prompt}
            weights = [weight for text, weight in dict(of_prompt).items() if found[text][0]]
            if not any(words for words, _ in found.values()):
                unknown.append(prompt)
                continue
            composed += [_note(text, *parts) for text, parts in found.items() if not _as_written(text, *parts)]
            rows = [np.mean([vectors[word] for word in words], axis=0) for words, _ in found.values() if words]
            if self.unit_length:
                rows = [row / max(np.linalg.norm(row), 1e-12) for row in rows]
            embeddings.append(np.average(rows, axis=0, weights=weights))
            if not np.linalg.norm(embeddings[-1]) > 1e-6:
                zero.append(prompt)
        if unknown:
            raise ValueError(
                f"{self.file} has no vector for {len(unknown)} of {len(prompts)} labels, nor for their parts: "
                f"{unknown[:20]}. Give them another prompt (ClassSplit.prompts) or take word vectors that know them"
            )
        if zero:
            raise ValueError(
                f"the vectors of {zero[:20]} in {self.file} are zero, or cancel each other: such a label has no direction. "
                "Give it another prompt (ClassSplit.prompts), or correct the file"
            )
        stacked = torch.from_numpy(np.stack(embeddings)).float()
        note = (
            f"{len(composed)} labels are not in {self.file} and were put together from their parts: {', '.join(composed)}"
            if composed
            else ""
        )
        return Embedded(F.normalize(stacked, dim=-1) if self.unit_length else stacked, note)

    def _check_covered(self, texts: Iterable[str]) -> None:
        if self.excerpt is None:
            return
        asked = _wanted(self.excerpt.labels)
        others = [text for text in texts if not asked.issuperset(_all_spellings(text))]
        if others:
            raise ValueError(
                f"{self.file} is an excerpt of {self.excerpt.source} for {len(self.excerpt.labels)} labels, and "
                f"{others[:20]} are not among them: give the path of {self.excerpt.source} as LABEL_EMBEDDINGS.FILE"
            )


def _wanted(texts: Iterable[str]) -> set[str]:
    """Everything that is looked up for some texts."""
    return {spelling for text in texts for spelling in _all_spellings(text)}


def centred(vectors: Tensor, mean: Tensor, *, unit_length: bool = True) -> Tensor:
    """``vectors`` (K, D) without the ``mean`` (D,) of a vocabulary, brought to ``unit_length`` unless told otherwise.

    Label vectors share a large common part; without it they differ more clearly.
    """
    return F.normalize(vectors - mean, dim=-1) if unit_length else vectors - mean


# ------------------------------------------------------------------------------------------------------------- files
def read_word_vectors(file: PathLike, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors (D,) float32 of those of ``wanted`` that a file has; a text file is read line by line.

    Raises:
        ValueError: the file is not of the form that :class:`WordVectorEmbeddings` describes; the line is named.
    """
    path = Path(file)
    found = _read_npz(path, wanted) if path.suffix.lower() == ".npz" else _read_text(path, wanted)
    for word, vector in found.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"{path}: the vector of {word!r} holds NaN or infinity: correct it, or take another file")
    return found


def write_excerpt(words: WordVectorEmbeddings, labels: Iterable[str], path: PathLike) -> None:
    """Write what a file of word vectors has for some labels as ``.npz``, to be used in its place for them.

    Args:
        words: of the file; an excerpt is copied whole.
        labels: texts, without "|".
        path: ending with ``.npz``.

    Raises:
        ValueError: as :func:`read_word_vectors`.
        OSError: the file cannot be written.
    """
    if words.excerpt is not None:
        content = words.file.read_bytes()
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        return
    texts = sorted(set(labels))
    found = read_word_vectors(words.file, _wanted(texts))
    with whole_file(path) as temporary:
        np.savez_compressed(
            temporary,
            names=np.array(list(found)),
            vectors=np.stack(list(found.values())),
            source=np.array(words.file.name),
            sha256=np.array(words.weights_hash),
            labels=np.array(texts),
        )


def _read_excerpt(path: Path) -> Excerpt | None:
    """What an ``.npz`` says of the whole file that it is an excerpt of; None where it says nothing."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not {"source", "sha256", "labels"} <= set(stored.files):
                return None
            return Excerpt(str(stored["source"]), str(stored["sha256"]), tuple(map(str, stored["labels"].tolist())))
    except DAMAGED_ARCHIVE as error:
        raise _damaged_npz(path, error) from error


def _damaged_npz(path: Path, error: Exception) -> ValueError:
    with path.open("rb") as stream:
        reason = wrong_content(stream.read(64))
    return ValueError(
        f"{path}: {reason}"
        if reason
        else f"{path} is damaged or holds Python objects, which are not read ({error}): save names as an array of dtype str"
    )


def _read_npz(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not {"names", "vectors"} <= set(stored.files):
                raise ValueError(f'{path} must hold "names" and "vectors", it holds {stored.files}')
            names, table = stored["names"], stored["vectors"]
    except DAMAGED_ARCHIVE as error:
        if str(error).startswith(str(path)):
            raise
        raise _damaged_npz(path, error) from error
    if names.dtype.kind != "U" or table.dtype.kind not in "fiu":
        raise ValueError(
            f'{path}: "names" must be an array of texts and "vectors" one of numbers, got {names.dtype} and {table.dtype}'
        )
    if table.ndim != 2 or not table.size or names.shape != table.shape[:1]:
        raise ValueError(
            f"{path} holds {names.size} names for vectors of shape {table.shape}: there must be a row for each name"
        )
    vectors: dict[str, np.ndarray] = {}
    for row, name in enumerate(names.tolist()):
        word = unicodedata.normalize("NFC", name)
        if word in wanted:
            vectors.setdefault(word, table[row].astype(np.float32))
    return vectors


def _read_text(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    width = undecodable = 0
    for number, line in _lines(path):
        undecodable += "\ufffd" in line
        if line.startswith(("<<<<<<< ", ">>>>>>> ")):
            raise ValueError(f"{path}, line {number}: an unresolved git conflict; resolve it")
        if not width:
            fields = line.split()
            width = int(fields[1]) if _is_header(fields, number) else len(fields) - 1
            if _is_header(fields, number):
                continue
        if unicodedata.normalize("NFC", line.partition(" ")[0]) not in wanted:
            continue
        raw, *numbers = line.rstrip().rsplit(" ", width)
        word = unicodedata.normalize("NFC", raw)
        if word not in wanted and not _is_number(raw.rpartition(" ")[2]):
            continue  # GloVe 840B has words with spaces, such as ". . ."
        count = len(line.split()) - 1 if word not in wanted else len(numbers)
        if count != width:
            raise ValueError(
                f"{path}, line {number}: {count} numbers where the first line has {width}: correct it, or fetch it again"
            )
        try:
            vectors.setdefault(word, np.array(numbers, dtype=np.float32))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no word followed by {width} numbers ({error})") from error
    if undecodable:
        logger.warning("%s: %d lines are not UTF-8, their words cannot be found: save it anew as UTF-8", path, undecodable)
    return vectors


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_header(fields: list[str], number: int) -> bool:
    """fastText's first line: V D."""
    return number == 1 and len(fields) == 2 and fields[1].isdecimal()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file in UTF-8 or UTF-16, gzipped or not."""
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        raise ValueError(f"{path} is a zip archive: unpack it and name the file inside")
    opener = gzip.open if head[:2] == b"\x1f\x8b" else open
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with cast(IO[str], opener(path, "rt", encoding=encoding, errors="replace")) as lines:
        try:
            yield from enumerate(lines, start=1)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error


def _find_word_vectors(file: Path) -> Path:
    root = datasets_root()
    for path in (file, root / file):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"word vectors {file} not found, neither there nor in {root}. Download GloVe (nlp.stanford.edu/projects/glove) "
        "or give another file of word vectors"
    )


# --------------------------------------------------------------------------------------------------------- spellings
def _cases(text: str) -> list[str]:
    """As written, in lower case and case-folded, composed."""
    return list(dict.fromkeys(unicodedata.normalize("NFC", form) for form in (text, text.lower(), text.casefold())))


def _spellings(text: str) -> list[str]:
    """How a file may write a label, the likeliest first."""
    joined = (sign.join(text.split()) for sign in (" ", "_", "-", ""))
    return list(dict.fromkeys(form for joint in joined for form in _cases(joint)))


def _parts(text: str) -> list[str]:
    """The words of a label: runs of letters, digits and the marks that belong to them."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c if unicodedata.category(c)[0] in "LMN" or c in _JOINERS else " " for c in composed).split()


def _singulars(word: str) -> list[str]:
    """What an English plural may be the plural of."""
    endings = (("ies", "y"), ("ves", "f"), ("s", ""), ("es", ""))
    return [word.removesuffix(end) + new for end, new in endings if word.endswith(end) and len(word) > len(end) + 1]


def _word_forms(part: str) -> list[str]:
    """The spellings of one word, the likeliest first; the singular comes behind all forms of the word itself."""
    cases = _cases(part)
    return list(dict.fromkeys([*cases, *(singular for case in cases for singular in _singulars(case))]))


def _cuts(word: str) -> list[int]:
    """Where a word may be cut: never before a mark that belongs to the letter in front of it."""
    inside = [i for i in range(1, len(word)) if unicodedata.category(word[i])[0] != "M" and word[i] not in _JOINERS]
    return [0, *(i for i in inside if word[i - 1] not in _JOINERS), len(word)]


def _is_piece(text: str) -> bool:
    return sum(unicodedata.category(c)[0] in "LN" for c in text) >= _SMALLEST_PIECE


def _all_spellings(text: str) -> set[str]:
    """Everything that :func:`_words_of` may look up."""
    pieces: set[str] = set()
    for part in _parts(text):
        for word in _cases(part):
            cuts = _cuts(word)
            pieces |= {word[i:j] for i in cuts for j in cuts if i < j and _is_piece(word[i:j])}
    return {*_spellings(text), *pieces, *(form for part in _parts(text) for form in _word_forms(part))}


def _words_of(text: str, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words whose mean stands for ``text``, and its parts that no known word stands for."""
    for spelling in _spellings(text):
        if spelling in known:
            return (spelling,), ()
    words: list[str] = []
    missing: list[str] = []
    for part in _parts(text):
        whole = next((form for form in _word_forms(part) if form in known), None)
        pieces = [whole] if whole is not None else next(filter(None, (_compound(case, known) for case in _cases(part))), [])
        words += pieces
        missing += [] if pieces else [part]
    return tuple(words), tuple(missing)


def _as_written(text: str, words: tuple[str, ...], missing: tuple[str, ...]) -> bool:
    return not missing and len(words) == 1 and words[0] in _spellings(text)


def _note(text: str, words: tuple[str, ...], missing: tuple[str, ...]) -> str:
    without = f" (without {', '.join(missing)})" if words and missing else ""
    return f"{text} = {' + '.join(words) or 'not found'}{without}"


def _compound(word: str, known: Collection[str]) -> list[str]:
    """``word`` cut into known words of at least three letters, long ones preferred; [] where that is impossible."""
    cuts = _cuts(word)

    @functools.cache
    def best(end: int) -> tuple[int, tuple[str, ...]] | None:
        if end == 0:
            return 0, ()
        options = []
        for start in range(end):
            piece = word[cuts[start] : cuts[end]]
            before = best(start) if piece in known and _is_piece(piece) else None
            if before is not None:
                options.append((before[0] + len(piece) ** 2, (*before[1], piece)))
        return max(options, default=None)

    whole = best(len(cuts) - 1)
    return list(whole[1]) if whole is not None else []
