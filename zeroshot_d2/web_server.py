"""The server of the web page: whom it answers, what it takes, for how long it works, and what it keeps.

Gradio does the rest. Its page serves strangers' files by their paths, runs whatever waits in its queue to the end, and reads
bodies of any size; so every request passes the :class:`Door` before Gradio sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import stat
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from .cli import port, positive
from .processes import give_back_memory
from .storage import read_lines

logger = logging.getLogger(__name__)

MIB = 2**20
TEXT_BYTES = MIB  # of a request that is no upload: a vocabulary has a few kB
DISCARDED_BYTES = 64 * MIB  # of a refused request that are read, so that its sender sees why
FORM_BYTES = 2**16  # of an upload beside its file: the lines of its form
BLOCK = 4096  # bytes that the smallest file takes on a disk
KEPT_RESULTS = 16  # visitors for whom something is kept
KEPT_SESSIONS = 32  # visitors whose inputs Gradio remembers
ARRIVING_SECONDS = 5  # in which who has sent a request opens the stream of its answer
# What the page asks for; Gradio has more: proxies, downloads, recordings, an editor, statistics.
PAGES = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout|(static|assets|svelte)/.+"
    r"|gradio_api/(info|app_id|user|token|login_check|theme\.css|startup-events|upload_progress|queue/data|heartbeat/[^/]+"
    r"|file=.+))?"
)
CALLS = re.compile(r"/gradio_api/(queue/join|run/[^/]+)")
UPLOAD, LOGIN = "/gradio_api/upload", "/login"
STREAMS = re.compile(r"/gradio_api/(queue/data|heartbeat/[^/]+)")
Functions = Mapping[int, Sequence[tuple[type, ...]]]
TEXT_OR_NUMBER: tuple[type, ...] = (str, int, float, type(None))
KINDS: tuple[tuple[type, tuple[type, ...]], ...] = (  # what the inputs of a call are; a file is a dict
    (gr.Image, (dict, type(None))),
    (gr.Textbox, (str, type(None))),
    (gr.Slider, (int, float)),
    (gr.Dataset, (int,)),
)
NOBODY = "'none'"
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The fonts of the system: a page that works without a network loads none.
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
CSS = """
footer {display: none !important}
.photo img {width: 100%; height: 100%; object-fit: contain}
.results {width: 100%; border-collapse: collapse; border: 0 !important}
.results th, .results td {padding: 6px 8px; text-align: right !important; border: 0 !important}
.results th:first-child, .results td:first-child {text-align: left !important}
.results tr {border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important}
.captioned {display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px}
.captioned figure {margin: 0}
.captioned img {width: 100%; border-radius: 4px}
.captioned figcaption {font-size: 13px; line-height: 1.3; margin-top: 4px; white-space: pre-line}
"""


def headers(frames: Sequence[str] = ()) -> dict[str, str]:
    """Of every answer; ``frames``: pages that may show this one within them."""
    return {
        # Gradio's page asks content networks for scripts otherwise.
        "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        f"frame-ancestors {' '.join(frames) or NOBODY}; base-uri 'self'; form-action 'self'",
        "X-Content-Type-Options": "nosniff",
        # For old browsers, to which no others can be named.
        **({} if frames else {"X-Frame-Options": "DENY"}),
    }


def origin(text: str) -> str:
    """An argparse type: the origin of a page, ``https://HOST`` or ``https://HOST:PORT``."""
    if not re.fullmatch(r"https?://(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?", text):
        raise argparse.ArgumentTypeError(f"must be the origin of a page, such as https://huggingface.co, got {text!r}")
    return text


# ------------------------------------------------------------------------------------------------------ the options


@dataclass(frozen=True)
class Limits:
    """What the page takes of its visitors; :data:`OPTIONS` says what each number is."""

    upload_mb: int = 10
    stored_mb: int = 500
    pixels: int = 4_000_000
    names: int = 2000
    name_length: int = 100
    waiting: int = 20
    seconds: int = 60
    kept_seconds: int = 600

    @property
    def longest_wait(self) -> int:
        """Seconds until the answer of a request that comes last into a full queue."""
        return (self.waiting + 2) * self.seconds


