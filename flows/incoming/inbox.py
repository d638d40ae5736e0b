"""The S3 side of the watch: what lies in incoming, who works at it, what is done, and where bad files go.

Three prefixes: `incoming` belongs to the uploaders; `incoming-quarantine` and `incoming-state` (claims and what is
done) to the watch alone, so that no upload can say that it was taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from flows.incoming import uploads
from unforge import paths, s3

STATE = Path(".unforge/watch")
CHUNK = 8 * 2**20
SINGLE_COPY = 4 * 2**30
"""Bytes up to which one request copies an object; S3 takes 5 GiB."""
CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404", "412", "409")


class LeftError(Exception):
    """Why an upload stays where it is until a later look."""


class ChangedError(LeftError):
    """An object is not, or no longer, what a request said of it."""


@dataclass(frozen=True)
class Item:
    """An object of an upload."""

    key: str
    name: str
    """Its path below the upload."""
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Upload:
    """A folder `<incoming>/<dataset>/<name>/`, whatever is in it."""

    dataset: str
    name: str
    done: datetime | None = None
    """When it was done, by the server's clock."""

    @property
    def home(self) -> str:
        """Where its state and its quarantined files lie below those prefixes."""
        return f"{uploads.key(self.dataset)}/{uploads.key(self.name)}"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.name}" if self.home == f"{self.dataset}/{self.name}" else self.home


@dataclass(frozen=True)
class Inbox:
    """The prefixes, and who looks at them."""

    client: Any
    bucket: str
    incoming: str
    state: str
    """Prefix of claims and of what is done, in the same bucket."""
    quarantine: tuple[str, str]
    """Bucket and prefix."""
    owner: str
    patience: float
    """Seconds after which a claim that was not renewed is taken for dead."""


@dataclass
class Claim:
    """The right to work at an upload. Renewed by `hold`."""

    inbox: Inbox
    key: str
    etag: str
    touched: float


def connect(incoming: str | None, quarantine: str | None, root: Path, patience: float) -> Inbox:
    """The inbox at `incoming` (default: UNFORGE_INCOMING). ValueError: not set, or prefixes within each other."""
    url = incoming or os.environ.get("UNFORGE_INCOMING", "")
    if not url:
        raise ValueError("no place to watch: set UNFORGE_INCOMING=s3://bucket/prefix, or give --incoming")
    bucket, prefix = s3.split(url)
    if not prefix:
        raise ValueError(f"{url!r} is a whole bucket: give a prefix, s3://{bucket}/incoming")
    other = s3.split(quarantine or os.environ.get("UNFORGE_QUARANTINE", "") or f"s3://{bucket}/{prefix}-quarantine")
    state = f"{prefix}-state"
    places = [f"{bucket}/{prefix}/", f"{bucket}/{state}/", "/".join((*other, ""))]
    if any(one is not two and one.startswith(two) for one in places for two in places) or not other[1]:
        raise ValueError(
            f"the quarantine s3://{'/'.join(other)} needs a prefix outside {url} and s3://{bucket}/{state}"
        )
    return Inbox(s3.connect(), bucket, prefix, state, other, _owner(root), patience)


def _owner(root: Path) -> str:
    """Name of this workspace: its own claims are taken up again at once, as one watch at a time works in it."""
    path = root / STATE / "workspace"
    if not path.is_file():
        with paths.writing_file(path) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    name = f"{path.read_text(encoding='utf-8')}:{root.resolve()}"
    return f"{socket.gethostname()}/{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def masked(text: str) -> str:
    """`text` without credentials."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return re.sub(r"//[^/@\s]+@", "//***@", text)


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Errors of the store: ConnectionError when it does not answer, ChangedError, else OSError with what it says."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if code in CHANGED:
            raise ChangedError(f"{what} changed meanwhile, or is gone") from None
        kind = ConnectionError if status >= 500 else OSError
        raise kind(masked(f"{what}: {error}")) from None
    except (BotoCoreError, Boto3Error) as error:
        raise ConnectionError(masked(f"{what}: {error}")) from None


def listed(inbox: Inbox, prefix: str, most: int | None = None) -> tuple[list[Item], datetime | None]:
    """Objects below a prefix (at most about `most`), and the server's time. Markers of folders are left out."""
    items: list[Item] = []
    now = None
    with asking(f"s3://{inbox.bucket}/{prefix}"):
        for page in inbox.client.get_paginator("list_objects_v2").paginate(Bucket=inbox.bucket, Prefix=f"{prefix}/"):
            now = _date(page)
            for found in page.get("Contents", []):
                name = found["Key"][len(prefix) + 1 :]
                if name and (found["Size"] or not name.endswith("/")):
                    items.append(Item(found["Key"], name, found["Size"], found["ETag"], found["LastModified"]))
            if most is not None and len(items) > most:
                break
    return items, now


