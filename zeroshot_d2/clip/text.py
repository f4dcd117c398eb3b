"""Label embeddings: class names -> one vector per class, from CLIP's text encoder or from word vectors, cached on disk.

Shapes: K classes, T templates, L tokens, D embedding, V words of a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from zeroshot_d2.clip_loader import create_clip, get_tokenizer

logger = logging.getLogger(__name__)

# Text templates. "vild" are the 14 of ViLD (Gu et al., ICLR 2022), the usual set of zero-shot segmentation.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}.",),
    "vild": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
    ),
    "imagenet": tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
}


def get_templates(name: str) -> tuple[str, ...]:
    """The template set ``name``.

    Raises:
        ValueError: unknown set.
    """
    if name not in TEMPLATES:
        raise ValueError(f"unknown template set {name!r}; there are {', '.join(map(repr, TEMPLATES))}")
    return TEMPLATES[name]


def encode_tokens(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """CLIP's text features of tokens cut to any length that holds the longest text.

    The text tower is causal and reads its output at the end-of-text token, so nothing behind that token can change it:
    ten tokens cost an eighth of the 77 to which CLIP pads, and give the same features.

    Args:
        tokens: (N, L) ids, L at most the model's context length.

    Returns:
        (N, D), not normalised.
    """
    if not _is_causal_clip(clip):
        raise ValueError(f"{type(clip).__name__} is not a CLIP with a causal text tower read at its end-of-text token")
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    return x @ clip.text_projection


def _is_causal_clip(clip: open_clip.CLIP) -> bool:
    return (
        isinstance(clip, open_clip.CLIP)
        and clip.attn_mask is not None
        and clip.text_pool_type == "argmax"
        and isinstance(clip.text_projection, torch.nn.Parameter)
    )


@torch.no_grad()
def embed_prompts(
    clip: open_clip.CLIP,
    tokenizer: Callable[[list[str]], Tensor],
    prompts: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 512,
) -> Tensor:
    """Class prototypes: for each prompt the mean over synonyms ("tree|bush") and templates of unit text features.

    Returns:
        (K, D) float32 of unit length.

    Raises:
        ValueError: if ``prompts`` is empty or one of them is blank.
    """
    if not prompts:
        raise ValueError("the vocabulary is empty: give at least one class name")
    texts: list[str] = []
    owner: list[int] = []
    for index, prompt in enumerate(prompts):
        synonyms = [synonym.strip() for synonym in prompt.split("|") if synonym.strip()]
        if not synonyms:
            raise ValueError(f"class {index} has a blank name: {prompt!r}")
        for synonym in synonyms:
            texts += [template.format(synonym) for template in templates]
            owner += [index] * len(templates)
    device = next(clip.parameters()).device
    tokens = tokenizer(texts)
    unpadded = _is_causal_clip(clip)
    lengths = tokens.argmax(dim=1) + 1 if unpadded else torch.full((len(texts),), tokens.shape[1])
    order = lengths.argsort()  # texts of like length share a batch, which is then cut to its longest
    features: list[Tensor] = []
    for rows in order.split(batch_size):
        batch = tokens[rows].to(device)
        batch_features = encode_tokens(clip, batch[:, : int(lengths[rows].max())]) if unpadded else clip.encode_text(batch)
        features.append(F.normalize(batch_features.float(), dim=-1).cpu())
    by_text = torch.cat(features)[order.argsort()]
    summed = torch.zeros(len(prompts), by_text.shape[1]).index_add_(0, torch.tensor(owner), by_text)
    return F.normalize(summed, dim=-1)


class ClipTextEmbeddings:
    """Prototypes by CLIP's text encoder, computed once per vocabulary.

    They are kept in memory for the vocabularies used last and on disk for good. The text encoder itself is loaded only when
    a vocabulary is in neither place, and let go at once.
    """

    def __init__(self, *, name: str, pretrained: str, templates: Sequence[str], weights_hash: str, kept: int = 16) -> None:
        """
        Args:
            name, pretrained: as for :func:`zeroshot_d2.clip_loader.create_clip`.
            templates: texts with one ``{}`` for the class.
            weights_hash: the fingerprint of that CLIP; part of the cache's key.
            kept: how many vocabularies stay in memory.
        """
        self.name, self.pretrained = name, pretrained
        self.templates = tuple(templates)
        self.weights_hash = weights_hash
        self._kept = kept
        self._memory: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str], clip: open_clip.CLIP | None = None) -> Tensor:
        """Unit prototypes (K, D) of ``prompts``, on the CPU; ``clip`` spares loading it where it is at hand anyway."""
        key = tuple(prompts)
        if key not in self._memory:
            self._memory[key] = cached_embeddings(
                lambda: self._embed(key, clip),
                source=f"{self.name} {self.weights_hash}",
                prompts=key,
                templates=self.templates,
            )
            if len(self._memory) > self._kept:
                self._memory.popitem(last=False)
        self._memory.move_to_end(key)
        return self._memory[key]

    def _embed(self, prompts: Sequence[str], clip: open_clip.CLIP | None) -> Tensor:
        if clip is None:
            clip = create_clip(self.name, self.pretrained)
        return embed_prompts(clip, get_tokenizer(self.name), prompts, self.templates)


def cache_directory() -> Path:
    """Where embeddings are kept: $ZEROSHOT_D2_CACHE, else ~/.cache/zeroshot_d2."""
    return Path(os.environ.get("ZEROSHOT_D2_CACHE", "~/.cache/zeroshot_d2")).expanduser()


def cached_embeddings(
    compute: Callable[[], Tensor], *, source: str, prompts: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """``compute()``, or what it gave before for the same source, prompts and templates.

    Args:
        compute: gives (K, D); called only when the cache has no entry.
        source: identifies the model and its weights, e.g. "ViT-B-16-quickgelu <sha256>".
    """
    key = json.dumps({"source": source, "prompts": list(prompts), "templates": list(templates)}, sort_keys=True)
    path = cache_directory() / f"text_{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return torch.from_numpy(stored["embeddings"])
    embeddings = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written whole or not at all: several processes may want the same entry at once.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, key=np.array(key), embeddings=embeddings.numpy())
    os.replace(file.name, path)
    return embeddings


# ------------------------------------------------------------------------------------------------- word vectors
class WordVectorEmbeddings:
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
        self._kept = kept
        self._memory: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (K, D) of ``prompts``, on the CPU; of "tree|bush" the mean of both.

        Raises:
            ValueError: labels none of whose parts is in the file, or a malformed file.
        """
        key = tuple(prompts)
        if key not in self._memory:
            self._memory[key] = cached_embeddings(
                lambda: self._embed(key), source=f"words {self.weights_hash}", prompts=key, templates=()
            )
            if len(self._memory) > self._kept:
                self._memory.popitem(last=False)
        self._memory.move_to_end(key)
        return self._memory[key]

    def _embed(self, prompts: Sequence[str]) -> Tensor:
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
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
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
