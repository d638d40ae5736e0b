"""Where datasets come from: directories, zip and tar archives, `s3://`. Archives are taken as hostile."""

from __future__ import annotations

import errno
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from unforge import s3
from unforge.datasets import layout

ZIP, TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
NESTED = (*ZIP, *TAR, ".7z", ".rar", ".gz", ".bz2", ".xz")
CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Above these an archive is taken for a bomb."""

    total: int = 2 * 2**40
    """Bytes unpacked altogether."""
    member: int = 4 * 2**30
    """Bytes of one file."""
    members: int = 5_000_000
    ratio: int = 200
    """Unpacked to packed size, of a file and altogether, looked at from `ratio_floor` bytes on (an all-black
    mask packs 1000 to 1)."""
    ratio_floor: int = 64 * 2**20


def is_archive(name: str) -> bool:
    """Whether a file is called like an archive that can be unpacked here."""
    return name.lower().endswith((*ZIP, *TAR))


@contextmanager
def opened(
    source: str | Path, scratch: Path | None = None, limits: Limits = Limits()
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """(directory with the files, rejected rows) of a directory, a zip, a tar or an `s3://bucket/prefix`.

    A directory is used where it lies; the others go to a temporary directory below `scratch` (default: the
    system's) that is removed at the end. ValueError when the source is not there or of another kind.
    """
    text = str(source)
    if not text.startswith("s3://") and Path(text).is_dir():
        yield Path(text), []
        return
    with TemporaryDirectory(prefix=".unforge-", dir=scratch) as folder:
        target = Path(folder) / "files"
        target.mkdir()
        if text.startswith("s3://"):
            rows = fetch(text, target, limits)
        elif not Path(text).is_file():
            raise ValueError(
                f"{text} is not there: give a directory, a .zip or .tar(.gz) archive, or s3://bucket/prefix"
            )
        else:
            rows = unpack(Path(text), target, limits)
        yield target, rows


def unpack(archive: Path, target: Path, limits: Limits = Limits()) -> list[dict[str, Any]]:
    """Unpack regular files with harmless names into the directory `target`; a row for each that is refused.

    Refused: names that lead out of `target`, absolute names, links, devices, encrypted and damaged members,
    repeated names, archives within the archive, and whatever is beyond `limits`. ValueError when `archive`
    is neither zip nor tar, OSError when the disk is full.
    """
    if zipfile.is_zipfile(archive):
        return _Unpacking(target, limits, archive.stat().st_size).zip(archive)
    if tarfile.is_tarfile(archive):
        return _Unpacking(target, limits, archive.stat().st_size).tar(archive)
    raise ValueError(f"{archive.name} is neither a zip nor a tar archive")


def safe_name(name: str) -> PurePosixPath:
    """`name` as a relative path below the target. ValueError with the reason when it is not one."""
    if not name or any(ord(character) < 32 for character in name):
        raise ValueError("name with control characters" if name else "empty name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        raise ValueError("absolute path")
    if ".." in path.parts:
        raise ValueError("path traversal (..)")
    if not path.parts:
        raise ValueError("empty name")
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in path.parts) or len(path.parts) > 64:
        raise ValueError("name too long")
    return path


class _Unpacking:
    """State of one run over an archive: what was written, what was refused."""

    def __init__(self, target: Path, limits: Limits, packed: int | None = None) -> None:
        """`packed`: bytes of the archive, None when nothing is packed."""
        self.target, self.limits = target, limits
        self.allowed = limits.total
        if packed is not None:
            self.allowed = min(limits.total, max(limits.ratio_floor, limits.ratio * packed))
        self.total = 0
        self.count = 0
        self.rows: list[dict[str, Any]] = []

    def refuse(self, name: str, reason: str) -> None:
        self.rows.append(rejected(name, reason))

    def zip(self, archive: Path) -> list[dict[str, Any]]:
        try:
            with zipfile.ZipFile(archive) as file:
                for member in file.infolist():
                    if member.is_dir():
                        continue
                    reason = self._zip_reason(member)
                    if reason:
                        self.refuse(member.filename, reason)
                    else:
                        self.write(member.filename, member.file_size, member.compress_size, lambda: file.open(member))  # noqa: B023
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            self.refuse(archive.name, f"damaged archive ({error}): what follows is not read")
        return self.rows

    @staticmethod
    def _zip_reason(member: zipfile.ZipInfo) -> str:
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            return "link" if stat.S_ISLNK(mode) else "not a regular file"
        return "encrypted" if member.flag_bits & 1 else ""

    def tar(self, archive: Path) -> list[dict[str, Any]]:
        try:
            with tarfile.open(archive, "r:*") as file:
                passed = 0
                for member in file:
                    passed += member.size  # whatever is skipped has to be decompressed all the same
                    if passed > self.allowed:
                        self.refuse(archive.name, f"{self._beyond}; nothing from {member.name} on is read")
                        break
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        link = member.issym() or member.islnk()
                        self.refuse(member.name, "link" if link else "not a regular file")
                    else:
                        self.write(member.name, member.size, None, lambda: file.extractfile(member))  # noqa: B023
                    file.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
            self.refuse(archive.name, f"damaged archive ({error}): what follows is not read")
        return self.rows

    def write(self, name: str, size: int, packed: int | None, source: Any) -> None:
        """Write one member, counting what really comes out of it."""
        self.count += 1
        try:
            path = self.target / safe_name(name)
            if name.lower().endswith(NESTED):
                raise ValueError("archive within the archive: unpack it and add its directory")
            self._check(size, packed)
            if path.exists():
                raise ValueError("name occurs twice: the first is kept")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._copy(path, size, source)
        except (ValueError, RuntimeError, OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.refuse(name, _text(error))

    def _check(self, size: int, packed: int | None) -> None:
        limits = self.limits
        if self.count > limits.members:
            raise ValueError(f"more than {limits.members} members: taken for a bomb")
        if size > limits.member:
            raise ValueError(f"{size} bytes: more than {limits.member} are taken for a bomb")
        if packed is not None and size > limits.ratio_floor and size > limits.ratio * max(packed, 1):
            raise ValueError(f"unpacks {packed} bytes to {size}: taken for a bomb")
        if self.total + size > self.allowed:
            raise ValueError(self._beyond)

    @property
    def _beyond(self) -> str:
        return f"more than {self.allowed} bytes altogether: taken for a bomb"

    def _copy(self, path: Path, size: int, source: Any) -> None:
        """Copy a member to `path`; a partial file is removed."""
        written = 0
        try:
            with source() as stream, open(path, "xb") as file:
                while chunk := stream.read(CHUNK):
                    written += len(chunk)
                    if written > size:
                        raise ValueError(f"more bytes than its header says ({size})")
                    file.write(chunk)
            if written < size:
                raise ValueError(f"truncated: {written} of {size} bytes")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            self.total += written


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be written ({error.strerror or error})"
    return str(error) if isinstance(error, ValueError) else f"damaged ({error})"


def rejected(name: str, reason: str) -> dict[str, Any]:
    """Row of `shards.ROWS` for a file that did not get as far as a dataset."""
    row = dict.fromkeys(("source_image", "source_mask", "key", "kind", "label", "status", "reason"), "")
    return {**row, "source_image": layout.printable(name), "status": "rejected", "reason": reason}


def fetch(url: str, target: Path, limits: Limits = Limits()) -> list[dict[str, Any]]:
    """Download `s3://bucket/prefix` (all objects below it, or one archive, unpacked) into `target`.

    Credentials and endpoint come from the environment (AWS_ENDPOINT_URL for other stores than Amazon's).
    ValueError when boto3 is missing, the address is incomplete or nothing is there.
    """
    bucket, prefix = s3.split(url)
    client = s3.connect()
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return _fetch(client, bucket, prefix, target, limits)
    except (BotoCoreError, ClientError) as error:
        raise ValueError(f"{url}: {error}") from None


def _fetch(client: Any, bucket: str, prefix: str, target: Path, limits: Limits) -> list[dict[str, Any]]:
    if is_archive(prefix):
        archive = target.parent / PurePosixPath(prefix).name
        with open(archive, "wb") as file:
            _download(client, bucket, prefix, file)
        return unpack(archive, target, limits)
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    unpacking = _Unpacking(target, limits)
    for item in _objects(client, bucket, folder):
        name = item["Key"][len(folder) :]
        if name and not name.endswith("/"):
            body = client.get_object
            unpacking.write(name, item["Size"], None, lambda: body(Bucket=bucket, Key=item["Key"])["Body"])  # noqa: B023
    if unpacking.count == 0:
        raise ValueError(f"nothing at s3://{bucket}/{prefix}")
    return unpacking.rows


def _objects(client: Any, bucket: str, prefix: str) -> Iterable[dict[str, Any]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _download(client: Any, bucket: str, name: str, file: IO[bytes]) -> None:
    with client.get_object(Bucket=bucket, Key=name)["Body"] as body:
        shutil.copyfileobj(body, file, CHUNK)
