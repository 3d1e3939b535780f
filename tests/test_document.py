"""Campaign documents by reference: fetched over real TLS, verified, kept; bad ones are refused and the last goes on."""

import asyncio
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge import document
from edge import fetch as fetching
from edge.collector import CollectorSettings
from edge.document import Documents
from edge.errors import InputError
from edge.fetch import fetch
from edge.reference import MOST_BYTES, Reference
from edge.twin import Twin
from simulator import certificates

WAIT_S = 60  # for what takes milliseconds


def content_of(*names: str) -> bytes:
    return json.dumps({"campaigns": {name: {"signals": {"*": {}}} for name in names}}).encode()


def reference_to(content: bytes, **where: str) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **where}


class Server:
    """answers: by path, a function that writes the answer."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                try:
                    server.answers[self.path.partition("?")[0]](self)
                except KeyError:
                    self.send_error(404)
                except OSError:
                    pass  # the client has gone

            def log_message(self, *arguments: Any) -> None:
                pass

        self.authority, chain, key = certificates.make(folder, "127.0.0.1", ["localhost"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}{path}"

    def serve(self, path: str, content: bytes, length: int | None = None) -> dict[str, Any]:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content) if length is None else length))
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer
        return reference_to(content, url=self.url(path))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    yield made
    made.close()


def get(reference: dict[str, Any], folder: Path | None = None) -> bytes:
    return fetch(msgspec.convert(reference, Reference), folder)


# Fetching


def test_a_document_comes_over_https_and_from_a_file(server: Server, tmp_path: Path) -> None:
    content = content_of("a", "b")
    assert get(server.serve("/c.json?sig=secret".partition("?")[0], content)) == content
    (tmp_path / "c.json").write_bytes(content)
    assert get(reference_to(content, file="c.json"), tmp_path) == content


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, _, _ = certificates.make(tmp_path / "other", "127.0.0.1", [])
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        get(server.serve("/c", content_of("a")))
    assert server.asked == []


def test_a_transfer_that_is_cut_is_said_to_be(server: Server) -> None:
    content = content_of("a")
    server.serve("/c", content[:20], len(content))
    with pytest.raises(InputError, match=f"was cut: 20 of {len(content)} bytes came|IncompleteRead"):
        get(reference_to(content, url=server.url("/c")))


@pytest.mark.parametrize("length", [True, False])
def test_no_more_is_read_than_the_reference_says(server: Server, length: bool) -> None:
    content, sent = content_of("a"), []

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        for _ in range(1 << 12):
            handler.wfile.write(bytes(1 << 16))
            sent.append(1)

    server.answers["/c"] = flood
    with pytest.raises(InputError, match=f"bytes, not {len(content)}"):
        get(reference_to(content, url=server.url("/c")))
    assert len(sent) < 1 << 12


def test_another_content_of_the_same_size_is_refused(server: Server) -> None:
    wanted, other = content_of("a"), content_of("b")
    server.serve("/c", other)
    with pytest.raises(InputError, match="not the one that the reference names"):
        get(reference_to(wanted, url=server.url("/c")))


def test_a_slow_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.3)
    content, stop = content_of("a"), threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b" ")

    server.answers["/c"] = drip
    with pytest.raises(InputError, match=r"did not come within|bytes, not"):
        get({**reference_to(content, url=server.url("/c")), "bytes": MOST_BYTES})
    monkeypatch.setattr(fetching, "QUIET_SECONDS", 0.2)
    server.answers["/d"] = lambda handler: stop.wait(WAIT_S) and None
    with pytest.raises(InputError, match=r"cannot be fetched.*timed out"):
        get(reference_to(content, url=server.url("/d")))
    stop.set()


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/c", "file:///etc/passwd", "ftp://127.0.0.1/c"])
def test_a_redirection_to_anything_but_https_is_refused(server: Server, target: str) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers["/c"] = redirect
    with pytest.raises(InputError, match=r"redirected to something that is not https|the server answers 302"):
        get(reference_to(b"{}", url=server.url("/c")))


def test_a_redirection_to_https_is_followed_but_not_for_ever(server: Server) -> None:
    content = content_of("a")
    server.serve("/real", content)

    def redirect_to(path: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(307)
            handler.send_header("Location", server.url(path))
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return redirect

    server.answers |= {"/c": redirect_to("/real"), "/ring": redirect_to("/ring")}
    assert get(reference_to(content, url=server.url("/c"))) == content
    with pytest.raises(InputError, match="the server answers 307"):
        get(reference_to(content, url=server.url("/ring")))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"url": "http://127.0.0.1/c"}, "is not https"),
        ({"url": "file:///etc/passwd"}, "is not https"),
        ({"url": "https://127.0.0.1:1/c?sig=hidden"}, "document 127.0.0.1:1/c: cannot be fetched"),
        ({"url": "https://me:hidden@127.0.0.1:1/c"}, "document 127.0.0.1:1/c: cannot be fetched"),
        ({"url": "https://a b/\r\nX: y?hidden"}, "cannot be fetched"),
        ({"file": "nowhere.json"}, "cannot be read"),
        ({"file": "../secret.json"}, "is not in the folder"),
        ({"file": "/etc/passwd"}, "is not in the folder"),
        ({"file": "link.json"}, "is not in the folder"),
        ({"file": "pipe"}, "is no plain file"),
        ({"file": "."}, "cannot be read|is no plain file"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line_without_secrets(where: dict[str, str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (tmp_path / "secret.json").write_bytes(content_of("a"))
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match=said) as error:
        get(reference_to(content_of("a"), **where), folder)
    assert "hidden" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"null", b'{"campaigns": 3}', b"\xff\xfe", b"[" * 9999, b'{"a": {}}']
)
def test_what_is_no_document_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(InputError, match="is no document"):
        get(reference_to(content, file="c"), tmp_path)


@pytest.mark.parametrize(
    "bad",
    [{}, {"url": "https://a", "file": "b"}, {"url": "https://a", "bytes": MOST_BYTES + 1}, {"file": "a", "sha256": "x"},
     {"file": "a", "color": 1}, {"file": "a", "bytes": -1}],
)  # fmt: skip
def test_a_reference_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises((msgspec.ValidationError, ValueError)):
        msgspec.convert({"bytes": 10, "sha256": "0" * 64, **bad}, Reference)


# With a twin


class Vehicle:
    """The parts of a collector that matter here; changes has the names of the campaigns, at each change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = Documents(folder / "document.json", folder)
        self.changes: list[list[str]] = []
        self.twin = Twin(CollectorSettings, folder / "settings.json", self._check, self._change, self.documents.expand)
        self.documents.on_change = self.twin.refresh
        self.twin.refresh()

    def _check(self, field: str, entry: str | None, value: Any) -> None:
        if entry is not None and entry.startswith("bad"):
            raise InputError(f"campaign {entry}", "is bad")

    def _change(self, settings: CollectorSettings) -> None:
        self.changes.append(list(settings.campaigns))

    @property
    def campaigns(self) -> list[str]:
        return list(self.twin.settings.campaigns)

    def send(self, **desired: Any) -> None:
        self.twin.update({"desired": {**desired, "$version": 1}, "reported": {}})

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Fetch until it is so."""
        task = asyncio.create_task(self.documents.run())
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                assert not task.done()
                await asyncio.sleep(0.005)
        task.cancel()


OWN = {"signals": {"*": {}}, "priority": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "RETRY_MIN_SECONDS", 0.01)


async def test_the_document_s_campaigns_are_beside_those_of_the_twin_which_go_before(
    server: Server, tmp_path: Path
) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a", "b")), campaigns={"b": OWN, "c": OWN})
    assert vehicle.campaigns == ["b", "c"]
    assert "is being fetched" in vehicle.twin.state["refused"]["document"]
    await vehicle.until(lambda: vehicle.campaigns == ["a", "b", "c"])
    assert vehicle.twin.settings.campaigns["b"].priority == 1
    assert vehicle.twin.state["refused"] == {}


async def test_identical_references_fetch_nothing_and_change_nothing(server: Server, tmp_path: Path) -> None:
    vehicle = Vehicle(tmp_path)
    reference = server.serve("/c", content_of("a"))
    vehicle.send(document=reference)
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    count = len(vehicle.changes)
    for _ in range(3):
        vehicle.send(document=reference)
    assert (len(vehicle.changes), server.asked) == (count, ["/c"])


async def test_a_bad_document_is_refused_with_the_reason_and_the_one_before_goes_on_until_it_is_right(
    server: Server, tmp_path: Path
) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a")))
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    wanted = reference_to(content_of("b"), url=server.url("/c"))
    vehicle.send(document=wanted, campaigns={"c": OWN})
    assert vehicle.campaigns == ["a", "c"]
    await vehicle.until(lambda: "not the one" in vehicle.twin.state["refused"].get("document", ""))
    assert vehicle.twin.state["refused"]["document"].endswith("the one before it goes on")
    assert vehicle.campaigns == ["a", "c"]
    server.serve("/c", content_of("b"))
    await vehicle.until(lambda: vehicle.campaigns == ["b", "c"])
    assert vehicle.twin.state["refused"] == {}


async def test_a_bad_campaign_of_a_document_is_refused_alone(server: Server, tmp_path: Path) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a", "bad", "b")))
    await vehicle.until(lambda: vehicle.campaigns == ["a", "b"])
    assert vehicle.twin.state["refused"] == {"campaigns/bad": "campaign bad: is bad"}


async def test_a_document_survives_a_restart_without_network(server: Server, tmp_path: Path) -> None:
    vehicle = Vehicle(tmp_path)
    reference = server.serve("/c", content_of("a"))
    vehicle.send(document=reference)
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    server.answers.clear()
    again = Vehicle(tmp_path)
    assert (again.campaigns, again.changes) == (["a"], [])
    again.send(document=reference, campaigns={"c": OWN})
    assert again.campaigns == ["a", "c"]
    assert server.asked == ["/c"]


async def test_a_document_that_was_not_there_before_a_restart_is_fetched_after_it(
    server: Server, tmp_path: Path
) -> None:
    Vehicle(tmp_path).send(document=server.serve("/c", content_of("a")), campaigns={"b": OWN})
    again = Vehicle(tmp_path)
    assert again.campaigns == ["b"]
    await again.until(lambda: again.campaigns == ["a", "b"])


async def test_a_damaged_copy_is_fetched_again(server: Server, tmp_path: Path) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a")))
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    path = tmp_path / "document.json"
    path.write_bytes(path.read_bytes()[:-3])
    again = Vehicle(tmp_path)
    await again.until(lambda: again.campaigns == ["a"] and path.exists() and again.twin.state["refused"] == {})
    assert server.asked == ["/c", "/c"]


async def test_without_a_reference_the_document_s_campaigns_end(server: Server, tmp_path: Path) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a")))
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    vehicle.send(campaigns={"b": OWN})
    assert vehicle.campaigns == ["b"]
    assert not (tmp_path / "document.json").exists()


async def test_a_reference_that_is_replaced_while_it_is_fetched_changes_nothing(server: Server, tmp_path: Path) -> None:
    vehicle, asked, go = Vehicle(tmp_path), threading.Event(), threading.Event()
    first = server.serve("/slow", content_of("a"))
    answer = server.answers["/slow"]

    def wait(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        go.wait(WAIT_S)
        answer(handler)

    server.answers["/slow"] = wait
    vehicle.send(document=first)
    task = asyncio.create_task(vehicle.documents.run())
    await asyncio.to_thread(asked.wait, WAIT_S)
    vehicle.send(document=server.serve("/c", content_of("b")))
    go.set()
    async with asyncio.timeout(WAIT_S):
        while vehicle.campaigns != ["b"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    task.cancel()
    assert ["a"] not in vehicle.changes


async def test_a_reference_that_is_not_valid_is_refused_and_the_document_goes_on(
    server: Server, tmp_path: Path
) -> None:
    vehicle = Vehicle(tmp_path)
    vehicle.send(document=server.serve("/c", content_of("a")))
    await vehicle.until(lambda: vehicle.campaigns == ["a"])
    vehicle.send(document={"url": "https://x", "bytes": 3})
    assert vehicle.campaigns == ["a"]
    assert "sha256" in vehicle.twin.state["refused"]["document"]
