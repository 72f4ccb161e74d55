"""The version of memlaw: its one home is pyproject.toml, which the installed metadata repeats."""

from __future__ import annotations


def installed_version() -> str:
    """The installed version; "0+uninstalled" for a checkout that is on the path but was never installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("memlaw")
    except PackageNotFoundError:
        return "0+uninstalled"