def _date(response: Any) -> datetime:
    """The server's own time: ages do not depend on this machine's clock."""
    return parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])


def _level(inbox: Inbox, prefix: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the objects right below a prefix."""
    folders, objects = [], []
    with asking(f"s3://{inbox.bucket}/{prefix}"):
        pages = inbox.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=inbox.bucket, Prefix=f"{prefix}/", Delimiter="/"):
            folders += [found["Prefix"][len(prefix) + 1 : -1] for found in page.get("CommonPrefixes", [])]
            objects += [found["Key"][len(prefix) + 1 :] for found in page.get("Contents", [])]
    return folders, [name for name in objects if name]


def find(inbox: Inbox) -> tuple[list[Upload], list[str]]:
    """All uploads, sorted, and the names of objects that lie in none."""
    items, _ = listed(inbox, inbox.state)
    done = {item.name.removesuffix("/done.json"): item.modified for item in items if item.name.endswith("/done.json")}
    found: list[Upload] = []
    datasets, strays = _level(inbox, inbox.incoming)
    for dataset in datasets:
        names, objects = _level(inbox, f"{inbox.incoming}/{dataset}")
        strays += [f"{dataset}/{name}" for name in objects]
        found += [Upload(dataset, name, done.get(Upload(dataset, name).home)) for name in names]
    return sorted(found, key=lambda upload: (upload.dataset, upload.name)), strays


def prefix(inbox: Inbox, upload: Upload) -> str:
    return f"{inbox.incoming}/{upload.dataset}/{upload.name}"


def used_again(inbox: Inbox, upload: Upload, done: datetime) -> bool:
    """Whether an upload has a manifest that was written after it was done."""
    try:
        with asking(str(upload)):
            key = f"{prefix(inbox, upload)}/{uploads.MANIFEST}"
            written = inbox.client.head_object(Bucket=inbox.bucket, Key=key)["LastModified"]
    except ChangedError:
        return False
    return bool(written.replace(microsecond=0) > done.replace(microsecond=0))  # some answers have whole seconds


def claim(inbox: Inbox, upload: Upload) -> Claim:
    """Claim an upload. LeftError while another watch is at it, or when that one finished it."""
    mine = Claim(inbox, f"{inbox.state}/{upload.home}/claim.json", "", 0.0)
    try:
        _put_claim(mine, {"IfNoneMatch": "*"})
    except ChangedError:
        with asking(mine.key):
            found = inbox.client.get_object(Bucket=inbox.bucket, Key=mine.key)
            owner = str(json.loads(found["Body"].read()).get("owner"))
        age = (_date(found) - found["LastModified"]).total_seconds()
        if owner != inbox.owner and age < inbox.patience:
            raise LeftError(f"another watch ({owner}) is at it, last seen {age:.0f} s ago") from None
        _put_claim(mine, {"IfMatch": found["ETag"]})
    if _there(inbox, f"{inbox.state}/{upload.home}/done.json"):
        release(mine)
        raise LeftError("another watch has just done it")
    return mine


def hold(mine: Claim, sure: bool = False) -> None:
    """Renew a claim that is a while old, or to be `sure` of it. ChangedError when another watch took it for dead."""
    if sure or time.monotonic() - mine.touched > mine.inbox.patience / 6:
        _put_claim(mine, {"IfMatch": mine.etag})


def release(mine: Claim) -> None:
    """Give a claim up; one that cannot be given up now runs out."""
    with suppress(OSError, ChangedError), asking(mine.key):
        mine.inbox.client.delete_object(Bucket=mine.inbox.bucket, Key=mine.key, IfMatch=mine.etag)


def _put_claim(mine: Claim, condition: dict[str, str]) -> None:
    """Write a claim if the condition holds; one that holds no more because this very request did it twice counts."""
    turn = uuid.uuid4().hex
    body = json.dumps({"owner": mine.inbox.owner, "turn": turn}).encode()
    place = {"Bucket": mine.inbox.bucket, "Key": mine.key}
    try:
        with asking(mine.key):
            mine.etag = mine.inbox.client.put_object(**place, Body=body, **condition)["ETag"]
    except ChangedError:
        with asking(mine.key):
            found = mine.inbox.client.get_object(**place)
            if json.loads(found["Body"].read()).get("turn") != turn:
                raise
        mine.etag = found["ETag"]
    mine.touched = time.monotonic()


def _there(inbox: Inbox, key: str) -> bool:
    try:
        with asking(key):
            inbox.client.head_object(Bucket=inbox.bucket, Key=key)
    except ChangedError:
        return False
    return True


def finish(mine: Claim, upload: Upload, record: dict[str, Any]) -> None:
    """Say for ever that an upload is done, and give up its claim."""
    inbox = mine.inbox
    hold(mine, sure=True)
    with suppress(ChangedError), asking(f"{upload}: done.json"):
        inbox.client.put_object(
            Bucket=inbox.bucket,
            Key=f"{inbox.state}/{upload.home}/done.json",
            Body=json.dumps({"schema": 1, "owner": inbox.owner, **record}, indent=1, sort_keys=True).encode(),
            ContentType="application/json",
            IfNoneMatch="*",
        )
    release(mine)


def fetch(inbox: Inbox, item: Item, target: Path, sha256: str) -> str:
    """Download an object unless it is there already; why it is bad, or an empty text.

    Raises LeftError when it is gone, OSError when the store does not answer (an answer that breaks off is asked
    for again) or the disk is full.
    """
    if target.is_file() and target.stat().st_size == item.size and paths.sha256(target) == sha256:
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with open(target, "wb") as file:
            while size < item.size:
                piece = s3.read(f"s3://{inbox.bucket}/{item.key}", size, min(CHUNK, item.size - size))
                if not piece:
                    break
                digest.update(piece)
                size += file.write(piece)
    except FileNotFoundError:
        raise ChangedError(f"{item.name} is gone") from None
    except OSError as error:
        raise OSError(error.errno, masked(str(error))) if error.errno else OSError(masked(str(error))) from None
    if size != item.size:
        return f"broke off after {size} of {item.size} bytes"
    return (
        "" if digest.hexdigest() == sha256 else f"its SHA-256 is {digest.hexdigest()}, not that of {uploads.MANIFEST}"
    )


def reasons(inbox: Inbox, upload: Upload) -> tuple[str, dict[str, str]]:
    """What an earlier, interrupted look has decided: the reason against the upload, and those against files."""
    bucket, place = inbox.quarantine
    try:
        with asking(f"{upload}: reason.json"):
            found = inbox.client.get_object(Bucket=bucket, Key=f"{place}/{upload.home}/reason.json")["Body"].read()
    except ChangedError:
        return "", {}
    value = json.loads(found)
    return str(value["reason"]), dict(value["files"])


def write_reasons(inbox: Inbox, upload: Upload, reason: str, files: dict[str, str]) -> None:
    """Write `reason.json`, before anything is moved: from then on the decision stands."""
    value = {"schema": 1, "dataset": upload.dataset, "upload": upload.name, "reason": reason, "files": files}
    bucket, place = inbox.quarantine
    with asking(f"{upload}: reason.json"):
        inbox.client.put_object(
            Bucket=bucket,
            Key=f"{place}/{upload.home}/reason.json",
            Body=json.dumps(value, indent=1, sort_keys=True).encode(),
            ContentType="application/json",
        )


def quarantine(inbox: Inbox, upload: Upload, item: Item) -> None:
    """Move one object, on the server: copied, the copy looked at, and only then deleted.

    ChangedError when it is no longer the object that was listed.
    """
    from boto3.s3.transfer import TransferConfig

    bucket, place = inbox.quarantine
    key = f"{place}/{upload.home}/files/{uploads.key(item.name)}"
    with asking(f"{upload}: {uploads.shown(item.name)}"):
        inbox.client.copy(
            {"Bucket": inbox.bucket, "Key": item.key},
            bucket,
            key,
            ExtraArgs={"CopySourceIfMatch": item.etag},
            Config=TransferConfig(multipart_threshold=SINGLE_COPY, multipart_chunksize=2**29, use_threads=False),
        )
        copy = inbox.client.head_object(Bucket=bucket, Key=key)
        whole = "-" not in copy["ETag"] and "-" not in item.etag
        if copy["ContentLength"] != item.size or (whole and copy["ETag"] != item.etag):
            raise OSError(f"{upload}: the copy of {uploads.shown(item.name)} in quarantine is not whole: it stays")
        inbox.client.delete_object(Bucket=inbox.bucket, Key=item.key, IfMatch=item.etag)
