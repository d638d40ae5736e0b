"""Servers that the service tests share. A test that kills a server starts its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.servers import S3, PrefectServer, running


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with running(S3(tmp_path_factory.mktemp("s3") / "data")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The shared S3 server with an empty bucket, and the environment that reaches it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.clear()
    return s3_server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with running(PrefectServer(tmp_path_factory.mktemp("prefect"))) as server:
        yield server
