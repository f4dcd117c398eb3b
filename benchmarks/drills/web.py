"""Strangers at the web page: honest and hostile requests, several clients at once.

    python -m benchmarks.drills web                        # 1,000 requests, a fifth of them hostile, 8 clients
    python -m benchmarks.drills web --model output/demo --model output/demo/epsilon

It starts the page as a process of its own, on models that it trains for a few iterations unless --model names some, and
speaks HTTP to it. What the page opens is watched from within its process (an audit hook), and what it fetches by an address
that only hostile requests name. A request counts as a crash when it is answered with status 500 or not at all, or when the
process has ended; as a hang when a client gives up.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from zeroshot_d2.demo_world import SPLIT, render

from .common import Deadline, parser, report

SECONDS, WAITING, UPLOAD_MB = 20, 10, 2  # the page's own limits in the drill
PATIENCE = 240  # seconds after which a client gives up
MEMORY = 0.10  # growth that counts as given back
NAMES = {"content-security-policy": "frame-ancestors 'none'", "x-frame-options": "DENY"}
SCRIPT = "<img src=x onerror=alert(1)>"

WATCHED_PAGE = """
import os, sys
from zeroshot_d2.__main__ import main
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
forbidden = sys.argv[2].split(os.pathsep)
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if any(path == name or path.startswith(name + "/") for name in forbidden):
            os.write(log, (path + "\\n").encode())
sys.addaudithook(watch)
sys.exit(main(["web", *sys.argv[3:]]))
"""


# ------------------------------------------------------------------------------------------------------ the page


class Page:
    """The page in a process of its own, and the secrets that lie around it."""

    def __init__(self, output: Path, models: Sequence[Path], kept_seconds: int) -> None:
        self.secrets = (output / "secrets").resolve()
        self.secrets.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(self.secrets / "secret.png")
        for name, make in (("link.png", lambda p: p.symlink_to("secret.png")), ("fifo.png", lambda p: os.mkfifo(p))):
            (self.secrets / name).unlink(missing_ok=True)
            make(self.secrets / name)
        self.temporary = (output / "tmp").resolve()
        self.temporary.mkdir(exist_ok=True)
        self.opened = output / "opened.txt"
        self.opened.write_text("")
        self.canary = Canary()
        self.port = _free_port()
        forbidden = [str(self.secrets), "/etc/passwd", "/proc/self/environ", "/dev/zero"]
        limits = {"--max-seconds": SECONDS, "--max-waiting": WAITING, "--max-upload-mb": UPLOAD_MB}
        limits["--keep-seconds"] = kept_seconds
        options = [word for option in {"--port": self.port, **limits}.items() for word in option]
        words = [*options, *(word for model in models for word in ("--model", model))]
        self.log = output / "page.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED_PAGE, self.opened, os.pathsep.join(forbidden), *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary), "ZEROSHOT_D2_CACHE": str(output / "cache")},
            )
        self.config = self._wait_until_it_answers()
        parts = {part["id"]: part for part in self.config["components"]}
        self.calls = {}  # button -> (number, values of the inputs)
        for call in self.config["dependencies"]:
            for target, _ in call["targets"]:
                name = parts.get(target, {}).get("props", {}).get("elem_id")
                values = [parts[i]["props"].get("value") for i in call["inputs"]]
                self.calls[name] = call["id"], ["" if value is None else value for value in values]

    def _wait_until_it_answers(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                return json.loads(self.ask("GET", "/config").body)
            time.sleep(0.5)
        raise RuntimeError(f"the page did not start: {self.log.read_text()[-2000:]}")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())

    def memory(self) -> int:
        """Resident bytes of the process."""
        line = next(x for x in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        return 1024 * int(line.split()[1])

    def stored(self) -> int:
        """Files that the page keeps of its visitors: all but the examples."""
        files = [path for path in self.temporary.rglob("*") if path.is_file()]
        return sum("demo_world_" not in path.name for path in files)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.canary.close()


class Canary:
    """An address that nobody should fetch: counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.visits = self._socket.getsockname()[1], 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                self._socket.accept()[0].close()
                self.visits += 1

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------------- the clients


