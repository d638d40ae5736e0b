from __future__ import annotations

import pytest

from unforge import s3


@pytest.mark.parametrize(
    ("url", "parts"),
    [("s3://team", ("team", "")), ("s3://team/a/b", ("team", "a/b")), ("s3://team/a/", ("team", "a"))],
)
def test_addresses(url: str, parts: tuple[str, str]) -> None:
    assert s3.split(url) == parts


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "team/a", "http://team/a", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="not an address: s3://bucket/prefix"):
        s3.split(url)


def test_the_endpoint_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert s3.connect().meta.endpoint_url == "http://127.0.0.1:9"
