"""The server of the web page: whom it answers, what it takes, and that it keeps nothing for long."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

gr = pytest.importorskip("gradio", reason="the extra 'web' is not installed")
from zeroshot_d2 import web, web_server  # noqa: E402
from zeroshot_d2.web_server import Limits, headers  # noqa: E402

LIMITS = Limits(upload_mb=1, stored_mb=8, waiting=3, seconds=3, kept_seconds=4)
POLICY = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


# ------------------------------------------------------------------------------------------------------- the options


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    web_server.add_server_arguments(parser)
    return parser.parse_args(words)


def test_the_server_listens_on_loopback_with_limits_unless_told_otherwise():
    args = parse()
    assert (args.host, args.port, args.allow_host, args.auth) == ("127.0.0.1", 7860, [], None)
    assert web_server.limits_of(args) == Limits()
    assert parse("--allow-host", "a", "--allow-host", "b").allow_host == ["a", "b"]


def test_every_limit_is_an_option():
    words = [word for number, (option, _) in enumerate(web_server.OPTIONS.values()) for word in (option, str(number + 1))]
    assert web_server.limits_of(parse(*words)) == Limits(1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_limits_are_positive(value, capsys):
    with pytest.raises(SystemExit):
        parse(f"--max-pixels={value}")
    assert f"must be a positive whole number, got '{value}'" in capsys.readouterr().err


def test_accounts_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "users"
    path.write_text("ann:a:b\n\n# no user\nbob:c\n")
    path.chmod(0o600)
    assert web_server.accounts(str(path)) == [("ann", "a:b"), ("bob", "c")]
    monkeypatch.setenv("USERS", "ann:x\n")
    assert web_server.accounts("env:USERS") == [("ann", "x")]


def test_faulty_accounts(tmp_path, monkeypatch):
    path = tmp_path / "users"
    path.write_text("ann secret\n")
    path.chmod(0o644)
    with pytest.raises(ValueError, match=f"others can read the passwords in it; `chmod 600 {path}`"):
        web_server.accounts(str(path))
    path.chmod(0o600)
    with pytest.raises(ValueError, match="line 1 is not USER:PASSWORD") as error:
        web_server.accounts(str(path))
    assert "secret" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no file of the name given") as missing:
        web_server.accounts("ann:secret")
    assert "secret" not in str(missing.value)
    monkeypatch.setenv("USERS", " ")
    for source, message in (("env:NOBODY", "no variable NOBODY"), ("env:USERS", "it is empty")):
        with pytest.raises(ValueError, match=message):
            web_server.accounts(source)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)])
def test_what_only_this_machine_reaches(host, loopback):
    assert web_server.is_loopback(host) == loopback


@pytest.mark.parametrize(("host", "auth"), [("0.0.0.0", None), ("0.0.0.0", [("ann", "x")]), ("127.0.0.1", None)])
def test_a_page_for_others_says_what_that_means(host, auth, monkeypatch, capsys):
    monkeypatch.setattr(web_server, "start", lambda *args, **options: "http://address/")
    monkeypatch.setattr(web_server.signal, "signal", lambda *args: None)
    page = argparse.Namespace(block_thread=lambda: None)
    web_server.serve(page, Path("."), parse("--host", host), auth)
    said = capsys.readouterr().out
    assert "the page is at http://address/" in said
    assert ("unencrypted" in said) == (host == "0.0.0.0")
    assert ("--auth SOURCE asks for" in said) == (host == "0.0.0.0" and auth is None)


# --------------------------------------------------------------------------------------------------------- the server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


seen: list[tuple[str | None, str]] = []  # what reached the event of the page below
released = threading.Event()  # of an event that is held until then


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with web_server.private_folder() as path:
        yield path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A page with a photo, a text and a button."""
    examples = folder / "examples"
    examples.mkdir()

    def build() -> None:
        photo, text, button, result = (
            web.photo_input(web.example_photos(examples, count=1)),
            gr.Textbox(),
            gr.Button(),
            gr.HTML(),
        )

        def on_run(visitor: web_server.Visitor, photo: str | None, text: str) -> str:
            seen.append((photo, text))
            if text == "hold":
                released.wait(60)
            visitor.keep(text)
            return f"{visitor.kept}!"

        button.click(web.answering(on_run, LIMITS), [photo, text], [result], **web.EVENT)

    page = web_server.build_page("A page", {"First": build, "Second": lambda: gr.Markdown("two")}, LIMITS)
    yield web_server.start(page, folder, limits=LIMITS, port=free_port(), names=["page.example"])
    page.close()