@dataclass
class Found:
    """What the clients saw; added to under a lock."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    bare: int = 0  # answers without the headers
    foreign: int = 0  # answers to another's name
    scripts: int = 0  # answers with an unescaped tag
    waits: list[tuple[float, int]] = field(default_factory=list)  # (seconds, place in the queue) of honest requests
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """What a browser does, and what it would not do."""

    def __init__(self, page: Page, found: Found, rng: random.Random) -> None:
        self.page, self.found, self.rng = page, found, rng
        self.session = uuid.UUID(int=rng.getrandbits(128)).hex[:12]

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        answer = self.page.ask(method, path, body, headers)
        with self.found.lock:
            self.found.bare += any(value not in answer.headers.get(name, "") for name, value in NAMES.items())
            if answer.status == 500:
                self.found.crashes.append(f"{method} {path[:100]}")
        return answer

    def upload(self, content: bytes, name: str = "photo.png") -> dict[str, Any] | None:
        """A file as a call names it; None where it was refused."""
        answer = self.ask("POST", "/gradio_api/upload", *_form([(name, content)]))
        if answer.status != 200:
            return None
        return {"path": json.loads(answer.body)[0], "meta": {"_type": "gradio.FileData"}}

    def photo(self) -> bytes:
        file = io.BytesIO()
        Image.fromarray(render(self.rng.randrange(100), self.rng.randrange(100)).image).save(file, "PNG")
        return file.getvalue()

    def join(self, button: str, values: Sequence[Any], **further: Any) -> Answer:
        number = self.page.calls[button][0]
        call = {"data": list(values), "fn_index": number, "session_hash": self.session, **further}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(call).encode(), {"Content-Type": "application/json"})

    def messages(self, leave_after: float | None = None) -> Iterator[dict[str, Any]]:
        """What the stream of this session says, until it ends or the client leaves.

        Raises:
            TimeoutError: it has not ended after :data:`PATIENCE` seconds, whether it still shows signs of life or not.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.page.port, timeout=leave_after or PATIENCE)
        end = time.monotonic() + PATIENCE
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            response = connection.getresponse()
            try:
                for line in response:
                    if time.monotonic() > end:
                        raise TimeoutError("the stream goes on without an end")
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
            except TimeoutError:
                if leave_after is None:
                    raise

    def result(self) -> tuple[bool, Any, int]:
        """Whether the call that was joined succeeded, its output, and its place in the queue when it came.

        The stream is read to its end, as a browser does: for Gradio, one who closes it earlier has left, and what the same
        session calls next is dropped with the rest.
        """
        place, result = 0, None
        for message in self.messages():
            if message["msg"] == "estimation":
                place = max(place, message["rank"] + 1)
            if message["msg"] == "process_completed":
                with self.found.lock:
                    self.found.scripts += SCRIPT in json.dumps(message)
                result = message["success"], message["output"], place
        if result is None:
            raise ConnectionError("the stream ended without a result")
        return result

    # ---- honest ----
    def honest(self) -> str:
        """Upload, run, fetch the picture; now and then move gamma. What came of it."""
        heartbeat = http.client.HTTPConnection("127.0.0.1", self.page.port, timeout=PATIENCE)
        with contextlib.closing(heartbeat):
            heartbeat.request("GET", f"/gradio_api/heartbeat/{self.session}")
            heartbeat.getresponse()
            button = self.rng.choice([name for name in ("segment", "tag") if name in self.page.calls])
            values = list(self.page.calls[button][1])
            values[0] = self.upload(self.photo())
            if values[0] is None:
                return "refused"
            if self.rng.random() < 0.5:
                values[1] = ", ".join(self.rng.sample(SPLIT.names, self.rng.randint(2, 12)))
            outcome = self._timed(button, values)
            if outcome == "answered" and button == "segment" and self.rng.random() < 0.3:
                outcome = self._timed("gamma", [self.rng.random(), *self.page.calls["gamma"][1][1:]])
            return outcome

    def _timed(self, button: str, values: Sequence[Any]) -> str:
        begin = time.monotonic()
        joined = self.join(button, values)
        if joined.status != 200:
            return "queue full" if joined.status == 503 else f"refused: {joined.body.decode(errors='replace')[:200]}"
        success, output, place = self.result()
        with self.found.lock:
            self.found.waits.append((time.monotonic() - begin, place))
        if not success:
            return f"message: {output.get('error')}"
        for value in output["data"]:
            picture = (value.get("value") or value) if isinstance(value, dict) else {}
            if "path" in picture and not self.ask("GET", f"/gradio_api/file={picture['path']}").body.startswith(b"\x89PNG"):
                return "no picture"
        return "answered"

    # ---- hostile ----
    def call(self, values: Sequence[Any], button: str | None = None) -> str:
        """Send a call and wait for what comes of it."""
        button = button or self.rng.choice([name for name in ("segment", "tag") if name in self.page.calls])
        values = [*values, *self.page.calls[button][1][len(values) :]]
        joined = self.join(button, values)
        if joined.status != 200:
            return "queue full" if joined.status == 503 else "refused"
        success, _, _ = self.result()
        return "answered" if success else "message"


