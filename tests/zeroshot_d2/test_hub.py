"""Models on the Hub: what is fetched and sent, against a Hub on loopback; what else is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest

from zeroshot_d2.checkpoint import MODEL_FILE
from zeroshot_d2.hub import FILES, check_repository, find_model, is_hub_id, push

FOLDER = {"config.yaml": b"a: 1", MODEL_FILE: b"weights", "README.md": b"# it"}
HOSTILE = {
    "model_final.pth": b"a pickle",
    "pytorch_model.bin": b"another",
    "config.py": b"import os",
    "deep/config.yaml": b"",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_server.Hub]:
    """A Hub with one model, and with files beside it that nobody needs."""
    with hub_server.used(tmp_path) as made:
        made.repositories["ann/demo"] = hub_server.Repository()
        made.repositories["ann/demo"].commit({**FOLDER, **HOSTILE})
        yield made


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- fetching ----


def test_only_the_files_of_a_model_are_fetched_and_the_commit_is_named(
    hub: hub_server.Hub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="zeroshot_d2"):
        folder = find_model("hub:ann/demo")
    assert content(folder) == FOLDER and hub.fetched() == set(FOLDER)
    commit = hub.repositories["ann/demo"].branches["main"]
    assert f"hub:ann/demo@{commit} pins it" in caplog.text


def test_a_revision_is_pinned(hub: hub_server.Hub) -> None:
    repository = hub.repositories["ann/demo"]
    first = repository.branches["main"]
    repository.commit({"README.md": b"# newer"})
    repository.branches["v1"] = first
    for folder in (
        find_model(f"hub:ann/demo@{first}"),
        find_model("hub:ann/demo", "v1"),
        find_model("hub:ann/demo@v1", "v1"),
    ):
        assert content(folder) == FOLDER
    assert content(find_model("hub:ann/demo"))["README.md"] == b"# newer"
    with pytest.raises(ValueError, match="hub:ann/demo@v1 names another revision than 'v2'"):
        find_model("hub:ann/demo@v1", "v2")


def test_what_was_fetched_is_not_fetched_again(hub: hub_server.Hub) -> None:
    folder = find_model("hub:ann/demo")
    hub.asked.clear()
    assert find_model("hub:ann/demo") == folder and not hub.fetched()


def test_a_folder_wins_and_no_name_is_fetched_that_is_not_spelt_as_one(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hub:ann/demo", "ann/demo"):
        Path(name).mkdir(parents=True)
        assert find_model(name) == Path(name) and not is_hub_id(name)
    with pytest.raises(ValueError, match="ann/demo is a folder, which has no revision 'v1'"):
        find_model("ann/demo", "v1")
    with pytest.raises(FileNotFoundError, match=r"ann/other is no folder .*; a model on the Hub is spelt hub:ann/other"):
        find_model("ann/other")
    assert not hub.asked


@pytest.mark.parametrize("name", ["hub:", "hub:demo", "hub:a/b/c", "hub:../demo/x", "hub:a/b@", "hub:a b/c"])
def test_other_spellings_are_refused(hub: hub_server.Hub, name: str) -> None:
    with pytest.raises(ValueError, match="is no model on the Hub: write hub:OWNER/NAME"):
        find_model(name)
    assert not hub.asked


def test_what_the_hub_has_not(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="hub:ann/demo@v9 cannot be fetched: ann/demo has no such revision, correct it"):
        find_model("hub:ann/demo@v9")
    with pytest.raises(
        OSError, match="the Hub has no model ann/none, or does not show it to everyone: correct the name, or"
    ):
        find_model("hub:ann/none")
    hub.repositories["ann/demo"].private = True
    assert find_model("hub:ann/demo").is_dir()
    monkeypatch.delenv("HF_TOKEN")
    hub.repositories["ann/secret"] = hub_server.Repository(private=True)
    with pytest.raises(OSError, match="set HF_TOKEN to a token that may see it"):
        find_model("hub:ann/secret")


def test_a_hub_that_is_not_there(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_model("hub:ann/demo")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_model("hub:ann/demo") == folder  # what was fetched before
    with pytest.raises(OSError, match=r"hub:ann/other cannot be fetched: .*; try again, or see HF_ENDPOINT") as caught:
        find_model("hub:ann/other")
    assert "\n" not in str(caught.value)


# ---- sending ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with other files beside it."""
    made = tmp_path / "model"
    for name, data in {**FOLDER, **HOSTILE}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


def test_the_files_of_a_model_are_sent_in_one_commit(hub: hub_server.Hub, folder: Path) -> None:
    commit = push(folder, "ann/new")
    repository = hub.repositories["ann/new"]
    assert repository.branches == {"main": commit} and not repository.private
    assert {**repository.commits[commit], ".gitattributes": b""} == {**FOLDER, ".gitattributes": b""}
    assert content(find_model(f"hub:ann/new@{commit}")) == FOLDER


def test_a_branch_is_made(hub: hub_server.Hub, folder: Path) -> None:
    before = hub.repositories["ann/demo"].branches["main"]
    (folder / "README.md").write_bytes(b"# other")
    for _ in range(2):  # the second time it is there
        commit = push(folder, "ann/demo", revision="v2")
    assert hub.repositories["ann/demo"].branches == {"main": before, "v2": commit}
    assert content(find_model("hub:ann/demo@v2"))["README.md"] == b"# other"


def test_private_is_private(hub: hub_server.Hub, folder: Path) -> None:
    push(folder, "ann/secret", private=True)
    assert hub.repositories["ann/secret"].private
    before = dict(hub.repositories["ann/demo"].branches)
    with pytest.raises(ValueError, match="ann/demo is there already, and public: make it private on the Hub, or leave out"):
        push(folder, "ann/demo", private=True)
    assert hub.repositories["ann/demo"].branches == before


def test_without_a_token_nothing_is_asked(hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"ann/new cannot be written without a token of the Hub: set HF_TOKEN, or log in"):
        push(folder, "ann/new")
    assert not hub.asked


def test_a_token_that_may_not(hub: hub_server.Hub, folder: Path) -> None:
    hub.refuses = True
    with pytest.raises(OSError, match=r"ann/new cannot be written: the Hub refuses the token \(403\): set HF_TOKEN to one"):
        push(folder, "ann/new")


@pytest.mark.parametrize("name", ["demo", "a/b/c", "hub:a/b", "a/b@v1", ""])
def test_names_of_repositories(name: str) -> None:
    check_repository("ann/demo")
    with pytest.raises(ValueError, match="--repo must be OWNER/NAME, got"):
        check_repository(name)


@pytest.mark.slow
def test_the_endpoint_is_that_of_the_environment(tmp_path: Path) -> None:
    """As a user sets it, in a process of its own."""
    with hub_server.serving() as hub:
        hub.repositories["ann/demo"] = hub_server.Repository()
        hub.repositories["ann/demo"].commit(FOLDER)
        settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        code = "from zeroshot_d2.hub import find_model; print(find_model('hub:ann/demo'))"
        words = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(words, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = Path(done.stdout.strip())
    assert printed.is_relative_to(tmp_path) and content(printed) == FOLDER and set(FOLDER) <= set(FILES)
