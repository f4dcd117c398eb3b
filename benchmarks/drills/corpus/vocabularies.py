"""Vocabularies as people type, save and pass them."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot_d2 import ClassSplit
from zeroshot_d2.clip.loader import DEMO_CLIP
from zeroshot_d2.clip.text import ClipTextEmbeddings, get_templates
from zeroshot_d2.vocabulary import read_names, vocabulary_from_names

from .case import LFS_POINTER, WEB_PAGE, Case, write

KIND = "vocabularies"
PETS = ("cat", "dog")


def _names_are(*names: str) -> Callable[[ClassSplit], bool]:
    return lambda split: split.names == names


def _typed(name: str, text: str, words: tuple[str, ...] | None, *names: str) -> Case:
    """The value of ``--vocabulary``."""
    reads = _names_are(*names) if names else None
    return Case(KIND, f"typed: {name}", lambda folder: vocabulary_from_names(read_names(text)), words, reads)


def _file(
    name: str, content: str | bytes | Callable[[Path], Any], words: tuple[str, ...] | None, *names: str, file: str = "v.txt"
) -> Case:
    def run(folder: Path) -> ClassSplit:
        content(folder / file) if callable(content) else write(folder / file, content)
        return vocabulary_from_names(read_names(str(folder / file)))

    named = None if words is None else (file, *words)
    return Case(KIND, f"file: {name}", run, named, _names_are(*names) if names else None)


def _given(name: str, names: Callable[[], Any], words: tuple[str, ...] | None, *expected: str) -> Case:
    """What Python code passes."""
    reads = _names_are(*expected) if expected else None
    return Case(KIND, f"in Python: {name}", lambda folder: vocabulary_from_names(names()), words, reads)


def _split(name: str, words: tuple[str, ...], **fields: Any) -> Case:
    return Case(KIND, f"ClassSplit: {name}", lambda folder: ClassSplit(**{"names": PETS, **fields}), words, None)


def _embedded(name: str, names: Iterable[str], words: tuple[str, ...] | None, warns: tuple[str, ...] = ()) -> Case:
    """What CLIP's text tower reads."""

    def run(folder: Path) -> Any:
        texts = ClipTextEmbeddings(
            name=DEMO_CLIP.name, pretrained="bundled", templates=get_templates("single"), weights_hash=str(folder)
        )
        return texts(vocabulary_from_names(list(names)).prompts)

    return Case(
        KIND, f"to CLIP: {name}", run, words, None if words else lambda vectors: bool(vectors.isfinite().all()), warns
    )


def _zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("v.txt", "cat\ndog\n")
    return stream.getvalue()