@pytest.fixture(scope="module")
def ask(url: str) -> Callable[..., tuple[int, Any, bytes]]:
    """``ask(path, body, **headers)``: status, headers and content of the answer."""

    def ask(path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url + path.lstrip("/"), data=body, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return ask


def call(ask: Callable[..., Any], *data: Any, number: int = 1, **further: Any) -> tuple[int, str]:
    body = json.dumps({"data": list(data), "fn_index": number, "session_hash": "someone", **further}).encode()
    status, _, content = ask("/gradio_api/queue/join", body, Content_Type="application/json")
    return status, content.decode()


def result(url: str, session: str = "someone") -> dict[str, Any]:
    """The result of a call. The stream is read to its end, as browsers do: for Gradio, one who closes it earlier has left,
    and it drops the next call of the same session."""
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        messages = [json.loads(line.removeprefix(b"data: ")) for line in stream if line.startswith(b"data: ")]
    (completed,) = (message for message in messages if message["msg"] == "process_completed")
    return completed


def form(content: bytes, name: str = "a.png") -> dict[str, Any]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return {"body": head.encode() + content + b"\r\n--b--\r\n", "Content_Type": "multipart/form-data; boundary=b"}


def upload(ask: Callable[..., Any], content: bytes) -> dict[str, Any]:
    """An uploaded file, as a call describes it."""
    status, _, answer = ask("/gradio_api/upload", **form(content))
    assert status == 200, answer
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


def test_a_page_has_its_title_and_tabs_and_asks_nothing_of_other_hosts(ask):
    status, headers, content = ask("/")
    assert status == 200 and b"A page" in content and b"First" in content and b"Second" in content
    assert b'"analytics_enabled":false' in content.replace(b" ", b"")
    assert "default-src 'self'" in headers["Content-Security-Policy"] and "http" not in headers["Content-Security-Policy"]
    css = ask("/theme.css")[2].decode()
    assert "system-ui" in css and not re.findall(r"@import|@font-face|url\((?![\"']?data:)", css)


def test_pages_that_may_show_this_one():
    assert "frame-ancestors 'none';" in headers()["Content-Security-Policy"] and headers()["X-Frame-Options"] == "DENY"
    framed = headers(["https://huggingface.co", "http://127.0.0.1:8000"])
    assert "frame-ancestors https://huggingface.co http://127.0.0.1:8000;" in framed["Content-Security-Policy"]
    assert "X-Frame-Options" not in framed
    assert parse("--allow-frame", "https://a.example:81").allow_frame == ["https://a.example:81"]
    for text in ("huggingface.co", "*", "https://a b", "https://a;script-src *", "https://", "https://a.example/path"):
        with pytest.raises(SystemExit):
            parse("--allow-frame", text)


@pytest.mark.parametrize("path", ["/", "/config", "/nothing", "/theme.css", "/gradio_api/file=/etc/passwd"])
def test_no_answer_can_be_framed(ask, path):
    _, headers, _ = ask(path)
    assert all(value in headers[name] for name, value in POLICY.items())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "PAGE.example"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "attacker.example:7860"}, 403),
        ({"Host": "127.0.0.1.attacker.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "https://page.example"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_its_own_names_are_answered(ask, headers, status):
    answer = ask("/config", **headers)
    assert answer[0] == status
    assert status == 200 or b"--allow-host" in answer[2]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/proxy=https://a.hf.space/x",
        "gradio_api/runs",
        "gradio_api/stream/a/b/1/playlist-file",
        "gradio_api/custom_component/x/client/y/z.js",
        "monitoring/summary",
        "gradio_api/deep_link?session_hash=x",
    ],
)
def test_what_the_page_does_not_need_is_not_there(ask, path):
    assert ask(path)[0] == 404


def test_a_call_of_the_page_is_answered(ask, url):
    file = upload(ask, b"no image")
    seen.clear()
    assert call(ask, file, "text")[0] == 200
    assert result(url)["output"]["data"] == ["text!"]
    assert seen == [(file["path"], "text")]


