"""Models on the Hugging Face Hub: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``, fetched and sent by huggingface_hub.

Nothing is fetched for a name that is not spelt so, nor for one that is a folder on this machine. huggingface_hub's own
settings hold: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME`` (where what was fetched is kept), ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from .checkpoint import MODEL_FILE
from .storage import PathLike

logger = logging.getLogger(__name__)

PREFIX = "hub:"
CARD = "README.md"
CONFIG = "config.yaml"
TEMPLATES = "templates.txt"
WORDS = "word_vectors.npz"
FILES = (CONFIG, MODEL_FILE, CARD, TEMPLATES, WORDS)
"""The files of a model's folder; nothing else is fetched or sent."""

_NAME = re.compile(rf"{PREFIX}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

# A connection that fails is no OSError in every release: some name httpx's errors, others requests'.
_TRAFFIC: tuple[type[BaseException], ...] = (OSError, HfHubHTTPError.__bases__[0])


def is_hub_id(model: PathLike) -> bool:
    """Whether a model is spelt as one on the Hub, and is no folder here."""
    return _text(model).startswith(PREFIX) and not Path(model).is_dir()


def find_model(model: PathLike, revision: str | None = None) -> Path:
    """The folder of a model: that on this machine, or what was fetched from the Hub.

    Args:
        model: a folder, or ``hub:OWNER/NAME[@REVISION]``.
        revision: of the Hub's: a branch, a tag or a commit; by default its main branch.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no model on the Hub is spelt so, or a folder is given with a revision.
        OSError: the Hub has no such model or revision, or cannot be reached.
    """
    if not is_hub_id(model):
        if not Path(model).is_dir():
            like = f"; a model on the Hub is spelt {PREFIX}{_text(model)}" if _NAME.fullmatch(PREFIX + _text(model)) else ""
            raise FileNotFoundError(f"{model} is no folder (looked for it from {Path.cwd()}){like}")
        if revision is not None:
            raise ValueError(f"{model} is a folder, which has no revision {revision!r}: leave it out")
        return Path(model)
    found = _NAME.fullmatch(_text(model))
    if found is None:
        raise ValueError(f"{_text(model)} is no model on the Hub: write {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    if revision is not None and found["revision"] not in (None, revision):
        raise ValueError(f"{_text(model)} names another revision than {revision!r}: give one of the two")
    repository = found["repository"]
    with _explained(f"{_text(model)} cannot be fetched", repository):
        folder = Path(snapshot_download(repository, revision=revision or found["revision"], allow_patterns=list(FILES)))
    logger.info("%s is in %s; %s%s@%s pins it", _text(model), folder, PREFIX, repository, folder.name)
    return folder


def check_repository(repository: str) -> None:
    """Raise ValueError where ``repository`` is not OWNER/NAME."""
    found = _NAME.fullmatch(PREFIX + repository)
    if found is None or found["revision"]:
        raise ValueError(f"--repo must be OWNER/NAME, got {repository!r}")


def push(folder: PathLike, repository: str, *, revision: str | None = None, private: bool = False) -> str:
    """Send the files of a model's folder to the Hub, in one commit.

    Args:
        folder: what :func:`zeroshot_d2.pretrained.save` wrote.
        repository: OWNER/NAME, made where there is none.
        revision: a branch, made where there is none.
        private: nobody else may see the repository.

    Returns:
        the commit.

    Raises:
        ValueError: there is no token, or the repository is public although ``private`` was asked for.
        OSError: the Hub refuses it or cannot be reached.
    """
    if get_token() is None:
        raise ValueError(
            f"{repository} cannot be written without a token of the Hub: set HF_TOKEN, or log in with `hf auth login`"
        )
    api = HfApi()
    with _explained(f"{repository} cannot be written", repository):
        if not private:  # left out: an organisation may have another default
            api.create_repo(repository, exist_ok=True)
        elif not api.model_info(api.create_repo(repository, private=True, exist_ok=True).repo_id).private:
            raise ValueError(
                f"{repository} is there already, and public: make it private on the Hub, or leave out --private"
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=Path(folder),
            revision=revision,
            allow_patterns=list(FILES),
            commit_message="A model as one folder",
        )
    return commit.oid


@contextlib.contextmanager
def _explained(problem: str, repository: str) -> Iterator[None]:
    """What the Hub says, in one sentence with the way out."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise OSError(f"{problem}: {repository} has no such revision, correct it") from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"{problem}: the Hub has no model {repository}, or does not show it to everyone: correct the name, or set "
            "HF_TOKEN to a token that may see it"
        ) from error
    except _TRAFFIC as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise OSError(
                f"{problem}: the Hub refuses the token ({status}): set HF_TOKEN to one that may do this"
            ) from error
        reason = " ".join(str(error).split())
        raise OSError(f"{problem}: {reason[:300] or type(error).__name__}; try again, or see HF_ENDPOINT") from error


def _text(model: PathLike) -> str:
    return os.fspath(model).replace(os.sep, "/")
