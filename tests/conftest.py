"""What holds for every test: one thread, caches of its own, no network."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# read once at import by the libraries that they steer, so they stand before the imports
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"rsc_seg-matplotlib-{os.getuid()}"))

import pytest  # noqa: E402
import torch  # noqa: E402

CACHES = ("RSC_SEG_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors on shared cores: more threads are slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test caches meets another test or the user's home."""
    folder = tmp_path_factory.mktemp("caches")
    for name in CACHES:
        monkeypatch.setenv(name, str(folder / name.lower()))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command run inside a test takes the package's logger over: every test starts from an untouched one."""
    logger = logging.getLogger("rsc_seg")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails at once, as it does without a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
            raise ConnectionError(f"tests have no network: {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