def test_an_upload_stays_while_its_request_may_wait(ask, url):
    file = upload(ask, b"waits")
    released.clear()
    assert call(ask, None, "hold", session_hash="another")[0] == 200  # what comes now waits behind it
    begin = time.time()
    assert call(ask, file, "text")[0] == 200
    until = Path(file["path"]).stat().st_mtime - LIMITS.longest_wait
    assert begin - 1 < until < time.time() + 1
    released.set()
    result(url)
    assert Path(file["path"]).stat().st_mtime < time.time() + 1  # it is no longer needed


def test_an_example_is_chosen_and_used(ask, url):
    body = {"data": [0], "fn_index": 0, "session_hash": "someone"}
    status, _, content = ask("/gradio_api/run/predict", json.dumps(body).encode(), Content_Type="application/json")
    file = json.loads(content)["data"][0]
    assert status == 200 and ask(f"/gradio_api/file={file['path']}")[2].startswith(b"\x89PNG")
    assert call(ask, file, "example")[0] == 200 and result(url)["output"]["data"] == ["example!"]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("secret", ["file", "link", "fifo", "folder", "/dev/zero", "/proc/self/environ", "http", "inside"])
def test_files_that_were_not_uploaded_reach_nothing(ask, tmp_path, folder, place, marked, secret):
    (tmp_path / "file").write_text("secret")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    path = secret if secret.startswith("/") else str(tmp_path / secret)
    if secret == "http":
        path = "http://127.0.0.1:9/a.png"
    if secret == "inside":  # of the folder, but no upload
        path = str(folder / "examples" / "demo_world_0.png")
    file = {"path": path, **({"meta": {"_type": "gradio.FileData"}} if marked else {})}
    seen.clear()
    status, content = call(ask, *[[file, "text"], [None, file]][place])
    assert status == 400 and ("not uploaded" in content or "described by its path" in content or "no str" in content)
    assert seen == []


@pytest.mark.parametrize("change", ["{}/../../../../etc/passwd", "{}/..", "{}\0", "/{}", "link", "folder"])
def test_from_an_upload_no_path_leads_on(ask, change):
    file = upload(ask, b"x")
    place = Path(file["path"])
    if change == "link":
        (place.parent / "link").symlink_to("/etc/passwd")
        changed = str(place.parent / "link")
    else:
        changed = str(place.parent) if change == "folder" else change.format(place)
    assert call(ask, {**file, "path": changed}, "x")[0] == 400


def test_a_call_does_not_pass_the_queue(ask):
    body = json.dumps({"data": [None, "x"], "fn_index": 1, "session_hash": "someone"}).encode()
    seen.clear()
    assert ask("/gradio_api/run/predict", body, Content_Type="application/json")[0] == 404 and seen == []


GOOD = {"data": [None, "x"], "fn_index": 1, "session_hash": "someone"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b"\xff",
        json.dumps({**GOOD, "fn_index": 99}).encode(),
        json.dumps({**GOOD, "fn_index": True}).encode(),
        json.dumps({**GOOD, "session_hash": "../x"}).encode(),
        json.dumps({**GOOD, "data": {}}).encode(),
        json.dumps({**GOOD, "data": [None]}).encode(),
        json.dumps({**GOOD, "data": [[], "x"]}).encode(),
        json.dumps({**GOOD, "data": ["x", "x"]}).encode(),
        json.dumps({**GOOD, "data": [None, 1]}).encode(),
        json.dumps({**GOOD, "fn_index": 0, "data": ["x"]}).encode(),
        json.dumps({**GOOD, "fn_index": 0, "data": [2**60]}).encode(),
        json.dumps({**GOOD, "data": [None, "\ud800"]}).encode(),
        json.dumps({**GOOD, "data": [None, float("nan")]}).encode(),
        json.dumps({**GOOD, "batched": True}).encode(),
        json.dumps({**GOOD, "event_data": {"path": "/x", "meta": {"_type": "gradio.FileData"}}}).encode(),
    ],
)
def test_what_is_no_call_of_the_page_is_refused(ask, body):
    status, _, content = ask("/gradio_api/queue/join", body, Content_Type="application/json")
    assert status == 400 and json.loads(content)["detail"]


