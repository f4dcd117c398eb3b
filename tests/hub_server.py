"""A Hugging Face Hub on loopback, as far as huggingface_hub asks it: repositories of models with commits and branches."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download
from loopback_server import listening

TOKEN = "hf_loopback"


@dataclass
class Repository:
    """Args:
    commits: {commit: {file: content}}.
    branches: {branch: commit}.
    private: only those with the token see it.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to those of a branch; the new commit."""
        content = {**self.files(branch), **files}
        digest = hashlib.sha1(b"".join(name.encode() + content[name] for name in sorted(content))).hexdigest()
        self.commits[digest] = content
        self.branches[branch] = digest
        return digest

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits.get(self.branches.get(branch, ""), {})


@dataclass
class Hub:
    """Args:
    address: of the server.
    repositories: {OWNER/NAME: repository}.
    asked: "METHOD path" of every request.
    refuses: answer that the token may not do this.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuses: bool = False

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        found = (re.fullmatch(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", request) for request in self.asked)
        return {match[1] for match in found if match}


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub without repositories, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: Any, status: int = 200, **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, what: str) -> None:
            self.answer({"error": f"{what} not found"}, 404, X_Error_Code=what, X_Error_Message=f"{what} not found")

        def handle_request(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if hub.refuses:
                self.answer({"error": "forbidden"}, 403)
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                there = name in hub.repositories
                if not there:
                    hub.repositories[name] = Repository(
                        private=bool(asked.get("private")) or asked.get("visibility") == "private"  # newer releases
                    )
                    hub.repositories[name].commit({".gitattributes": b""})
                self.answer({"url": f"{hub.address}/{name}"}, 409 if there else 200)
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif found := re.match(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+)(?:/(.+))?)?)?$", path):
                repository = hub.repositories.get(found[1])
                if repository is None or (repository.private and not known):
                    self.missing("RepoNotFound")
                else:
                    self.of_repository(repository, found[1], found[2] or "", found[3] or "main", found[4] or "", body)
            else:
                self.answer({"error": path}, 404)

        def of_repository(self, repository: Repository, name: str, what: str, revision: str, file: str, body: bytes) -> None:
            commit = revision if revision in repository.commits else repository.branches.get(revision)
            if what == "branch":
                there = revision in repository.branches
                repository.branches.setdefault(revision, repository.branches["main"])
                self.answer({}, 409 if there else 200)
            elif commit is None:
                self.missing("RevisionNotFound")
            elif what in ("", "revision"):
                siblings = [{"rfilename": path} for path in repository.commits[commit]]
                self.answer({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})
            elif what == "tree":
                files = repository.commits[commit].items()
                self.answer([{"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files])
            elif what == "resolve":
                data = repository.commits[commit].get(file)
                if data is None:
                    self.missing("EntryNotFound")
                else:
                    self.answer(data, X_Repo_Commit=commit, ETag=f'"{_oid(data)}"')
            elif what == "preupload":
                asked = json.loads(body)["files"]
                modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                self.answer({"files": modes})
            elif what == "commit":
                lines = [json.loads(line) for line in body.splitlines()]
                files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
                made = repository.commit(files, revision)
                self.answer({"commitUrl": f"{hub.address}/{name}/commit/{made}", "commitOid": made, "hookOutput": ""})
            else:
                self.answer({"error": what}, 404)

        do_GET = do_HEAD = do_POST = handle_request

        def log_message(self, *arguments: object) -> None:
            pass

    with listening(Handler) as hub.address:
        yield hub


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def used(folder: Any) -> Iterator[Hub]:
    """A Hub that huggingface_hub talks to in this process, with an empty cache in ``folder`` and a token."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)  # as tests/conftest.py set it for everything else
        addresses = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        for module in (constants, file_download):  # older releases have it in both
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", addresses, raising=False)
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