def cases(rng: random.Random) -> list[Case]:
    long = "a very long name " * 40
    return [
        _typed("commas", "cat, dog", None, *PETS),
        _typed("commas at the end and twice", " cat,, dog,", None, *PETS),
        _typed("synonyms", "cat|kitten, dog", None, *PETS),
        _typed("nothing", "", ("vocabulary",)),
        _typed("blanks", "   ", ("vocabulary",)),
        _typed("only commas", ",,,", ("vocabulary",)),
        _typed("twice", "cat, dog, cat", ("'cat'",)),
        _typed("twice but for case", "cat, dog, Cat", ("'cat'", "'Cat'")),
        _typed("twice but for an underscore", "traffic light, traffic_light", ("'traffic light'", "'traffic_light'")),
        _typed("twice but for Unicode's form", "caf\u00e9, cafe\u0301", ("caf",)),
        _typed("semicolons", "cat; dog; bird", ("'cat; dog; bird'", "comma")),
        _typed("a Python list", "['cat', 'dog']", ("['cat'",)),
        _typed("a JSON list", '["cat", "dog"]', ('["cat"',)),
        _typed("names in quotes", '"cat", "dog"', ('"cat"',)),
        _typed("braces", "{cat, dog}", ("{cat",)),
        _typed("a synonym that is empty", "|kitten, dog", ("'|kitten'",)),
        _typed("only a bar", "|, dog", ("'|'",)),
        _typed("signs without a word", "cat, ???, dog", ("'???'",)),
        _typed("an invisible sign", "cat, d\u200bog", ("U+200B",)),
        _typed("a control sign", "cat, d\x07og", ("U+0007",)),
        _typed("a sign that turns text round", "cat, \u202edog", ("U+202E",)),
        _typed("half a surrogate", "cat, \udc80", ("U+DC80",)),
        _typed("a .txt that is not there", "v.txt", ("v.txt",)),
        _typed("a .TXT that is not there", "V.TXT", ("V.TXT",)),
        _typed("a .csv that is not there", "classes.csv", ("classes.csv",)),
        _typed("a .json that is not there", "classes.json", ("classes.json",)),
        _typed("a .yaml that is not there", "classes.yaml", ("classes.yaml",)),
        _typed("a path that is not there", "./classes", ("./classes",)),
        _typed("a folder", ".", ("folder",)),
        _typed("an address", "https://example.org/classes.txt", ("https://example.org/classes.txt",)),
        _typed("a class with a slash", "TV/monitor, dog", None, "TV/monitor", "dog"),
        _typed("a class with a dot", "St. Bernard, dog", None, "St. Bernard", "dog"),
        _typed("other scripts", "बिल्ली, 犬, кошка, نمر", None, "बिल्ली", "犬", "кошка", "نمر"),
        _file("a name a line", "cat\ndog\n", None, *PETS),
        _file("CR LF, a byte-order mark, comments", "\ufeff# pets\r\ncat\r\n\r\ndog\r\n", None, *PETS),
        _file("UTF-16", "cat\ndog\n".encode("utf-16"), None, *PETS),
        _file("UTF-16 without a mark", "cat\ndog\n".encode("utf-16-le"), ()),
        _file("gzip", gzip.compress(b"cat\ndog\n"), None, *PETS),
        _file("gzip cut off", gzip.compress(b"cat\ndog\n" * 50)[:-9], ()),
        _file("zip", _zipped(), ("zip",)),
        _file("Latin-1", "k\xe4fer\nhund\n".encode("latin-1"), ("UTF-8",)),
        _file("empty", "", ("empty",)),
        _file("only comments", "# nothing\n", ("empty",)),
        _file("tabs", "1\tcat\n2\tdog\n", ("tab",)),
        _file("numbered", "1: cat\n2: dog\n3: bird\n", ("number",)),
        _file("numbered with commas", "0,cat\n1,dog\n2,bird\n", ("number",)),
        _file("a CSV with a heading", "id,name\n0,cat\n1,dog\n", (), file="v.csv"),
        _file("a Markdown list", "- cat\n- dog\n- bird\n", ("- cat",)),
        _file("JSON", json.dumps(list(PETS)), ("JSON",), file="v.json"),
        _file("JSON over several lines", json.dumps(list(PETS), indent=1), ("JSON",)),
        _file("a JSON object", json.dumps({"names": list(PETS)}), ("JSON",)),
        _file("YAML", "names:\n  - cat\n  - dog\n", ("names:",), file="v.yaml"),
        _file("a web page", WEB_PAGE, ("web page",)),
        _file("a pointer of Git LFS", LFS_POINTER, ("Git LFS",)),
        _file("a conflict of git", "cat\n<<<<<<< HEAD\ndog\n=======\nbird\n>>>>>>> x\n", ("conflict",)),
        _file("an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), ()),
        _file("a pickle", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0]\x94(\x8c\x03cat\x94\x8c\x03dog\x94e.", ()),
        _file("a name twice", "cat\ndog\ncat\n", ("'cat'",)),
        _file("a name twice but for case", "Cat\ndog\ncat\n", ("'cat'",)),
        _file("a name in quotes", '"cat"\n"dog"\n', ('"cat"',)),
        _file("commas at the ends of lines", "cat,\ndog,\nbird\n", ("comma",)),
        _file("semicolons", "cat;1\ndog;2\n", ("cat;1",)),
        _file("a folder", Path.mkdir, ()),
        _given("a generator", lambda: (name for name in PETS), None, *PETS),
        _given("a dictionary's keys", lambda: dict.fromkeys(PETS), None, *PETS),
        _given("a text", lambda: "cat, dog", ("'cat, dog'",)),
        _given("None", lambda: None, ("None",)),
        _given("a number", lambda: 3, ("3",)),
        _given("numbers", lambda: [1, 2], ("1",)),
        _given("bytes", lambda: [b"cat", b"dog"], ("b'cat'",)),
        _given("an array of texts", lambda: np.array(PETS), None, *PETS),
        _given("lists of synonyms", lambda: [["cat", "kitten"], ["dog"]], ("['cat', 'kitten']",)),
        _given("paths", lambda: [Path("cat"), Path("dog")], ("Path",)),
        _given("a line break in a name", lambda: ["cat\ndog", "bird"], ("U+000A",)),
        _given("nothing", list, ("empty",)),
        _split("an unseen class that is none", ("bird",), unseen=("bird",)),
        _split("unseen as a text", ("'dog'",), unseen="dog"),
        _split("too few prompts", ("1 prompts", "2 names"), prompts=("cat",)),
        _split("too many aliases", ("3 aliases",), aliases=("a", "b", "c")),
        _split("aliases as numbers", ("aliases", "1"), aliases=(1, 2)),
        _split("aliases as a text", ("aliases", "'ab'"), aliases="ab"),
        _split("unseen twice", ("'dog'",), unseen=("dog", "dog")),
        _embedded("two names that are equal up to its longest text", [f"{long} one", f"{long} two"], ("one", "two")),
        _embedded("a name that is cut", ["cat", long], None, ("cut", "a very long name")),
        _embedded("a name of signs that the text tower skips", ["cat", "\u00ad\u00ad"], ("U+00AD",)),
        _embedded("names of other scripts", ["गाय", "犬"], None),
    ]
