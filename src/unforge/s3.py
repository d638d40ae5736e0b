"""S3 addresses and clients. Endpoint and credentials come from the environment, never from a file of the project."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from typing import Any

ATTEMPTS = 5


def split(url: str) -> tuple[str, str]:
    """Bucket and key (or prefix, without slashes around it) of `s3://bucket/key`. Raises ValueError otherwise."""
    match = re.fullmatch(r"s3://([^/]+)(?:/(.*))?", url)
    if not match:
        raise ValueError(f"{url!r} is not an address: s3://bucket/prefix")
    return match[1], (match[2] or "").strip("/")


def connect() -> Any:
    """A boto3 client: AWS_ENDPOINT_URL for other stores than Amazon's, AWS_ACCESS_KEY_ID and the rest as usual.

    Five attempts with growing pauses for what a network or a busy server does. Raises ValueError without boto3.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.handlers import add_expect_header
    except ImportError:
        raise ValueError("s3:// needs boto3: pip install unforge[s3]") from None
    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})
    client = boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"), config=config)
    client.meta.events.register("needs-retry.s3", _broken_off)
    # botocore waits for ever, at full speed, for the rest of a "100 Continue" in which the network broke
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _broken_off(response: Any, attempts: int, **_: Any) -> float | None:
    """Seconds after which to ask again, as the answer broke off in its header: to botocore it is an empty one."""
    from botocore.exceptions import ConnectionClosedError

    if response is None or response[0].status_code not in (200, 206):
        return None
    if {"content-length", "transfer-encoding"} & {name.lower() for name in response[0].headers}:
        return None
    if attempts >= ATTEMPTS:
        raise ConnectionClosedError(endpoint_url=os.environ.get("AWS_ENDPOINT_URL", "Amazon S3"))
    return 2.0**attempts / 10


def read(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """The object, or `size` bytes of it from `offset` (fewer where it ends before).

    An answer that breaks off is asked for again. Raises FileNotFoundError when nothing is there, OSError when the
    store does not answer or refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = split(url)
    part = {} if size is None else {"Range": f"bytes={offset}-{offset + size - 1}"}
    for attempt in range(ATTEMPTS):
        try:
            return bytes(_client(os.getpid()).get_object(Bucket=bucket, Key=key, **part)["Body"].read())
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchKey", "NoSuchBucket", "404"):
                raise FileNotFoundError(f"{url} is not there") from None
            if code == "InvalidRange":
                return b""
            raise OSError(f"{url}: {error}") from None
        except (BotoCoreError, OSError) as error:  # broken off while the body was read: botocore tries no more
            if attempt == ATTEMPTS - 1:
                raise OSError(f"{url}: {error}") from None
            time.sleep(2**attempt / 10)
    raise AssertionError


@lru_cache(maxsize=1)
def _client(pid: int) -> Any:
    """One client a process: a forked one cannot use its parent's connections."""
    return connect()
