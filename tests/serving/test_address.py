from __future__ import annotations

import pytest

from memlaw.core.errors import ConfigError
from memlaw.serving.address import Address


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost/v1/", "http://localhost:80"),
        ("https://host.example/models/v1", "https://host.example:443/models"),
        (" http://[::1]:8000/v1 ", "http://[::1]:8000"),
    ],
)
def test_addresses_are_read_and_written_in_one_way(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown
    assert Address.parse(shown) == Address.parse(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:pass-word@host/", "holds a user name or password"),
        ("http://pass-word@host/", "holds a user name or password"),
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://host/", "must begin with http"),
        ("localhost:8080", "must begin with http"),
        ("http://", "name a host"),
        ("http://host:99999", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://host/?key=pass-word", "a part after"),
        ("http://host/a b", "characters that a URL cannot"),
        ("http://höst/", "characters that a URL cannot"),
        ("http://host/a\x00b", "characters that a URL cannot"),
        ("", "must begin with http"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_and_not_repeated(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        Address.parse(url)
    assert "pass-word" not in str(refused.value)