OPTIONS = {
    "upload_mb": ("--max-upload-mb", "size of an uploaded file"),
    "stored_mb": ("--max-stored-mb", "size of all files that are kept, uploads and results"),
    "pixels": ("--max-pixels", "width x height of a photo"),
    "names": ("--max-names", "classes in a vocabulary, synonyms counted"),
    "name_length": ("--max-name-length", "characters of a class name"),
    "waiting": ("--max-waiting", "requests in the queue"),
    "seconds": ("--max-seconds", "computation for one request"),
    "kept_seconds": ("--keep-seconds", "for how long uploads and results stay"),
}
"""{field of :class:`Limits`: the option that sets it, and what it says}."""


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the page is served, to whom, and what it takes."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=port, default=7860, help="default: 7860")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name by which browsers reach the page; may be repeated. It always answers to its own address",
    )
    parser.add_argument(
        "--allow-frame",
        action="append",
        type=origin,
        default=[],
        metavar="ORIGIN",
        help="a page, such as https://huggingface.co, that may show this one within it; may be repeated. Default: none may",
    )
    parser.add_argument(
        "--auth",
        metavar="SOURCE",
        help="ask for a name and a password: a file with a line USER:PASSWORD each, or env:VARIABLE with such lines",
    )
    for field, (option, what) in OPTIONS.items():
        default = getattr(Limits, field)
        parser.add_argument(
            option, dest=field, type=positive, default=default, metavar="N", help=f"{what}; default: {default}"
        )


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options of :func:`add_server_arguments` say."""
    return Limits(**{field: getattr(args, field) for field in OPTIONS})


def accounts(source: str) -> list[tuple[str, str]]:
    """(user, password) of every line of ``source``, a file or ``env:VARIABLE``. The command line itself is no place for
    passwords: other users of the machine can read it.

    Raises:
        FileNotFoundError, ValueError: there is no such file or variable, others may read the file, or a line is no
            ``USER:PASSWORD``; no password is quoted.
    """
    if source.startswith("env:"):
        value = os.environ.get(source[4:])
        if value is None:
            raise ValueError(f"--auth {source}: the environment has no variable {source[4:]}")
        lines = [line.strip() for line in value.splitlines() if line.strip()]
    elif not Path(source).exists():
        raise FileNotFoundError(
            "--auth takes a file with a line USER:PASSWORD each, or env:VARIABLE; there is no file of the name given "
            "(a password does not belong on a command line, where others can read it)"
        )
    else:
        if os.name == "posix" and Path(source).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"--auth {source}: others can read the passwords in it; `chmod 600 {source}` changes that")
        lines = read_lines(source, "file of passwords")
    pairs = [line.partition(":") for line in lines]
    for number, (user, _, password) in enumerate(pairs, start=1):
        if not user or not password:
            raise ValueError(f"--auth {source}: line {number} is not USER:PASSWORD")
    if not pairs:
        raise ValueError(f"--auth {source}: it is empty, write a line USER:PASSWORD")
    return [(user, password) for user, _, password in pairs]


# ------------------------------------------------------------------------------------------------------ the visitors


class Visitors:
    """Who has a page or a result open, and what is kept for them. The server's loop and the workers share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()
        self._kept: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    @contextlib.contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """While a stream to this visitor is open. With the last one goes what is kept."""
        with self._lock:
            self._streams[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[session] -= 1
                if not self._streams[session]:
                    del self._streams[session]
                    self._kept.pop(session, None)

    def present(self, session: str) -> bool:
        return session in self._streams

    def keep(self, session: str, value: object) -> None:
        """Keep ``value`` instead of what was kept before, unless the visitor has left."""
        with self._lock:
            self._kept.pop(session, None)
            if session in self._streams:
                self._kept[session] = time.monotonic(), value
            if len(self._kept) > KEPT_RESULTS:
                self._kept.popitem(last=False)

    def kept(self, session: str) -> Any:
        """What :meth:`keep` was given, or None."""
        with self._lock:
            return self._kept.get(session, (0.0, None))[1]

    def renew(self, session: str, seconds: float) -> None:
        """What is kept counts as new ``seconds`` from now: a request that waits needs it."""
        with self._lock:
            if session in self._kept:
                self._kept[session] = time.monotonic() + seconds, self._kept[session][1]

    def forget(self, seconds: float) -> None:
        """Drop what is older."""
        with self._lock:
            for session in [key for key, (since, _) in self._kept.items() if time.monotonic() - since > seconds]:
                del self._kept[session]


class Stopped(Exception):
    """The work was stopped: its time is over, or nobody waits for it."""


@dataclass(frozen=True)
class Visitor:
    """Who waits for the answer to a request.

    Args:
        session: Gradio's name of an opened page.
        visitors: all of them.
        arrived: when the request came, by time.monotonic.
        seconds: how long the computation may take.
    """

    session: str
    visitors: Visitors
    arrived: float
    seconds: float

    @classmethod
    def of_request(cls, request: gr.Request, seconds: float) -> Visitor:
        """Who sent ``request``, as the :class:`Door` noted it."""
        assert request.request is not None and request.session_hash is not None
        state = request.request.state
        return cls(request.session_hash, state.visitors, state.arrived, seconds)

    def watch(self) -> Callable[[], None]:
        """A function that raises :class:`Stopped` once the time, which begins now, is over or nobody waits any more."""
        begin = time.monotonic()

        def check() -> None:
            now = time.monotonic()
            if now - begin > self.seconds:
                raise Stopped(
                    f"This took longer than the {self.seconds:g} seconds that the page gives a request: try a smaller photo "
                    "or fewer classes, or start the page with a greater --max-seconds."
                )
            if now - self.arrived > ARRIVING_SECONDS and not self.visitors.present(self.session):
                raise Stopped("Nobody waits for this result.")

        return check

    def keep(self, value: object) -> None:
        self.visitors.keep(self.session, value)

    @property
    def kept(self) -> Any:
        return self.visitors.kept(self.session)


# ---------------------------------------------------------------------------------------------------------- the door


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Door:
    """Lets through what the page itself asks for, from its own address, within the limits (an ASGI middleware)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        visitors: Visitors,
        names: Collection[str],
        functions: Functions,
        frames: Sequence[str] = (),
    ) -> None:
        """
        Args:
            app: Gradio's.
            limits, visitors: see there.
            names: host names that browsers may use, beside the address that they reached.
            functions: the page's events, see :func:`functions_of`.
            frames: see :func:`headers`.
        """
        self.app, self._headers = app, headers(frames)
        self._limits, self._visitors, self._functions = limits, visitors, functions
        self._names = {"localhost", "127.0.0.1", "::1", *(name.strip("[]").lower() for name in names)}
        self.stored = 0  # bytes in the folder of uploads; counted anew by :func:`_housekeeping`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        started = whole = False

        async def read() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body")
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            admitted = await self._admitted(scope, read)
            scope.setdefault("state", {}).update(visitors=self._visitors, arrived=time.monotonic())
            with self._stream(scope):
                await self.app(scope, admitted, send_with_headers)
        except ClientDisconnect:
            return
        except Refused as refused:
            discarded = 0
            while not whole and discarded < DISCARDED_BYTES:  # a browser reads the answer once it has sent its file
                discarded += len((await read()).get("body", b""))
            # Gradio's page shows the text of the one, and the detail of the other.
            if scope["path"] == UPLOAD:
                answer: Response = PlainTextResponse(str(refused), refused.status)
            else:
                answer = JSONResponse({"detail": str(refused)}, refused.status)
            await answer(scope, receive, send_with_headers)
        except Exception:
            if started:
                raise
            logger.exception("a request for %s failed", scope["path"][:200])
            answer = JSONResponse({"detail": "The page failed at this request; its log says why."}, 500)
            await answer(scope, receive, send_with_headers)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What Gradio is to read the request's body with.

        Raises:
            Refused: the request is none of the page's, comes from elsewhere, or is beyond a limit.
        """
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        self._check_origin(scope, headers)
        if method in ("GET", "HEAD") and PAGES.fullmatch(path):
            if not path.startswith("/gradio_api/"):
                scope["query_string"] = b""  # it would name a saved state to read
            return receive
        if method == "POST" and path == UPLOAD:
            return self._bounded(receive, self._upload_bytes(headers))
        if method == "POST" and (path == LOGIN or CALLS.fullmatch(path)):
            body = await _read(receive)
            if path != LOGIN:
                try:
                    session, paths = check_call(body, self._functions)
                except ValueError as error:
                    raise Refused(400, str(error)) from error
                self._visitors.renew(session, self._limits.longest_wait)
                for upload in paths:
                    mark_used(upload, self._limits.longest_wait)
            return _again(body, receive)
        raise Refused(404, f"This page has nothing at {method} {path[:200]}.")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A name that someone else pointed at this address, or a page of theirs, must not make a browser read this one."""
        own = {scope["server"][0].lower()} if scope.get("server") else set()
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        for text in (*(f"//{host}" for host in hosts), *origins):
            try:
                name = urlsplit(text).hostname
            except ValueError:
                name = None
            if name is None or name not in self._names | own:
                raise Refused(
                    403,
                    f"This page does not answer to {text.lstrip('/')[:100]}: open it by its own address, or start it with "
                    "--allow-host and the name.",
                )
        if len(hosts) != 1:
            raise Refused(400, f"A request names one host, this one {len(hosts)}.")

    def _upload_bytes(self, headers: Headers) -> int:
        """How many bytes may follow."""
        most = self._limits.upload_mb * MIB + FORM_BYTES
        announced = headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else most
        if size > most:
            raise Refused(
                413, f"The file is larger than the {self._limits.upload_mb} MB (--max-upload-mb) that this page takes."
            )
        if self.stored + size > self._limits.stored_mb * MIB:
            raise Refused(
                503,
                f"The page holds {self._limits.stored_mb} MB of files (--max-stored-mb) and takes no more: try again later.",
            )
        self.stored += max(size, BLOCK)
        return most

    @staticmethod
    def _bounded(receive: Receive, most: int) -> Receive:
        """``receive`` up to ``most`` bytes. This error, and no other, makes Gradio delete what it has of an upload."""
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                raise MultiPartException("the client has left")
            if received > most:
                raise MultiPartException(f"the upload exceeds the maximum allowed size of {most} bytes")
            return message

        return bounded

    @contextlib.contextmanager
    def _stream(self, scope: Scope) -> Iterator[None]:
        """A stream counts as someone who waits for as long as it is open."""
        path = scope["path"]
        if not STREAMS.fullmatch(path):
            yield
            return
        named = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        session = named if path.endswith("/data") else path.rpartition("/")[2]
        if not SESSION.fullmatch(session):
            raise Refused(400, "There is no such session.")
        with self._visitors.stream(session):
            yield


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > TEXT_BYTES:
            raise Refused(413, f"The request is larger than {TEXT_BYTES:,} bytes: shorten what you typed.")
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives ``body``, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def functions_of(page: gr.Blocks) -> Functions:
    """{Gradio's number of an event: the types of its inputs}."""

    def types_of(block: object) -> tuple[type, ...]:
        return next((types for kind, types in KINDS if isinstance(block, kind)), TEXT_OR_NUMBER)

    return {number: [types_of(block) for block in function.inputs] for number, function in page.fns.items()}


def check_call(body: bytes, functions: Functions) -> tuple[str, list[str]]:
    """Refuse what the page itself would not send: other functions, nested values, files that were not uploaded.

    Gradio fetches addresses and opens paths that it finds anywhere in a call, whichever the component.

    Returns:
        whose call it is, and the paths of its uploads.

    Raises:
        ValueError: with a sentence for the visitor.
    """
    try:
        call = json.loads(body, parse_constant=lambda text: _no_number(text))
        body.decode().encode()
        json.dumps(call, ensure_ascii=False).encode()  # half a surrogate pair would fail much later
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is no call of the page: {type(error).__name__}.") from error
    if not isinstance(call, dict) or not {"data", "fn_index", "session_hash"} <= call.keys():
        raise ValueError("This is no call of the page: it lacks data, fn_index or session_hash.")
    number, session, values = call["fn_index"], call["session_hash"], call["data"]
    if type(number) is not int or number not in functions:
        raise ValueError("The page has no such function.")
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise ValueError("There is no such session.")
    if not isinstance(values, list):
        raise ValueError("The data of a call is a list.")
    if len(values) != len(functions[number]):
        raise ValueError(f"The call has {len(values)} inputs instead of {len(functions[number])}.")
    for value, types in zip(values, functions[number], strict=True):
        if not isinstance(value, types) or isinstance(value, int | float) and abs(value) > 2**53:
            raise ValueError(f"An input of the call is no {' or '.join(kind.__name__ for kind in types)}, or is too large.")
        if isinstance(value, dict):
            parts = [part for key, part in value.items() if key != "meta"]
            if any(isinstance(part, dict | list) for part in parts) or value.get("meta") != {"_type": "gradio.FileData"}:
                raise ValueError("A file of a call is described by its path.")
            if not uploaded(value.get("path")):
                raise ValueError("The photo is not there: it was not uploaded to this page, or too long ago. Upload it.")
    rest = {key: value for key, value in call.items() if key not in ("data", "fn_index", "session_hash")}
    if rest.keys() - {"event_data", "trigger_id"} or "gradio.FileData" in json.dumps(rest):
        raise ValueError("This is no call of the page: it has further parts.")
    return session, [value["path"] for value in values if isinstance(value, dict)]


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


# --------------------------------------------------------------------------------------------------- files of visitors


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of this process alone, where Gradio keeps uploads and results; it goes at the end, with what it holds."""
    with tempfile.TemporaryDirectory(prefix="zeroshot_d2_web_") as folder:
        root = Path(folder).resolve()
        uploads = root / "uploads"
        uploads.mkdir()
        with environment({"GRADIO_TEMP_DIR": str(uploads), "GRADIO_EXAMPLES_CACHE": str(root / "examples_cache")}):
            yield root


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that hold inside of the ``with``."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def uploaded(path: object) -> bool:
    """Whether Gradio's upload route, or an example of the page, put a file at this path.

    The path holds a hash of the content and of a secret of the installation: who knows it has uploaded the file.
    """
    if not isinstance(path, str) or "\0" in path or os.path.normpath(path) != path:
        return False
    place = Path(path)
    if str(place.parent.parent) != os.environ.get("GRADIO_TEMP_DIR") or not re.fullmatch("[0-9a-f]{64}", place.parent.name):
        return False
    try:
        return stat.S_ISREG(place.lstat().st_mode) and stat.S_ISDIR(place.parent.lstat().st_mode)
    except OSError:
        return False


def mark_used(path: str, seconds: float = 0) -> None:
    """Have :func:`sweep` take an upload for one that is used ``seconds`` from now."""
    with contextlib.suppress(FileNotFoundError):  # it was too old just now; the reader says so
        os.utime(path, (time.time(), time.time() + seconds))


def sweep(folder: Path, seconds: float, keep: Collection[str] = ()) -> dict[str, int]:
    """Delete the files below ``folder`` that were used longer ago, and empty folders; {path: bytes} of the rest."""
    remaining, oldest = {}, time.time() - seconds
    for place, folders, files in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in files):
            with contextlib.suppress(FileNotFoundError):  # Gradio renames an upload once it is whole
                facts = path.lstat()
                if facts.st_mtime < oldest and str(path) not in keep:
                    path.unlink()
                else:
                    remaining[str(path)] = max(facts.st_size, BLOCK)
        for path in (Path(place, name) for name in folders):
            with contextlib.suppress(OSError):  # it is not empty
                if path.stat().st_mtime < oldest:
                    path.rmdir()
    return remaining


# ---------------------------------------------------------------------------------------------------------- the server


def build_page(title: str, tabs: Mapping[str, Callable[[], None]], limits: Limits) -> gr.Blocks:
    """A page with these tabs: name -> a function that makes the content. It sends no telemetry. To be called inside of
    :func:`private_folder`."""
    # Without delete_cache: an upload that comes while Gradio deletes ends that task for good.
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        for name, build in tabs.items():
            with gr.Tab(name):
                build()
        # An open page then keeps a stream open, by which Visitors knows that its visitor is there.
        page.unload(lambda: None)
    return page.queue(max_size=limits.waiting, api_open=False, default_concurrency_limit=1)


def start(
    page: gr.Blocks,
    folder: Path,
    *,
    limits: Limits,
    host: str = "127.0.0.1",
    port: int = 7860,
    names: Collection[str] = (),
    frames: Sequence[str] = (),
    auth: list[tuple[str, str]] | None = None,
) -> str:
    """Serve a page in the background until ``page.close()``; its address.

    Args:
        page: of :func:`build_page`.
        folder: the :func:`private_folder` in which it was built.
        limits: see there.
        host, port: where to listen.
        names: host names that browsers may use, beside the address itself.
        frames: origins of pages that may show this one within them.
        auth: (user, password) of those who may use the page; None: everyone.
    """
    visitors, doors = Visitors(), []

    def door(app: ASGIApp) -> Door:
        named = {host, *names}
        functions = functions_of(page)
        doors.append(Door(app, limits=limits, visitors=visitors, names=named, functions=functions, frames=frames))
        return doors[-1]

    @contextlib.asynccontextmanager
    async def lifespan(_: ASGIApp) -> AsyncIterator[None]:
        task = asyncio.create_task(_housekeeping(page, folder, limits, visitors, doors))
        yield
        task.cancel()

    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=limits.upload_mb * MIB,
        auth=auth,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        num_workers=0,
        enable_monitoring=False,
        state_session_capacity=KEPT_SESSIONS,
        app_kwargs={"middleware": [Middleware(door)], "lifespan": lifespan},
        prevent_thread_lock=True,
        theme=THEME,
        css=CSS,
        quiet=True,
    )
    return url


def serve(page: gr.Blocks, folder: Path, args: argparse.Namespace, auth: list[tuple[str, str]] | None = None) -> None:
    """Serve a page as :func:`add_server_arguments` says, until Ctrl+C or SIGTERM."""
    # What strangers type must not fill the user's cache.
    with environment({"ZEROSHOT_D2_CACHE": str(folder / "cache")}):
        where = {"host": args.host, "port": args.port, "names": args.allow_host, "frames": args.allow_frame}
        url = start(page, folder, limits=limits_of(args), auth=auth, **where)
        if not is_loopback(args.host):
            print(
                f"{args.host} is more than this machine: whoever reaches it can upload files and use its processor"
                + (", after a login" if auth else "; --auth SOURCE asks for a name and a password")
                + ". What they send, see and type travels unencrypted: a tunnel or a proxy with TLS is safer (docs/web.md)."
            )
        print(f"the page is at {url} (Ctrl+C ends it)", flush=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        page.block_thread()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _housekeeping(page: gr.Blocks, folder: Path, limits: Limits, visitors: Visitors, doors: list[Door]) -> None:
    """Gives back what is old: uploads, also those that broke off, drawn pictures, vectors of texts, kept results."""
    seconds = limits.kept_seconds
    while True:
        await asyncio.sleep(max(1, min(30, seconds // 4)))
        keep = {path for block in page.blocks.values() for path in getattr(block, "keep_in_cache", ())}
        remaining = await asyncio.to_thread(sweep, folder / "uploads", seconds, keep)
        await asyncio.to_thread(sweep, folder / "cache", seconds)
        visitors.forget(seconds)
        for names in page.temp_file_sets:
            names.intersection_update(remaining)  # Gradio's list of names would grow for ever
        for door in doors:
            door.stored = sum(remaining.values())
        await asyncio.to_thread(give_back_memory)