def _form(files: Sequence[tuple[str, bytes]], name: str = "files") -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode() + content + b"\r\n"
        for file, content in files
    ]
    return b"".join([*parts, b"--b--\r\n"]), {"Content-Type": "multipart/form-data; boundary=b"}


# ---------------------------------------------------------------------------------------------------------- hostility


def foreign_path(client: Client) -> str:
    """A file that was not uploaded, as the photo, with and without Gradio's mark, and through another input."""
    secrets = client.page.secrets
    path = client.rng.choice(
        [*(str(secrets / name) for name in ("secret.png", "link.png", "fifo.png")), "/etc/passwd", "/proc/self/environ"]
        + ["/dev/zero", "/proc/self/fd/0", f"file://{secrets}/secret.png", "secret.png", str(secrets)]
    )
    file: dict[str, Any] = {"path": path}
    if client.rng.random() < 0.5:
        file["meta"] = {"_type": "gradio.FileData"}
    return client.call(client.rng.choice([[file], [None, file], [{"path": path, "url": None, "orig_name": file}], [[file]]]))


def path_beside_an_upload(client: Client) -> str:
    """From the path of an upload to another file."""
    mine = client.upload(client.photo())
    if mine is None:
        return "refused"
    folder = Path(mine["path"]).parent
    other = client.rng.choice(
        [
            f"{folder}/../../../../../etc/passwd",
            str(folder),
            f"{mine['path']}/../x.png",
            f"{mine['path']}\0.png",
            f"/{folder}",
        ]
    )
    return client.call([{**mine, "path": other}])


def fetched_address(client: Client) -> str:
    """An address in place of a path: the page would fetch it."""
    url = f"http://127.0.0.1:{client.page.canary.port}/a.png"
    file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
    if client.rng.random() < 0.3:
        return _status(client.ask("GET", f"/gradio_api/{client.rng.choice(['file', 'proxy'])}={url}"))
    return client.call(client.rng.choice([[file], [None, file], [None, {"a": file}]]))


def foreign_download(client: Client) -> str:
    """A file of the machine through the routes that serve files."""
    secret = f"{client.page.secrets}/{client.rng.choice(['secret.png', 'link.png', 'fifo.png'])}"
    path = client.rng.choice(
        [
            *(f"/gradio_api/file={name}" for name in (secret, "/etc/passwd", "../../../etc/passwd", "/proc/self/environ")),
            *(f"/gradio_api/file={name}" for name in ("%2Fetc%2Fpasswd", "/dev/zero", "/", "%00", "~/.bashrc")),
            *(f"/{folder}/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd" for folder in ("static", "assets", "svelte")),
            *(
                "/static//etc/passwd",
                "/assets/../../../../etc/passwd",
                "/?deep_link=../../../etc",
                f"/gradio_api/file/{secret}",
            ),
            *(f"/custom_component/x/client/component/{secret}", "/gradio_api/stream/a/b/1/playlist-file"),
        ]
    )
    return _status(client.ask("GET", path))


def foreign_name(client: Client) -> str:
    """Another's name for this address, as DNS rebinding has it, or another's page as the origin."""
    header = client.rng.choice([{"Host": "attacker.example"}, {"Host": "127.0.0.1.attacker.example:80"}, {"Host": ""}])
    if client.rng.random() < 0.5:
        header = {"Origin": client.rng.choice(["https://attacker.example", "null", "http://localhost.attacker.example"])}
    answer = client.ask("GET", client.rng.choice(["/", "/config", "/gradio_api/info"]), headers=header)
    with client.found.lock:
        client.found.foreign += answer.status == 200
    return _status(answer)


