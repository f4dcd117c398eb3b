"""Which classes a vocabulary has, which of them are unseen in training, and what text stands for each.

K is the number of classes. A :class:`ClassSplit` is the one place where "zero-shot" is written down for a data
set: it lives in ``MetadataCatalog.get(name).class_split`` and everything else (lookup tables, text prototypes,
bias correction, metrics) asks it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Vocabulary = Literal["all", "seen", "unseen"]
"""The part of a split that a data set's vocabulary holds."""

Names = Literal["released", "reworded"]
"""Which texts stand for the classes: those of the data set's release, unchanged, or the prompts."""

_FIELDS = ("names", "unseen", "prompts", "aliases", "released")

_WEIGHTED = re.compile(r"(.*\S)\s*\*\s*(\d+(?:\.\d+)?)")

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]


def _as_texts(value: object, field: str) -> tuple[str, ...]:
    """Turn a list or tuple of strings into a tuple of strings; anything else is an error that names the field."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"ClassSplit.{field} must be a sequence of strings, got {value!r}")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str) or not (text.strip() or field == "aliases"):
            raise ValueError(f"ClassSplit.{field} must hold non-empty strings, got {text!r} in it")
        hidden = next(filter(_is_hidden, text), None)
        if hidden is not None:
            raise ValueError(f"ClassSplit.{field} has the invisible sign U+{ord(hidden):04X} in {ascii(text)}: remove it")
    return texts


def _is_hidden(sign: str) -> bool:
    """Control signs, halves of surrogate pairs and signs without a shape; those that join letters and emoji apart."""
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in "\u200c\u200d"


def comparable(text: str) -> str:
    """Spelling in which two data sets agree: case, Unicode's forms, and spaces or underscores tell no classes apart."""
    return " ".join(unicodedata.normalize("NFC", text.replace("_", " ").casefold()).split())


def weighted_texts(prompt: str) -> list[tuple[str, float]]:
    """The texts of a prompt, which are separated by ``|``, and their weights: "tree *2|bush" has 2 and 1.

    Raises:
        ValueError: a weight is 0.
    """
    found = []
    for text in filter(str.strip, prompt.split("|")):
        match = _WEIGHTED.fullmatch(text.strip())
        name, weight = (text.strip(), 1.0) if match is None else (match[1], float(match[2]))
        if weight == 0:
            raise ValueError(f"the prompt {prompt!r} gives {name!r} the weight 0: leave it out")
        found.append((name, weight))
    return found


def first_text(prompt: str) -> str:
    """The first of its texts, by which a class of one's own is displayed; "" where there is none."""
    return next((text for text, _ in weighted_texts(prompt)), "")


