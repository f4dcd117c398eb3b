"""Text prototypes: class names x templates -> one vector per class, from CLIP's text encoder.

Shapes: K classes, T templates, L tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from ..class_split import comparable, weighted_texts
from ..defaults import plain_defaults
from ..label_embeddings import Embedded, LabelEmbeddings
from ..ranges import Range
from ..storage import read_lines
from .loader import create_clip, get_tokenizer

# Text templates; a file may hold others. "vild" are the 14 of ViLD (Gu et al., ICLR 2022), the usual set of zero-shot
# segmentation.
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
    """The template set ``name``, or the templates in a file of this name.

    Args:
        name: one of :data:`TEMPLATES`, or the path of a .txt file with a template a line; each has ``{}`` once, where the
            name of a class stands.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown set, or a line without ``{}``.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.lower().endswith(".txt"):
        raise ValueError(
            f"unknown template set {name!r}; there are {', '.join(map(repr, TEMPLATES))}, or name a .txt file with a "
            "template a line"
        )
    templates = read_lines(name, "list of templates")
    for line in templates:
        if line.count("{}") != 1 or "{" in line.replace("{}", "") or "}" in line.replace("{}", ""):
            raise ValueError(
                f"the list of templates {name} has {line!r}: each line needs {{}} once, where a class's name stands"
            )
    return tuple(templates)


def template_set() -> Range:
    """The values of a key that names templates."""
    names = ", ".join(map(repr, TEMPLATES))
    return Range(
        lambda: f"one of {names}, or a .txt file with a template a line",
        lambda value: isinstance(value, str) and (value in TEMPLATES or value.lower().endswith(".txt")),
    )


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
    """Class prototypes: for each prompt the mean over synonyms ("tree|bush") and templates of unit text features; synonyms
    may have weights ("tree *2|bush").

    Returns:
        (K, D) float32 of unit length.

    Raises:
        ValueError: if ``prompts`` is empty, one of them is blank, or two of them are the same as far as CLIP reads them.
    """
    if not prompts:
        raise ValueError("the vocabulary is empty: give at least one class name")
    texts: list[str] = []
    owner: list[int] = []
    weights: list[float] = []
    for index, prompt in enumerate(prompts):
        synonyms = weighted_texts(prompt)
        if not synonyms:
            raise ValueError(f"class {index} has a blank name: {prompt!r}")
        for synonym, weight in synonyms:
            texts += [template.format(synonym) for template in templates]
            owner += [index] * len(templates)
            weights += [weight] * len(templates)
    device = next(clip.parameters()).device
    tokens = tokenizer(texts)
    _check_differences(prompts, owner, tokens)
    unpadded = _is_causal_clip(clip)
    lengths = tokens.argmax(dim=1) + 1 if unpadded else torch.full((len(texts),), tokens.shape[1])
    order = lengths.argsort()  # texts of like length share a batch, which is then cut to its longest
    features: list[Tensor] = []
    for rows in order.split(batch_size):
        batch = tokens[rows].to(device)
        batch_features = encode_tokens(clip, batch[:, : int(lengths[rows].max())]) if unpadded else clip.encode_text(batch)
        features.append(F.normalize(batch_features.float(), dim=-1).cpu())
    by_text = torch.cat(features)[order.argsort()] * torch.tensor(weights)[:, None]
    summed = torch.zeros(len(prompts), by_text.shape[1], dtype=by_text.dtype).index_add_(0, torch.tensor(owner), by_text)
    return F.normalize(summed, dim=-1)


def _check_differences(prompts: Sequence[str], owner: Sequence[int], tokens: Tensor) -> None:
    """Raise ValueError where CLIP cannot tell two prompts apart, although they are not spelt alike.

    Args:
        prompts: K texts.
        owner: the prompt of each text.
        tokens: of the texts (N, L).
    """
    read: dict[int, list[bytes]] = {}
    for index, row in zip(owner, tokens.numpy(), strict=True):
        read.setdefault(index, []).append(row.tobytes())
    first: dict[tuple[bytes, ...], int] = {}
    for index, rows in read.items():
        other = first.setdefault(tuple(rows), index)
        if comparable(prompts[other]) != comparable(prompts[index]):
            raise ValueError(
                f"the classes {_shortened(prompts[other])} and {_shortened(prompts[index])} are the same to CLIP, which "
                f"reads {tokens.shape[1]} tokens of a text: give one of them another name"
            )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:30]} ... {text[-30:]}")


def cut_prompts(tokenizer: Callable[[list[str]], Tensor], prompts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Those prompts whose texts are longer than CLIP reads: a word more makes no difference to their tokens."""
    texts = [[template.format(text) for text, _ in weighted_texts(prompt) for template in templates] for prompt in prompts]
    longest = [max(of_prompt, key=len) for of_prompt in texts]
    # A token stands for at least a byte, and two mark the ends: shorter texts are whole.
    most = tokenizer([""]).shape[1] - 2
    long = [index for index, text in enumerate(longest) if len(text.encode()) >= most]
    if not long:
        return []
    longest, prompts = [longest[index] for index in long], [prompts[index] for index in long]
    same = (tokenizer(longest) == tokenizer([f"{text} more" for text in longest])).all(dim=1)
    return [prompt for prompt, is_cut in zip(prompts, same.tolist(), strict=True) if is_cut]


class ClipTextEmbeddings(LabelEmbeddings):
    """Prototypes by CLIP's text encoder, computed once per vocabulary.

    The text encoder itself is loaded only when a vocabulary is in neither cache, and let go at once.
    """

    def __init__(self, *, name: str, pretrained: str, templates: Sequence[str], weights_hash: str, kept: int = 16) -> None:
        """
        Args:
            name, pretrained: as for :func:`zeroshot_d2.clip.loader.create_clip`.
            templates: texts with one ``{}`` for the class.
            weights_hash: the fingerprint of that CLIP; part of the cache's key.
            kept: how many vocabularies stay in memory.
        """
        super().__init__(source=f"{name} {weights_hash}", templates=templates, kept=kept)
        self.name, self.pretrained = name, pretrained
        self.weights_hash = weights_hash

    @plain_defaults()
    def compute(self, prompts: tuple[str, ...], **at_hand: Any) -> Embedded:
        """The prototypes; ``clip=`` spares loading it where it is at hand anyway."""
        clip = at_hand.get("clip") or create_clip(self.name, self.pretrained)
        tokenizer = get_tokenizer(self.name)
        vectors = embed_prompts(clip, tokenizer, prompts, self.templates)
        cut = cut_prompts(tokenizer, prompts, self.templates)
        shown = ", ".join(map(_shortened, cut[:10]))
        return Embedded(vectors, f"{len(cut)} classes are longer than CLIP reads, and are cut: {shown}" if cut else "")