def other_routes(client: Client) -> str:
    """What Gradio offers and the page does not use."""
    routes = [
        "call/predict",
        "api/predict",
        "component_server",
        "process_recording",
        "vibe-edit",
        "stream/x",
        "cancel",
        "reset",
    ]
    routes += ["run-history/connect", "undo-vibe-edit", "call/v2/predict"]
    method = client.rng.choice(["POST", "POST", "PUT", "DELETE", "GET"])
    body = json.dumps({"data": [0], "fn_index": 1, "session_hash": client.session}).encode()
    return _status(
        client.ask(method, f"/gradio_api/{client.rng.choice(routes)}", body, {"Content-Type": "application/json"})
    )


def past_the_queue(client: Client) -> str:
    """A call that does not wait for its turn."""
    number, values = client.page.calls[client.rng.choice(["segment", "tag"])]
    body = json.dumps({"data": values, "fn_index": number, "session_hash": client.session}).encode()
    return _status(client.ask("POST", "/gradio_api/run/predict", body, {"Content-Type": "application/json"}))


def long_text(client: Client) -> str:
    """Names that are too long or too many, and what only seems short."""
    names = client.rng.choice(
        [
            "x" * 1_000_000,
            "x" * 30_000,
            "x" * 2_000_000,
            ", ".join(f"name {i}" for i in range(10_000)),
            ", ".join("|".join(f"{i} {j}" for j in range(50)) for i in range(1500)),
            "," * 500_000,
            "|" * 50_000,
        ]
    )
    return client.call([client.upload(client.photo()), names])


