"""Real servers on loopback for the tests: SeaweedFS as S3, Prefect, a proxy that can fail."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_SERVER_UI_ENABLED": "true",
}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, for SeaweedFS also not 10000 above.

    Below the range from which the system takes ports for connections, and those of each pytest process are its own:
    between the look and the start of a server nobody else takes one.
    """
    begin = 12000 + 2500 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(begin, begin + 2500)
        if port not in ports and not _listening(port) and not _listening(port + 10000):
            ports.append(port)
    return ports


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    """Until `url` answers anything. AssertionError with the log when the server ends or is not ready in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server that was started in its own process group."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


@dataclass
class S3:
    """A SeaweedFS server with one bucket, `team`, its data on disk: it can be killed and started again."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(6))
    key: str = "devkey"
    secret: str = "devsecret"
    bucket: str = "team"
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which boto3, dvc, s3fs and unforge reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        s3, master, volume, filer, webdav, admin = self.ports
        command = [
            str(BIN / "weed"), "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-webdav.port={webdav}", f"-admin.port={admin}", f"-bucket={self.bucket}", "-admin.ui=false",
        ]  # fmt: skip
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=file, stderr=file, start_new_session=True
            )
        wait_for(self.endpoint, self.process, log)
        self._until_writable()

    def _until_writable(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client().put_object(Bucket=self.bucket, Key=".ready", Body=b"")
                self.client().delete_object(Bucket=self.bucket, Key=".ready")
                return
            except Exception:
                assert time.monotonic() < deadline, self.folder.with_suffix(".log").read_text(errors="replace")[-3000:]
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, as when its machine fails."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=self.key, aws_secret_access_key=self.secret,
            region_name="us-east-1", config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )  # fmt: skip

    def keys(self, prefix: str = "") -> list[str]:
        """Keys below a prefix, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def clear(self) -> None:
        for key in self.keys():
            self.client().delete_object(Bucket=self.bucket, Key=key)


@dataclass
class PrefectServer:
    """A Prefect server with its database in `folder`: it can be killed and started again."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which flows, workers and the `prefect` command reach it."""
        return {**QUIET, "PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.folder)}

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.log"
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
                env={**os.environ, **self.environment}, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        wait_for(f"{self.api}/health", self.process, log)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(server: S3 | PrefectServer) -> Iterator[Any]:
    """A server, started now and stopped at the end."""
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            stop(server.process)
