"""The Dockerfile, as far as it can be looked at without Docker: what it copies is there, what it installs is offered."""

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    (line.split()[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
    if line.strip()
]


def of(kind: str) -> list[str]:
    return [words for name, words in INSTRUCTIONS if name == kind]


def test_it_is_made_of_instructions_in_a_sensible_order():
    kinds = [name for name, _ in INSTRUCTIONS]
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "CMD"}
    assert set(kinds) <= known and kinds[:2] == ["ARG", "FROM"] and kinds[-1] == "CMD"
    assert "ARG TORCH=cpu" in TEXT and "whl/${TORCH}" in " ".join(of("RUN"))
    (user,) = of("USER")
    assert f"useradd --uid 1000 --create-home {user}" in " ".join(of("RUN"))
    assert kinds.index("USER") > max(i for i, kind in enumerate(kinds) if kind in ("COPY", "RUN"))


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path back; the last line that fits decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    answer = False
    for line in filter(lambda line: line and not line.startswith("#"), lines):
        pattern = line.removeprefix("!").replace("**/", "*")
        if fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}/"):
            answer = not line.startswith("!")
    return answer


def test_what_is_copied_is_there_and_sent():
    copied = [source for words in of("COPY") for source in words.split()[:-1]]
    assert {"constraints.txt", "zeroshot_d2", "configs", "space"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and not ignored(source), source
    assert ignored(".venv") and ignored("output") and ignored(".git") and ignored("tests/conftest.py")
    assert ignored("zeroshot_d2/__pycache__/cli.pyc") and not ignored("zeroshot_d2/cli.py")


def test_what_is_installed_is_offered():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(of("RUN")))
    for extra in extras.split(","):
        assert re.search(rf'^    "{extra}": \[', setup, re.M), extra
    needed = re.findall(r'"(\w+\*?)"', re.search(r"find_packages\(include=\[(.*?)\]", setup)[1])  # type: ignore[index]
    assert {name.rstrip("*") for name in needed} <= {word for words in of("COPY") for word in words.split()}
    assert re.search(r"python_requires=\">=3\.(\d+)\"", setup)
    (command,) = of("CMD")
    assert Path("space/app.py").name in command and "EXPOSE 7860" in TEXT