def most_text(client: Client) -> str:
    """As much as the page takes: it answers, or its time limit ends it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["".join(client.rng.choices(letters, k=40)) for _ in range(1500)]
    return client.call([client.upload(client.photo()), ", ".join(names)])


def strange_text(client: Client) -> str:
    """Markup, formulas, control characters; some of it is a name like any other."""
    text = client.rng.choice(
        [
            SCRIPT,
            "$\\frac{",
            "$" * 60,
            "a\x00b",
            "\u202egnp.exe",
            "\ud800",
            "{}",
            "%s{0}",
            "\x1b[31m",
            "e\u0301" * 40,
            "🙂, 犬",
        ]
    )
    return client.call([client.upload(client.photo()), f"{text}, dark sand"])


def strange_call(client: Client) -> str:
    """Bodies that are no call of the page."""
    number = client.page.calls["segment" if "segment" in client.page.calls else "tag"][0]
    good = {"data": [None, "a, b", "", 0.5], "fn_index": number, "session_hash": client.session}
    body = client.rng.choice(
        [
            *(b"", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b"[]", b'"x"', b"{" * 5000, b'{"data": 1}'),
            *(json.dumps({**good, "fn_index": index}).encode() for index in (-1, 10**9, "0", None, True, 0.5)),
            *(json.dumps({**good, "session_hash": name}).encode() for name in (None, "", "../..", "x" * 10**5, 7)),
            *(json.dumps({**good, "data": data}).encode() for data in ({}, [], [{}] * 4, [[[]]] * 4, ["x"] * 10**5)),
            *(json.dumps({**good, "data": [None, "a", "", value]}).encode() for value in ("x", None, 1e300, -5, True)),
            json.dumps(good).replace("0.5", "NaN").encode(),
            json.dumps(good).replace("0.5", "9" * 5000).encode(),
            json.dumps({**good, "batched": True, "event_id": "x", "simple_format": True}).encode(),
        ]
    )
    answer = client.ask("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    if answer.status != 200:
        return _status(answer)
    success, _, _ = client.result()
    return "answered" if success else "message"


def strange_upload(client: Client) -> str:
    """Files that are too large, too many, broken, or larger than they look."""
    small = client.photo()
    answer = client.ask(
        "POST",
        "/gradio_api/upload" + client.rng.choice(["", "?upload_id=x"]),
        *client.rng.choice(
            [
                _form([("a.png", b"x" * (UPLOAD_MB * 2**20 + 1))]),
                _form([("a.png", b"x" * 2**16)] * 200),
                _form([("../../a.png", small)]),
                _form([("a" * 5000 + ".png", small)]),
                _form([("", small)]),
                _form([("a.png", small)], name="other"),
                (b"--b\r\n\r\n", {"Content-Type": "multipart/form-data; boundary=b"}),
                (b"x", {"Content-Type": "text/plain"}),
                (b"x", {"Content-Type": "multipart/form-data"}),
            ]
        ),
    )
    return _status(answer)


def strange_image(client: Client) -> str:
    """Uploads that are no image of a usual size."""
    content = client.rng.choice([_bomb(), _passes(), client.photo()[:200], b"%!PS-Adobe", b"", b"\x89PNG\r\n\x1a\n" * 100])
    file = client.upload(content)
    return "refused" if file is None else client.call([file])


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return file.getvalue()


def _passes() -> bytes:
    """A JPEG that decodes its image some thousand times: a progressive one, whose passes are repeated."""
    file = io.BytesIO()
    Image.new("RGB", (1900, 1900), "green").save(file, "JPEG", progressive=True, quality=5)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 1000 + content[-2:]


def broken_off(client: Client) -> str:
    """An upload, a call or a header that ends in the middle."""
    body, _ = _form([("a.png", b"x" * 10_000)])
    head = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
    content = client.rng.choice(
        [
            head.format("/gradio_api/upload", "multipart/form-data; boundary=b", len(body)).encode() + body[:5000],
            head.format("/gradio_api/queue/join", "application/json", 500).encode() + b'{"data": [',
            b"GET / HTTP/1.1\r\nHost: 127.",
            bytes(client.rng.choices(range(256), k=2000)),
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: attacker.example\r\n\r\n",
        ]
    )
    with socket.create_connection(("127.0.0.1", client.page.port), timeout=PATIENCE) as connection:
        connection.sendall(content)
        time.sleep(0.05)
    return "left"


def abandoned(client: Client) -> str:
    """A call whose client leaves: at once, or once it has begun to listen."""
    button = client.rng.choice([name for name in ("segment", "tag") if name in client.page.calls])
    values = [client.upload(client.photo()), *client.page.calls[button][1][1:]]
    names = ["".join(client.rng.choices("abcdefghij ", k=30)) for _ in range(1000)]
    values[1] = ", ".join(names)
    if client.join(button, values).status != 200:
        return "refused"
    if client.rng.random() < 0.5:
        for _ in client.messages(leave_after=client.rng.choice([0.05, 0.5])):
            pass
    return "left"


def _status(answer: Answer) -> str:
    return "answered" if answer.status < 400 else "refused"


HOSTILE: tuple[Callable[[Client], str], ...] = (
    foreign_path,
    path_beside_an_upload,
    fetched_address,
    foreign_download,
    foreign_name,
    other_routes,
    past_the_queue,
    long_text,
    most_text,
    strange_text,
    strange_call,
    strange_upload,
    strange_image,
    broken_off,
    abandoned,
)


# ------------------------------------------------------------------------------------------------------------ the drill


def send(page: Page, cases: Sequence[tuple[int, str]], clients: int, deadline: Deadline, found: Found) -> int:
    """Have ``clients`` threads send the cases, (seed, name of the function); how many were sent before the deadline."""
    kinds = {function.__name__: function for function in (*HOSTILE, Client.honest)}
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)

    def work() -> None:
        while not deadline.over() and page.process.poll() is None:
            try:
                seed, kind = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcome = kinds[kind](Client(page, found, random.Random(seed)))
            except TimeoutError:
                outcome = "hang"
            except (OSError, http.client.HTTPException) as error:
                outcome = f"crash: {type(error).__name__}"
            with found.lock:
                found.outcomes[kind, outcome] += 1
                if outcome == "hang":
                    found.hangs.append(f"{kind} {seed}")
                elif outcome.startswith("crash"):
                    found.crashes.append(f"{kind} {seed}: {outcome}")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(cases) - waiting.qsize()


def train_models(output: Path) -> list[Path]:
    """Both systems after a few iterations on the demo world: what they say does not matter here."""
    folders = [output / "models" / name for name in ("alignzeg", "epsilon")]
    for folder in folders:
        if not (folder / "model_final.pth").is_file():
            few = ["SOLVER.MAX_ITER", 4, "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", folder]
            few += ["SOLVER.MAX_EPOCHS", 0] if folder.name == "epsilon" else []
            command = [sys.executable, "-m", "zeroshot_d2", "train", "--config-file", f"demo/{folder.name}.yaml", *few]
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run the drill; 0 where nothing was read, crashed, hung, waited too long or was kept."""
    options = parser("web", __doc__)
    options.add_argument("--requests", type=int, default=1000)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--warm-up", type=int, default=2, help="rounds of all kinds before the memory is measured")
    options.add_argument("--keep-seconds", type=int, default=20, help="the page's own option")
    options.add_argument("--model", type=Path, action="append", metavar="FOLDER", help="a finished run; default: trains two")
    args = options.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    rng, deadline, found = random.Random(args.seed), Deadline(args.seconds), Found()
    page = Page(args.output, args.model or train_models(args.output), args.keep_seconds)
    try:
        # Libraries, fonts and the buffers of the threads are there after the first requests of each kind.
        warm = ["honest"] * 2 * args.clients + [function.__name__ for function in HOSTILE]
        send(page, [(rng.getrandbits(32), kind) for kind in warm * args.warm_up], args.clients, deadline, Found())
        time.sleep(3 * args.keep_seconds)
        before = page.memory()
        hostile = args.requests // 5
        kinds = [HOSTILE[i % len(HOSTILE)].__name__ for i in range(hostile)] + ["honest"] * (args.requests - hostile)
        rng.shuffle(kinds)
        sent = send(page, [(rng.getrandbits(32), kind) for kind in kinds], args.clients, deadline, found)
        ended = page.process.poll() is not None
        # An upload may stay for as long as its request could wait, even where its client has left the queue.
        end = time.monotonic() + SECONDS * (WAITING + 2) + 3 * args.keep_seconds
        time.sleep(0 if ended else 3 * args.keep_seconds)
        while not ended and page.stored() and time.monotonic() < end:
            time.sleep(1)
        after = before if ended else page.memory()
        stored = page.stored()
    finally:
        page.close()
    opened = page.opened.read_text().split("\n")[:-1]
    left = list(page.temporary.glob("zeroshot_d2_web_*"))
    failures = page.log.read_text().count("Traceback")
    honest = Counter({outcome: n for (kind, outcome), n in found.outcomes.items() if kind == "honest"})
    seconds, place = max(found.waits, key=lambda wait: wait[0] / (wait[1] + 1), default=(0.0, 0))
    growth = after / before - 1
    aims = [
        ("requests sent", f"{sent} of {args.requests}", sent == args.requests),
        ("honest requests answered", f"{honest['answered']} of {honest.total()}", honest["answered"] == honest.total()),
        ("crashes", len(found.crashes) + ended, not found.crashes and not ended),
        ("failures in the page's log", failures, failures == 0),
        ("hangs", len(found.hangs), not found.hangs),
        ("files opened that were not uploaded", len(opened), not opened),
        ("addresses fetched", page.canary.visits, page.canary.visits == 0),
        ("answers to another's name", found.foreign, found.foreign == 0),
        ("answers without the headers", found.bare, found.bare == 0),
        ("answers with a script", found.scripts, found.scripts == 0),
        (
            "longest wait of an honest request for its place in the queue",
            f"{seconds:.1f} s at place {place + 1}, limit {SECONDS * (place + 1)} s",
            seconds <= SECONDS * (place + 1),
        ),
        ("memory before and after", f"{before / 2**20:.0f} and {after / 2**20:.0f} MB ({growth:+.1%})", growth <= MEMORY),
        ("files of visitors left while it runs", stored, stored == 0),
        ("folders left after its end", len(left), not left),
    ]
    hostility = {
        kind.__name__: {outcome: n for (name, outcome), n in sorted(found.outcomes.items()) if name == kind.__name__}
        for kind in HOSTILE
    }
    for kind, outcomes in hostility.items():
        print(f"{kind:24}", ", ".join(f"{outcome} {n}" for outcome, n in outcomes.items()))
    rows = [(what, value, "yes" if good else "NO") for what, value, good in aims]
    report(
        args.output,
        ["aim", "found", "met"],
        rows,
        seed=args.seed,
        hostile=hostility,
        honest=dict(honest),
        crashes=found.crashes,
        hangs=found.hangs,
        opened=opened,
    )
    return 0 if all(good for _, _, good in aims) else 1
