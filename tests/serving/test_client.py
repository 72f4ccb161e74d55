"""Requests keep to their limits, whatever a server does, and end in a value or in a ServerError."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from helpers.serving import Refusal, Running, serving
from memlaw.core.errors import ConfigError, ServerError
from memlaw.serving.address import Address
from memlaw.serving.client import KEY, LARGEST, Client, Limits

ROUTES = {
    ("GET", "/v1/models"): lambda _: {"data": []},
    ("POST", "/echo"): lambda body: body,
}


@pytest.fixture
def running() -> Iterator[Running]:
    with serving(ROUTES) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    made = Client(Address.parse(running.url), Limits(seconds=20, retries=2))
    yield made
    made.close()


def asked_once(url: str, **limits: float) -> object:
    """What a client of its own says."""
    made = Client(Address.parse(url), Limits(retries=0, **limits))
    try:
        return made.peek("/v1/models")
    finally:
        made.close()


def test_values_come_back_and_absent_paths_are_none(client: Client) -> None:
    assert client.get("/v1/models") == {"data": []}
    assert client.post("/echo", {"a": [1, 2.5, None, "ä"]}) == {"a": [1, 2.5, None, "ä"]}
    assert client.get("/nothing") is None
    assert client.find("/nothing", {}) is None
    with pytest.raises(ServerError, match="/nothing was answered with status 404"):
        client.post("/nothing", {})


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_what_it_says(running: Running, client: Client, status: int) -> None:
    def busy(_path: str) -> None:
        if running.count("/v1/models") <= 2:
            raise Refusal(status, {"Retry-After": "0"})

    running.before = busy
    assert client.get("/v1/models") == {"data": []}
    assert running.count("/v1/models") == 3


@pytest.mark.parametrize("said", ["0", "-5", "nan"])
def test_a_server_that_stays_busy_is_given_up(running: Running, client: Client, said: str) -> None:
    def busy(_path: str) -> None:
        raise Refusal(503, {"Retry-After": said})

    running.before = busy
    with pytest.raises(ServerError, match="status 503"):
        client.get("/v1/models")
    assert running.count("/v1/models") == 3


def test_a_connection_that_breaks_is_made_again(running: Running, client: Client) -> None:
    assert client.get("/v1/models") == {"data": []}
    running.gone = True
    with pytest.raises(ServerError, match="cannot be reached, or breaks off"):
        client.get("/v1/models")
    running.gone = False
    assert client.get("/v1/models") == {"data": []}


def test_other_errors_are_not_repeated(running: Running, client: Client) -> None:
    def broken(_path: str) -> None:
        raise Refusal(500, content=b"hunter-1234 is not a valid prompt")

    running.before = broken
    with pytest.raises(ServerError, match="status 500") as refused:
        client.get("/v1/models")
    assert running.count("/v1/models") == 1
    assert "hunter" not in str(refused.value)  # servers quote what they were asked


def test_redirects_are_not_followed(running: Running, client: Client) -> None:
    with serving(ROUTES) as other:

        def elsewhere(_path: str) -> None:
            raise Refusal(302, {"Location": f"{other.url}/v1/models"})

        running.before = elsewhere
        with pytest.raises(ServerError, match="redirects to another address"):
            client.get("/v1/models")
        assert not other.asked


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<!doctype html><html><body>Welcome</body></html>", "is not JSON"),
        (b'{"data": [', "is not JSON, or is cut short"),
        (b'{"data": NaN}', "is not JSON"),
        (b'{"data": Infinity}', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"1" * 10_000, "is not JSON"),
        (b'"' + b"a" * (LARGEST + 1) + b'"', "is larger than 8 MB"),
    ],
    ids=["html", "cut", "nan", "infinity", "bytes", "empty", "deep", "digits", "large"],
)
def test_what_is_no_json_is_a_server_error(running: Running, client: Client, content: bytes, why: str) -> None:
    running.spoil = lambda _path, _content: content
    with pytest.raises(ServerError, match=why):
        client.get("/v1/models")


def test_a_page_where_json_might_be_counts_as_nothing_there(running: Running, client: Client) -> None:
    running.spoil = lambda _path, _content: b"<html>Welcome</html>"
    assert client.peek("/v1/models") is None


def test_compressed_replies_are_refused(running: Running, client: Client) -> None:
    def pack(_path: str) -> None:
        raise Refusal(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")

    running.before = pack
    with pytest.raises(ServerError, match="in a compressed form"):
        client.get("/v1/models")
    assert running.headers[0]["Accept-Encoding"] == "identity"


class TestKeys:
    """Keys come from the environment and go into one header."""

    def test_a_key_is_sent_and_named_nowhere_else(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY, "sk-secret")

        def locked(_path: str) -> None:
            if running.headers[-1].get("Authorization") != "Bearer sk-other":
                raise Refusal(401)

        running.before = locked
        with pytest.raises(ServerError, match="asks for a key .* MEMLAW_API_KEY is not the right one") as refused:
            asked_once(running.url)
        assert "sk-secret" not in str(refused.value)
        assert running.headers[-1]["Authorization"] == "Bearer sk-secret"
        monkeypatch.delenv(KEY)
        with pytest.raises(ServerError, match="MEMLAW_API_KEY is not set"):
            asked_once(running.url)

    @pytest.mark.parametrize("key", ["two\nlines", "größe\u2028"])
    def test_a_key_that_cannot_be_sent_is_not_shown(
        self, running: Running, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        monkeypatch.setenv(KEY, key)
        with pytest.raises(ConfigError, match="The key in MEMLAW_API_KEY cannot be sent") as refused:
            asked_once(running.url)
        assert key not in str(refused.value)
        assert not running.asked


@contextmanager
def dripping(write: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server whose connections are handled by `write`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):  # the client left
                write(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _drip(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    pause = threading.Event()
    while not pause.wait(0.05):
        connection.sendall(b"a")


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"],
    ids=["status", "headers", "body"],
)
def test_a_server_that_drips_its_answer_meets_a_deadline(start: bytes) -> None:
    said = r"was not answered within 0.4 seconds|breaks off"
    with dripping(lambda connection: _drip(connection, start)) as url, pytest.raises(ServerError, match=said):
        asked_once(url, seconds=0.4)


def test_bodies_hold_no_nan(client: Client) -> None:
    with pytest.raises(ValueError, match="JSON"):
        client.post("/echo", {"a": float("nan")})
    assert json.dumps(client.post("/echo", [])) == "[]"