def test_long_bodies_are_refused(ask):
    status, content = call(ask, None, "x" * 2**20)
    assert status == 413 and "shorten what you typed" in content


def test_large_uploads_are_refused(ask):
    assert ask("/gradio_api/upload", **form(b"x" * (2**20 - 10)))[0] == 200
    assert ask("/gradio_api/upload", **form(b"x" * (2**20 + 10)))[0] == 413
    status, _, content = ask("/gradio_api/upload", **form(b"x" * 2**22))
    assert status == 413 and b"--max-upload-mb" in content


def test_a_queue_that_is_full_says_so(ask, url):
    released.clear()
    answers = [call(ask, None, "hold", session_hash=f"visitor{i}") for i in range(8)]
    released.set()
    assert [status for status, _ in answers][0] == 200 and "Queue is full" in answers[-1][1]
    assert {status for status, _ in answers} == {200, 503}


def test_work_of_a_visitor_who_never_listens_is_not_done(ask, url, monkeypatch):
    monkeypatch.setattr(web_server, "ARRIVING_SECONDS", -1)
    seen.clear()
    wait_for(lambda: call(ask, None, "abandoned", session_hash="nobody")[0] == 200)  # the queue may be full yet
    time.sleep(1)
    assert not any(text == "abandoned" for _, text in seen)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_everything_is_given_back(ask, folder, url):
    """Uploads, uploads that broke off, files beside an upload's, and the bytes are counted anew."""
    body = form(b"x" * 1000)["body"]
    ask("/gradio_api/upload", body.replace(b'name="files"', b'name="other"'), Content_Type="multipart/form-data; boundary=b")
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:500])
    answers = [ask("/gradio_api/upload", **form(os.urandom(2**20 - 10))) for _ in range(10)]  # more than fits
    assert answers[-1][0] == 503 and b"--max-stored-mb" in answers[-1][2]
    wait_for(lambda: ask("/gradio_api/upload", **form(b"x" * 2**20))[0] == 200)
    kept = {"demo_world_0.png", "link"}
    wait_for(lambda: {path.name for path in (folder / "uploads").rglob("*") if path.is_file()} <= kept)


def test_the_folder_and_the_environment_are_as_before(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with web_server.private_folder() as path:
        assert os.environ["GRADIO_TEMP_DIR"] == str(path / "uploads") and path.stat().st_mode & 0o077 == 0
    assert os.environ["GRADIO_TEMP_DIR"] == "before" and not path.exists()


def test_a_login_is_asked_for():
    with web_server.private_folder() as folder:
        page = web_server.build_page("A page", {"First": lambda: gr.Markdown("one")}, LIMITS)
        url = web_server.start(page, folder, limits=LIMITS, port=free_port(), auth=[("ann", "secret")])
        try:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}config")
            refused.value.close()
            assert refused.value.code == 401
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(f"{url}login", data=b"username=ann&password=secret") as answer:
                assert answer.status == 200
            with opener.open(f"{url}config") as answer:
                assert json.load(answer)["title"] == "A page"
        finally:
            page.close()


def test_visitors_and_what_is_kept_for_them():
    visitors = web_server.Visitors()
    visitors.keep("nobody", 1)
    assert visitors.kept("nobody") is None
    with visitors.stream("ann"):
        with visitors.stream("ann"):
            visitors.keep("ann", 1)
        assert visitors.present("ann") and visitors.kept("ann") == 1
        visitors.forget(60)
        assert visitors.kept("ann") == 1
        visitors.forget(0)
        assert visitors.kept("ann") is None
        visitors.keep("ann", 2)
    assert not visitors.present("ann") and visitors.kept("ann") is None


def test_what_a_waiting_request_needs_is_kept():
    visitors = web_server.Visitors()
    with visitors.stream("ann"):
        visitors.keep("ann", 1)
        visitors.renew("ann", 60)
        visitors.forget(0)
        assert visitors.kept("ann") == 1


def test_few_results_are_kept_at_a_time():
    visitors = web_server.Visitors()
    with ExitStack() as streams:
        for number in range(web_server.KEPT_RESULTS + 1):
            streams.enter_context(visitors.stream(str(number)))
            visitors.keep(str(number), number)
        assert visitors.kept("0") is None and visitors.kept("1") == 1
