"""The address of a server: http or https, a host, a port, and nothing that could be a secret."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from memlaw.core.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    scheme: str
    host: str
    port: int
    path: str
    """Before the paths of the server's own documentation; empty, or begins with a slash."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """`http://HOST:PORT` with or without a path; a `/v1` at its end is dropped.

        Raises ConfigError, which never repeats a password.
        """
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            raise ConfigError(f"The URL of the server cannot be read. {_EXAMPLE}") from None
        if not (url.isascii() and url.strip().isprintable()) or " " in url.strip():
            raise ConfigError(f"The URL of the server holds characters that a URL cannot. {_EXAMPLE}")
        if "@" in parts.netloc:
            raise ConfigError(
                "The URL of the server holds a user name or password, which would end up in results and logs. Leave it "
                "out, and put the server's key into the environment variable MEMLAW_API_KEY."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"The URL of the server must begin with http:// or https:// and name a host. {_EXAMPLE}")
        if parts.query or parts.fragment:
            raise ConfigError(f"The URL of the server has a part after ? or #, which no server here takes. {_EXAMPLE}")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme], path)

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK or self.host.startswith("127.")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


_EXAMPLE = "Give it as http://127.0.0.1:8080."
