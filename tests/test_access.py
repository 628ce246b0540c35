"""A place that lets nobody in is said in one line with exit code 2: which, why, where to look."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3_proxy import S3Proxy

from batchseg import storage
from batchseg.access import describe_refusal
from batchseg.cli import run_cli
from batchseg.errors import StoppedError, UserError


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do anything; somebody else may not, not even import what lies in root's home."""
    import batchseg.segment
    import batchseg.verify  # noqa: F401

    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def check_refused(capfd: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    err = capfd.readouterr().err
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    return tmp_path / "photos"


WRONG = {
    "key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "AWS Error"),
    "secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS Error"),
    "endpoint": ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
}


SLOW = [pytest.param(command, marks=pytest.mark.slow) for command in ("plan", "verify", "model")]


@pytest.mark.parametrize(
    "wrong", [pytest.param(name, marks=[pytest.mark.slow] if name == "endpoint" else []) for name in WRONG]
)
@pytest.mark.parametrize("command", ["segment", *SLOW])
def test_s3_that_lets_nobody_in(
    wrong: str,
    command: str,
    s3_bucket: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings, word = WRONG[wrong]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    place = f"{s3_bucket}/place"
    lines = {
        "segment": ["segment", str(photos), "--model", "none", "--out", place],
        "plan": ["plan", str(photos), "--model", "none", "--out", place],
        "verify": ["verify", place],
        "model": ["segment", str(photos), "--model", place, "--out", str(tmp_path / "out")],
    }
    check_refused(capfd, run_cli(lines[command]), place, word)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", [["segment", "photos", "--model", "none", "--out"], ["verify"]])
def test_a_bucket_that_is_not_there(
    line: list[str], s3_bucket: str, photos: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    place = f"{s3_bucket}-none/out"
    check_refused(capfd, run_cli([*line, place]), place, "there is no bucket")


@pytest.mark.slow
def test_a_server_that_goes_away_later_stops_the_run(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    storage.write_atomic(f"{s3_bucket}/x", b"1")
    s3_proxy.fault = lambda method, path: "reset"
    with pytest.raises(OSError, match="AWS Error") as caught:
        storage.read_bytes(f"{s3_bucket}/x")
    told = describe_refusal(caught.value)
    assert isinstance(told, StoppedError)
    assert f"{s3_bucket}/x cannot be used" in str(told)


@pytest.mark.parametrize("command", ["segment", "verify"])
def test_a_folder_that_is_not_ours(
    command: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    (closed / "out").mkdir(parents=True)
    (closed / "out" / "run.json").write_text("{}")
    for folder in (tmp_path.parents[1], tmp_path.parent, tmp_path):
        folder.chmod(0o755)
    closed.chmod(0)
    line = [command, str(closed / "out")]
    if command == "segment":
        line = ["segment", str(photos), "--model", "none", "--out", str(closed / "out")]
    try:
        with as_nobody():
            code = run_cli(line)
    finally:
        closed.chmod(0o755)
    check_refused(capfd, code, f"{closed / 'out'}", "Permission denied")


def test_what_else_goes_wrong_is_no_refusal() -> None:
    assert describe_refusal(ValueError("x")) is None
    assert describe_refusal(FileNotFoundError(errno.ENOENT, "AWS Error NO_SUCH_KEY", "s3://b/k")) is None
    assert describe_refusal(OSError(errno.EIO, "bad disk", "/x")) is None
    outer = RuntimeError("of something else")
    outer.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/x")
    assert isinstance(describe_refusal(outer), UserError)
    assert str(describe_refusal(outer)) == "/x may not be used: Permission denied"
