"""Packs on the workers of a Ray cluster (`pip install memlaw[ray]`, Ray Core alone)."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memlaw.core.errors import ConfigError, first_line
from memlaw.sweep.engines.base import Outcome, Outcomes, Resources, Spec, WorkerDiedError

OLDEST = (2, 52)
"""The first version whose processes authenticate each other by a token."""

_SAFE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns
}
"""Environment variables that Ray reads on import; variables that are already set are kept."""

_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray listens on every address, whatever it is told. Despite its name, this switch confines it to the loopback on Linux
too."""


class OnRay:
    """As many calls at once as the cluster has room for: an existing cluster, or a temporary one of this machine.

    The scheduler retries what a lost node or worker was doing, so Ray's own retries are off.
    """

    in_process, parallel = False, True

    def __init__(self, address: str | None = None, *, cpus: int | None = None) -> None:
        """`address`: a cluster, as for `ray.init`; None: a temporary cluster of this machine with `cpus` CPUs."""
        self.address, self.cpus = address, cpus

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], resources: Resources, /) -> Outcomes[Spec]:
        with _cluster(self.address, self.cpus) as ray:
            _warn_if_too_small(ray, resources)
            remote = ray.remote(
                max_retries=0, num_cpus=resources.cpus, num_gpus=resources.gpus, scheduling_strategy="SPREAD"
            )(_without_result(fn))
            running: dict[Any, Spec] = {}
            try:
                while specs or running:
                    while specs:
                        spec = specs.popleft()
                        running[remote.remote(spec)] = spec
                    [done], _ = ray.wait(list(running), num_returns=1)
                    yield Outcome(running.pop(done), _error(ray, done))
            finally:
                for left in running:
                    ray.cancel(left, force=True)


def _without_result(fn: Callable[[Any], object]) -> Callable[[Any], None]:
    def pack(spec: Any) -> None:
        fn(spec)

    return pack


def _error(ray: Any, done: Any) -> Exception | None:
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except ray.exceptions.RayError as error:
        return WorkerDiedError(f"The worker of the pack was lost ({type(error).__name__}).")
    return None


@contextmanager
def _cluster(address: str | None, cpus: int | None) -> Iterator[Any]:
    """Ray, connected while inside; a cluster that was started for it ends afterwards."""
    ray = _imported(local=address is None)
    if ray.is_initialized():
        raise ConfigError("Ray is already connected in this process. Call `ray.shutdown()` before the probe.")
    folder = None if address else tempfile.mkdtemp(prefix="memlaw-ray-")  # readable by its owner alone
    own = {"include_dashboard": False, "num_cpus": cpus, "_temp_dir": folder} if folder else {}
    try:
        _connect(ray, address or "local", **own)
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, address: str, **own: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="warning", **own)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(_no_answer(address, error)) from error
    if signal.getsignal(signal.SIGTERM) != before:  # Ray installs a handler of its own
        signal.signal(signal.SIGTERM, before)


def _no_answer(address: str, error: Exception) -> str:
    if address == "local":
        return (
            f"Ray cannot start on this machine ({first_line(error)}). If a path is too long, set TMPDIR to a shorter "
            "one; otherwise train inline, or with --isolate."
        )
    return (
        f"Cannot connect to a Ray cluster at {address} ({first_line(error)}). Check the address, and that this machine "
        "has the cluster's token, in the file that RAY_AUTH_TOKEN_PATH names or in ~/.ray/auth_token."
    )


def _imported(*, local: bool) -> Any:
    """The module ray; its settings are made safe first, since Ray reads them on import."""
    token = (
        {}
        if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
        else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    )
    for name, value in (_SAFE | (_LOCAL | token if local else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "The engine ray needs Ray, which is not installed. Install it with `pip install 'memlaw[ray]'`."
        ) from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        raise ConfigError(
            f"Ray {ray.__version__} runs code from anyone who can reach its ports. Install "
            f"{'.'.join(map(str, OLDEST))} or newer: `pip install 'memlaw[ray]'`."
        )
    return ray


def _warn_if_too_small(ray: Any, resources: Resources) -> None:
    wanted = {"CPU": float(resources.cpus), "GPU": resources.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        warnings.warn(
            f"No node of the Ray cluster has the {resources.cpus} CPUs and {resources.gpus:g} GPUs that a pack needs. "
            "The probe waits until such a node joins; press Ctrl-C to stop it and ask for less.",
            stacklevel=2,
        )
