"""An S3 server for the tests of storage, leases and the cache."""

from __future__ import annotations

import pytest
from s3_server import S3Server

from sharding.io import retries
from sharding.io.storage import Folder


@pytest.fixture
def s3(server: S3Server, monkeypatch, tmp_path):
    """The server, as the environment names it, with waits that are no waits."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "PAUSES_SECONDS", (0.01,) * 4)
    server.spoil("cut", times=0)
    server.requests.clear()
    return server


@pytest.fixture
def remote(s3: S3Server) -> Folder:
    return Folder(s3.new_folder())


@pytest.fixture(params=["local", "file", "s3", "memory"])
def folder(request, s3: S3Server, tmp_path) -> Folder:
    """An empty folder on each kind of storage."""
    urls = {
        "local": tmp_path / "data",
        "file": f"file://{tmp_path}/data/",
        "s3": s3.new_folder(),
        "memory": f"memory://{tmp_path.name}",
    }
    return Folder(urls[request.param])
