"""Requests to one server: JSON in, JSON out, with limits on time, size and repeats.

Redirects are not followed, proxies and netrc files are not used, compressed replies are refused: what is asked goes to
the address that was given and nowhere else, and a reply is as large as its bytes. Errors name the path and the status,
never what was sent or received, since both hold targets.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
from dataclasses import dataclass
from typing import Any, NoReturn

import httpcore2

from memlaw.core.errors import ConfigError, ServerError
from memlaw.serving.address import Address
from memlaw.serving.deadline import Deadline, TimedBackend

KEY = "MEMLAW_API_KEY"
"""Environment variable with the key that the server asks for."""

LARGEST = 8_000_000
"""Bytes of a reply."""

LONGEST_PAUSE = 30.0
"""Seconds before a request is sent again, whatever the server's Retry-After says."""

_BUSY = (429, 502, 503, 504)
_ABSENT = (404, 405, 501)


class RefusedError(ServerError):
    """An answer with a status that says error."""

    status: int = 0


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    seconds: float = 60.0
    retries: int = 5
    connections: int = 4


class Client:
    """Sends requests to one server, from several threads. Raises ServerError and ConfigError."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address, self._limits = address, limits
        self._headers = _headers(address)
        self._deadline = Deadline()
        self._stopped = threading.Event()
        secure = ssl.create_default_context() if address.scheme == "https" else None
        self._pool = httpcore2.ConnectionPool(
            secure, max_connections=limits.connections, network_backend=TimedBackend(self._deadline)
        )

    def hurry(self) -> None:
        """No request is sent again from now on."""
        self._stopped.set()

    def close(self) -> None:
        self.hurry()
        self._pool.close()

    def get(self, path: str) -> Any:
        """The JSON value at `path`; None if the server has no such path."""
        return self._value("GET", path, None, absent=True)

    def peek(self, path: str) -> Any:
        """The JSON value at `path`; None if there is none, whatever the server returns instead."""
        status, _, content = self._patient("GET", path, None)
        if status in (401, 403):
            _refuse(status, {}, path, self.address)
        try:
            return _parsed(content, path) if status == 200 else None
        except ServerError:
            return None

    def find(self, path: str, body: Any) -> Any:
        """The JSON value that the server returns for `body`; None if the server has no such path."""
        return self._value("POST", path, body, absent=True)

    def post(self, path: str, body: Any) -> Any:
        """The JSON value that the server returns for `body`."""
        return self._value("POST", path, body, absent=False)

    def _value(self, method: str, path: str, body: Any, *, absent: bool) -> Any:
        status, headers, content = self._patient(method, path, body)
        if absent and status in _ABSENT:
            return None
        if status != 200:
            _refuse(status, headers, path, self.address)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ServerError(f"{path} was answered in a compressed form that was not asked for, so it is not read.")
        return _parsed(content, path)

    def _patient(self, method: str, path: str, body: Any) -> tuple[int, dict[bytes, bytes], bytes]:
        """The reply, once the server is there and not busy."""
        for attempt in range(self._limits.retries + 1):
            last = attempt == self._limits.retries
            pause = min(LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.75, 1.25)  # not all threads at once
            try:
                reply = self._once(method, path, body)
            except (httpcore2.NetworkError, httpcore2.RemoteProtocolError) as error:
                if last or self._stopped.is_set():
                    raise ServerError(
                        f"{self.address} cannot be reached, or breaks off its answers ({type(error).__name__}). Start "
                        "the server, and check its address and port."
                    ) from None
            else:
                if reply[0] not in _BUSY or last:
                    return reply
                pause = _retry_after(reply[1], pause)
            if self._stopped.wait(pause):
                raise ServerError("Stopped.")
        raise AssertionError("unreachable")  # the last attempt returns or raises

    def _once(self, method: str, path: str, body: Any) -> tuple[int, dict[bytes, bytes], bytes]:
        url = f"{self.address}{path}"
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            with (
                self._deadline.within(self._limits.seconds),
                self._pool.stream(method, url, headers=self._headers, content=content) as response,
            ):
                received = bytearray()
                for part in response.iter_stream():
                    received += part
                    if len(received) > LARGEST:
                        raise ServerError(
                            f"The answer of {path} is larger than {LARGEST / 1e6:.0f} MB, so it is not read to its end."
                        )
                return response.status, _lower(response.headers), bytes(received)
        except httpcore2.TimeoutException:
            raise ServerError(
                f"{path} was not answered within {self._limits.seconds:g} seconds. Give the server more time "
                "(--timeout), or fewer requests at a time (--concurrency)."
            ) from None


def _headers(address: Address) -> list[tuple[str, str]]:
    headers = [
        ("Host", address.host if ":" not in address.host else f"[{address.host}]"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Content-Type", "application/json"),
        ("User-Agent", "memlaw"),
    ]
    if address.port != {"http": 80, "https": 443}[address.scheme]:
        headers[0] = ("Host", f"{headers[0][1]}:{address.port}")
    key = os.environ.get(KEY)
    if not key:
        return headers
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The key in {KEY} cannot be sent over HTTP: it may hold visible ASCII characters only.")
    return [*headers, ("Authorization", f"Bearer {key}")]


def _lower(headers: Any) -> dict[bytes, bytes]:
    return {name.lower(): value.strip() for name, value in headers}


def _retry_after(headers: dict[bytes, bytes], otherwise: float) -> float:
    """Seconds to wait, as the server says; a date, or anything else, counts as nothing said."""
    try:
        seconds = float(headers.get(b"retry-after", b""))
    except ValueError:
        return otherwise
    return min(LONGEST_PAUSE, max(seconds, 0.0)) if seconds == seconds else otherwise


def _refuse(status: int, headers: dict[bytes, bytes], path: str, address: Address) -> NoReturn:
    if status in (401, 403):
        state = "is not the right one" if os.environ.get(KEY) else "is not set"
        raise ServerError(f"{address} asks for a key (status {status}), and the environment variable {KEY} {state}.")
    if 300 <= status < 400 and b"location" in headers:
        raise ServerError(
            f"{address} redirects to another address (status {status}), which is not followed: what is asked there "
            "would be prompts, and perhaps a key. Give the address that really answers."
        )
    refused = RefusedError(f"{path} was answered with status {status}, an error. The server's own log says why.")
    refused.status = status
    raise refused


def _parsed(content: bytes, path: str) -> Any:
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ServerError(
            f"The answer of {path} is not JSON, or is cut short: perhaps another kind of server listens there."
        ) from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