@dataclass(frozen=True)
class ClassSplit:
    """An ordered vocabulary of K classes and its division into seen and unseen.

    Args:
        names: display names in vocabulary order; index k of any score map means ``names[k]``.
        unseen: those names that a model must not be trained on.
        prompts: the text that goes into the templates, one per name; synonyms are separated by ``|``, and the
            prototype of a class is the mean over them, weighted where they have weights, see :func:`weighted_texts`.
            Empty: the names themselves.
        aliases: what other data sets call each class ("sofa" is "couch" elsewhere), one per name, separated by ``|``,
            possibly empty; never embedded, only asked by :meth:`trained_mask`.
        released: what a data set's release calls each class, where that is not a good prompt: one text per name, unchanged,
            whatever it looks like ("wall-brick", "road, route"). Empty: the prompts.

    Raises:
        ValueError: the vocabulary is empty or has a name twice; an unseen name is not in it; prompts do not
            come one per name.
    """

    names: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    released: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in _FIELDS:
            object.__setattr__(self, field, _as_texts(getattr(self, field), field))
        object.__setattr__(self, "aliases", self.aliases or ("",) * len(self.names))
        if not self.names:
            raise ValueError("ClassSplit.names is empty: a vocabulary needs at least one class name, give one")
        for field in ("names", "unseen"):
            twice = [name for name, count in Counter(getattr(self, field)).items() if count > 1]
            if twice:
                raise ValueError(f"ClassSplit.{field} lists {twice} more than once: give each class a name of its own")
        unknown = [name for name in self.unseen if name not in set(self.names)]
        if unknown:
            raise ValueError(
                f"unseen classes {unknown} are not among the {len(self.names)} class names: {self._excerpt()}; correct them"
            )
        if not self.prompts:
            object.__setattr__(self, "prompts", self.names)
        if len(self.prompts) != len(self.names):
            raise ValueError(
                f"{len(self.prompts)} prompts for {len(self.names)} names: give one prompt per name "
                "(synonyms separated by '|'), or none at all"
            )
        if not self.released:
            object.__setattr__(self, "released", self.prompts)
        for field in ("aliases", "released"):
            if len(getattr(self, field)) != len(self.names):
                raise ValueError(
                    f"{len(getattr(self, field))} {field} for {len(self.names)} names: give one per name, or none at all"
                )
        for name, synonyms in zip(self.names, self.synonyms, strict=True):
            if not synonyms:
                raise ValueError(f"the prompt of class {name!r} holds no text besides '|'")

    def _excerpt(self, limit: int = 12) -> str:
        return ", ".join(self.names[:limit]) + (", ..." if len(self.names) > limit else "")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """The prompt texts of each class, without weights: K tuples, none of them empty."""
        return tuple(tuple(text for text, _ in weighted_texts(prompt)) for prompt in self.prompts)

    def composed_prompts(self, names: Names) -> dict[str, str]:
        """{class: prompt} of those that have several texts, or one with a weight; ``names`` as for :meth:`prompts_for`."""
        prompts = zip(self.names, self.prompts_for(names), strict=True)
        return {name: prompt for name, prompt in prompts if weighted_texts(prompt) != [(prompt.strip(), 1.0)]}

    @property
    def seen(self) -> tuple[str, ...]:
        """Seen names, in vocabulary order."""
        unseen = set(self.unseen)
        return tuple(name for name in self.names if name not in unseen)

    @property
    def unseen_mask(self) -> BoolArray:
        """(K,) bool, True where the class is unseen."""
        unseen = set(self.unseen)
        return np.array([name in unseen for name in self.names], dtype=np.bool_)

    @property
    def seen_mask(self) -> BoolArray:
        """(K,) bool, True where the class is seen."""
        return ~self.unseen_mask

    @property
    def seen_indices(self) -> IndexArray:
        """Vocabulary indices of the seen classes, ascending."""
        return np.flatnonzero(self.seen_mask)

    @property
    def unseen_indices(self) -> IndexArray:
        """Vocabulary indices of the unseen classes, ascending."""
        return np.flatnonzero(self.unseen_mask)

    def _subset(self, mask: BoolArray, empty: str) -> ClassSplit:
        kept = [k for k in range(len(self)) if mask[k]]
        if not kept:
            raise ValueError(empty)
        names = tuple(self.names[k] for k in kept)
        unseen = set(self.unseen)
        return ClassSplit(
            names=names,
            unseen=tuple(name for name in names if name in unseen),
            prompts=tuple(self.prompts[k] for k in kept),
            aliases=tuple(self.aliases[k] for k in kept),
            released=tuple(self.released[k] for k in kept),
        )

    def only_seen(self) -> ClassSplit:
        """The vocabulary of the seen classes alone, order kept; nothing in it is unseen.

        Raises:
            ValueError: every class is unseen.
        """
        return self._subset(self.seen_mask, f"no seen class is left: all {len(self)} classes are listed as unseen")

    def only_unseen(self) -> ClassSplit:
        """The vocabulary of the unseen classes alone (ZS3), order kept; everything in it is unseen.

        Raises:
            ValueError: no class is unseen.
        """
        return self._subset(self.unseen_mask, f"no class is unseen: list some of {self._excerpt()} as `unseen`")

    def restricted_to(self, vocabulary: Vocabulary) -> ClassSplit:
        """Everything, the seen classes alone, or the unseen ones alone.

        Raises:
            ValueError: no such vocabulary, or it would be empty.
        """
        if vocabulary == "all":
            return self
        if vocabulary == "seen":
            return self.only_seen()
        if vocabulary == "unseen":
            return self.only_unseen()
        raise ValueError(f"vocabulary must be one of {get_args(Vocabulary)}, got {vocabulary!r}")

    def prompts_for(self, names: Names) -> tuple[str, ...]:
        """The texts that stand for the classes: "released" or "reworded" (the prompts).

        Raises:
            ValueError: neither of them.
        """
        if names not in get_args(Names):
            raise ValueError(f"class names are one of {get_args(Names)}, got {names!r}")
        return self.released if names == "released" else self.prompts

    @property
    def texts(self) -> frozenset[str]:
        """All names and prompt texts: what a model that is trained on this vocabulary knows."""
        return frozenset((*self.names, *(synonym for synonyms in self.synonyms for synonym in synonyms)))

    def with_unseen(self, trained: Collection[str], also: Iterable[str] = ()) -> ClassSplit:
        """This vocabulary with its unseen classes for a model: those it was not trained on, and those called unseen.

        Args:
            trained: names and prompt texts of the classes that the model was trained on, see :meth:`trained_mask`.
            also: names that count as unseen too, beside the split's own unseen ones.

        Raises:
            ValueError: a name of ``also`` is not in the vocabulary.
        """
        marked = {*self.unseen, *also}
        unknown = sorted(marked.difference(self.names))
        if unknown:
            raise ValueError(f"unseen classes {unknown} are not in the vocabulary: {self._excerpt()}; correct them")
        known = self.trained_mask(trained)
        return replace(
            self,
            unseen=tuple(name for name, is_known in zip(self.names, known, strict=True) if name in marked or not is_known),
        )

    def to_dict(self) -> dict[str, Any]:
        """Lists of strings that JSON and a checkpoint can hold; :meth:`from_dict` reads them."""
        return {field: list(getattr(self, field)) for field in _FIELDS}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ClassSplit:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is missing, or as the constructor.
        """
        missing = [field for field in _FIELDS if field not in content]
        if missing:
            raise ValueError(f"a stored vocabulary lacks {missing}; it has {sorted(content)}")
        return cls(**{field: tuple(content[field]) for field in _FIELDS})

    def trained_mask(self, trained: Collection[str]) -> BoolArray:
        """(K,) bool, True where a model trained on the classes ``trained`` already knows the class.

        A class counts as known when its name, one of its prompt synonyms or one of its aliases is in
        ``trained``; upper and lower case, and spaces and underscores, do not matter. This is what bias
        correction (Eq. 7 of AlignZeg) uses on a foreign data set.
        """
        if isinstance(trained, str):
            raise ValueError(f"`trained` must be a collection of class names, got the string {trained!r}")
        known = {comparable(name) for name in trained}
        texts = zip(self.names, self.synonyms, self.aliases, strict=True)
        return np.array(
            [
                not known.isdisjoint(map(comparable, (name, *synonyms, *filter(None, aliases.split("|")))))
                for name, synonyms, aliases in texts
            ],
            dtype=np.bool_,
        )
