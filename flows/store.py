"""Objects of an S3 store that are written once: conditional writes with checksums, and lists that many write."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unforge import paths, s3

AT_ONCE = 8
"""Objects that are looked at or sent at a time."""
ROUNDS = 100
"""Times that something is tried again because another writer was faster."""
FOR_GOOD, ALWAYS_NEW = "max-age=31536000, immutable", "no-cache"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".svg": "image/svg+xml",
    ".tar": "application/x-tar",
}
"""Content types by suffix."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class File:
    """What is sent: a file on disk, or `data`."""

    key: str
    """Below a place, with slashes."""
    size: int
    """Bytes."""
    sha256: str
    path: Path | None = None
    data: bytes = b""

    @staticmethod
    def at(path: Path, key: str) -> File:
        return File(key, path.stat().st_size, paths.sha256(path), path)

    @staticmethod
    def of(value: str | Mapping[str, Any], key: str) -> File:
        text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True) + "\n"
        data = text.encode()
        return File(key, len(data), hashlib.sha256(data).hexdigest(), data=data)

    @property
    def kind(self) -> str:
        return KINDS.get(Path(self.key).suffix, "application/octet-stream")


@dataclass(frozen=True)
class Place:
    """A prefix of a bucket."""

    client: Any
    bucket: str
    prefix: str
    """Without slashes around it; may be empty."""

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, name: str) -> Place:
        return Place(self.client, self.bucket, self.key(name))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@contextmanager
def opened(url: str) -> Iterator[Place]:
    """The place that a URL names. What the store refuses becomes a ValueError of one line, without credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    bucket, prefix = s3.split(url)
    url = _masked(url)
    endpoint = _masked(os.environ.get("AWS_ENDPOINT_URL", "") or "Amazon S3")
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    try:
        client = s3.connect()
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)  # SeaweedFS makes a bucket when it is put to
        yield Place(client, bucket, prefix)
    except ClientError as error:
        code = str(error.response["Error"].get("Code"))
        if code == "NoSuchBucket":
            raise ValueError(f"{url}: {endpoint} has no bucket {bucket!r}: make it, or name another") from None
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "403"):
            raise ValueError(f"{url}: {endpoint} refuses the credentials ({code}): look at {keys}") from None
        raise ValueError(f"{url}: {_masked(str(error))}; publish again, what was sent is kept") from None
    except NoCredentialsError:
        raise ValueError(f"{url}: no credentials: set {keys}") from None
    except BotoCoreError as error:
        raise ValueError(f"{url}: {_masked(str(error))}; publish again, what was sent is kept") from None


def _masked(text: str) -> str:
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return re.sub(r"//[^/\s]*@", "//", text)


def listing(place: Place) -> dict[str, int]:
    """Size (bytes) of every object below a place, by its key there."""
    start = place.key("")
    pages = place.client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=start)
    return {item["Key"][len(start) :]: int(item["Size"]) for page in pages for item in page.get("Contents", [])}


def read(place: Place, name: str) -> tuple[bytes, str]:
    """An object and its ETag; both empty where there is none."""
    from botocore.exceptions import ClientError

    try:
        answer = place.client.get_object(Bucket=place.bucket, Key=place.key(name))
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return b"", ""
        raise
    return bytes(answer["Body"].read()), str(answer["ETag"])


def put(place: Place, file: File, tag: str = "", cache: str = FOR_GOOD) -> bool:
    """Write an object that is not there yet, or whose ETag is `tag`; False when another one is there."""
    from botocore.exceptions import ClientError

    with ExitStack() as stack:
        try:
            place.client.put_object(
                Bucket=place.bucket,
                Key=place.key(file.key),
                Body=stack.enter_context(open(file.path, "rb")) if file.path else file.data,
                ContentType=file.kind,
                CacheControl=cache,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(file.sha256)).decode(),
                Metadata={"sha256": file.sha256},
                **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"}),
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            if code in ("BadDigest", "XAmzContentSHA256Mismatch"):
                raise ValueError(f"{file.path or file.key} changed while it was sent: publish again") from None
            raise
    return True


def same(place: Place, file: File) -> bool | None:
    """Whether the object in a file's place has its bytes; None where there is no object."""
    from botocore.exceptions import ClientError

    for _ in range(3):  # the header of an answer may break off, which nothing shows
        try:
            head = place.client.head_object(Bucket=place.bucket, Key=place.key(file.key))
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                return None
            raise
        if head["ContentLength"] == file.size and head["Metadata"].get("sha256") == file.sha256:
            return True
    return False


def differing(place: Place, files: Sequence[File], there: Mapping[str, int]) -> list[str]:
    """Keys in whose place lies something else than the file."""
    found = [file for file in files if file.key in there]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        equal = pool.map(lambda file: there[file.key] == file.size and same(place, file), found)
        return [file.key for file, ok in zip(found, equal, strict=True) if not ok]


def send(place: Place, files: Sequence[File], cure: str) -> int:
    """Put the files that are not there, the last one when all others are; how many were put.

    Raises ValueError that ends in `cure` when other bytes lie in a file's place: seen before anything is written,
    unless they come in the meantime.
    """

    def refuse(keys: list[str]) -> None:
        raise ValueError(f"{place} has other bytes in place of {some(keys)}; {cure}")

    def one(file: File) -> bool:
        for _ in range(ROUNDS):
            if put(place, file):
                return True
            equal = same(place, file)
            if equal:  # another publisher of the same was faster, or an answer was lost on its way
                return False
            if equal is False:
                refuse([file.key])
            time.sleep(random.uniform(0, 0.2))
        raise ValueError(f"{place}/{file.key} cannot be written: others write it all the time")

    there = listing(place)
    if other := differing(place, files, there):
        refuse(other)
    new, last = [file for file in files if file.key not in there], files[-1]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = sum(pool.map(one, [file for file in new if file is not last]))
    if last not in new:
        return sent
    now = listing(place)  # a store that fell over may have lost what it had taken
    if lost := [file.key for file in files[:-1] if now.get(file.key) != file.size]:
        raise ValueError(f"{place} has lost {some(lost)}, which it had taken: publish again")
    return sent + one(last)


def remove(place: Place, first: str) -> None:
    """Delete every object below a place, `first` before the others."""
    for name in sorted(listing(place), key=lambda name: (name != first, name)):
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))


def some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def size(files: Sequence[File]) -> str:
    return f"{len(files)} files, {sum(file.size for file in files) / 1e6:.2f} MB"


def update(place: Place, name: str, make: Callable[[bytes], File]) -> None:
    """Bring an object that many write up to date: `make` is given what is there, again whenever that has changed."""
    for _ in range(ROUNDS):
        now, tag = read(place, name)
        file = make(now)
        if file.data == now or put(place, file, tag, ALWAYS_NEW):
            return
        time.sleep(random.uniform(0, 0.2))
    raise ValueError(f"{place}/{name} cannot be written: others write it all the time; publish again")
