"""An S3 server for the tests of storage, leases and the cache."""

from __future__ import annotations

import pytest
from s3_server import S3Server

from sharding.io.storage import Folder


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
