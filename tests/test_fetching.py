"""The bytes of an image arrive whole or not at all, and what can pass is tried again."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_proxy import S3Proxy

from batchseg import storage
from batchseg.errors import ImageError
from batchseg.fetching import fetch_image

_KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def fail_with(action: Callable[[], bytes]) -> ImageError:
    with pytest.raises(ImageError) as caught:
        action()
    return caught.value


def test_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "new\nline #%.png"
    path.write_bytes(b"12345")
    for listed in (5, 4, None):
        assert fetch_image(str(path), None, listed) == b"12345"
    waits: list[float] = []
    assert fetch_image(str(path), None, 9, sleep=waits.append) == b"12345", "the file was changed since the listing"
    assert waits == []


def test_what_cannot_be_fetched(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    waits: list[float] = []
    for name, kind, text in [
        ("none.png", "missing", "does not exist"),
        ("pipe.png", "read", "no regular file"),
        ("", "read", "no regular"),
    ]:
        error = fail_with(lambda name=name: fetch_image(str(tmp_path / name), None, 5, sleep=waits.append))
        assert (error.kind, text in str(error)) == (kind, True), str(error)
    assert waits == []


def test_a_full_disk_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def read(location: str) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "read_once", read)
    with pytest.raises(OSError, match="No space left"):
        fetch_image(str(tmp_path / "a.png"), None, 1)


def write_rows(path: Path | str, images: list[bytes | None], rows_per_group: int) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table(
        {"image": pa.array([{"bytes": data, "path": None} for data in images], _KIND), "id": range(len(images))}
    )
    pq.write_table(table, sink, row_group_size=rows_per_group)
    storage.write_atomic(str(path), sink.getvalue().to_pybytes())


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [f"image {i}".encode() for i in range(10)]
    write_rows(path, [*images[:9], None], 3)
    assert [fetch_image(str(path), row, None) for row in range(9)] == images[:9]
    assert fetch_image(str(path), 0, None) == images[0]
    for row, text in [(9, "row 9 holds no bytes"), (10, "has 10 rows now"), (-1, "has 10 rows now")]:
        error = fail_with(lambda row=row: fetch_image(str(path), row, None))
        assert (error.kind, text in str(error)) == ("decode", True)
    write_rows(path, [b"other"], 3)
    assert fetch_image(str(path), 0, None) == b"other", "a file that was replaced is read anew"
    pq.write_table(pa.table({"image": [b"plain"]}), path)
    assert fetch_image(str(path), 0, None) == b"plain"


def test_parquet_that_is_damaged_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert fail_with(lambda: fetch_image(str(path), 0, None)).kind == "missing"
    path.write_bytes(b"PAR1 this is none PAR1")
    assert fail_with(lambda: fetch_image(str(path), 0, None)).kind == "decode"
    pq.write_table(pa.table({"other": [b"x"]}), path)
    assert fail_with(lambda: fetch_image(str(path), 0, None)).kind == "decode"


def test_consecutive_rows_read_their_group_once(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    images = [bytes([i]) * 50_000 for i in range(8)]
    write_rows(f"{s3_bucket}/a.parquet", list(images), 4)
    s3_proxy.requests.clear()
    assert [fetch_image(f"{s3_bucket}/a.parquet", row, None) for row in range(4)] == images[:4]
    first = [method for method, _ in s3_proxy.requests].count("GET")
    assert first <= 6
    assert fetch_image(f"{s3_bucket}/a.parquet", 2, None) == images[2]
    assert [method for method, _ in s3_proxy.requests].count("GET") == first


def test_threads_share_the_reading_of_a_group(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    images = [bytes([i]) * 50_000 for i in range(32)]
    write_rows(f"{s3_bucket}/a.parquet", list(images), 8)
    s3_proxy.requests.clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: fetch_image(f"{s3_bucket}/a.parquet", row, None), range(32))) == images
    # The ends and four groups, each with its own look at the file's end; 66 when every thread reads for itself.
    assert [method for method, _ in s3_proxy.requests].count("GET") <= 15


def test_threads_that_share_an_error_all_try_again(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    images = [bytes([i]) * 1000 for i in range(8)]
    write_rows(f"{s3_bucket}/a.parquet", list(images), 8)
    left = 4  # more than one call of the SDK tries

    def spoil(method: str, path: str) -> str | None:
        nonlocal left
        left -= method == "GET"
        return "slow_down" if method == "GET" and left >= 0 else None

    s3_proxy.fault = spoil
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: fetch_image(f"{s3_bucket}/a.parquet", row, None), range(8))) == images
    assert left < 0, "the faults were met"


@pytest.mark.parametrize("spoiled", range(3))
def test_s3_cut_answers_are_no_parquet_rows(spoiled: int, s3_bucket: str, s3_proxy: S3Proxy) -> None:
    """One answer after the other is cut; pyarrow by itself takes what its memory held for the missing end."""
    images, waits, count = [os.urandom(50_000) for _ in range(8)], [], -1
    write_rows(f"{s3_bucket}/a.parquet", list(images), 8)

    def spoil(method: str, path: str) -> str | None:
        nonlocal count
        count += method == "GET"
        return "cut" if method == "GET" and count == spoiled else None

    s3_proxy.fault = spoil
    assert fetch_image(f"{s3_bucket}/a.parquet", 7, None, sleep=waits.append) == images[7]
    assert waits == [], "a part is looked at twice before that counts as an attempt"
    assert count == 3, "three answers, and the spoiled one again"
    s3_proxy.fault = lambda method, path: "cut" if method == "GET" else None
    write_rows(f"{s3_bucket}/b.parquet", list(images), 8)
    error = fail_with(lambda: fetch_image(f"{s3_bucket}/b.parquet", 7, None, sleep=waits.append))
    assert (error.kind, "bytes arrived" in str(error)) == ("read", True)


@pytest.mark.parametrize("fault", ["slow_down", "reset", "half_body"])
def test_s3_faults_that_pass(fault: str, s3_bucket: str, s3_proxy: S3Proxy) -> None:
    data = os.urandom(200_000)
    storage.write_atomic(f"{s3_bucket}/a.png", data)
    left = 4  # more than one call of the SDK tries
    waits: list[float] = []

    def spoil(method: str, path: str) -> str | None:
        nonlocal left
        left -= method == "GET"
        return fault if method == "GET" and left >= 0 else None

    s3_proxy.fault = spoil
    assert fetch_image(f"{s3_bucket}/a.png", None, len(data), sleep=waits.append) == data
    assert waits, "the faults were more than the SDK mends by itself"


def test_s3_half_a_body_is_never_an_image(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    storage.write_atomic(f"{s3_bucket}/a.png", b"x" * 1000)
    s3_proxy.fault = lambda method, path: "half_body" if method == "GET" else None
    error = fail_with(lambda: fetch_image(f"{s3_bucket}/a.png", None, 1000, attempts=1))
    assert error.kind == "read"


def test_s3_shorter_than_listed(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    location, waits = f"{s3_bucket}/a.png", []
    storage.write_atomic(location, b"x" * 700)
    assert fetch_image(location, None, 1000, sleep=waits.append) == b"x" * 700, "it has that size now: it was changed"
    assert len(waits) == 4, "and was fetched again before that was believed"


def test_s3_cut_answers_that_say_so_nowhere(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    """A gateway that cuts bodies and gives the cut length as theirs."""
    location, waits = f"{s3_bucket}/a.png", []
    storage.write_atomic(location, b"x" * 1000)
    for end in (b"", b"\xa5", b"\x5a", b"\x00"):
        storage.write_atomic(f"{location}.whole", end)
        assert fetch_image(f"{location}.whole", None, len(end)) == end
    s3_proxy.fault = lambda method, path: "cut" if method == "GET" else None
    error = fail_with(lambda: fetch_image(location, None, 1000, sleep=waits.append))
    assert error.kind == "read"
    assert "fewer than 1000 bytes arrived" in str(error)
    assert len(waits) == 4
    s3_proxy.fault = lambda method, path: None
    assert fetch_image(location, None, 1000) == b"x" * 1000


def test_s3_missing_and_denied(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    storage.write_atomic(f"{s3_bucket}/a.png", b"x")
    assert fail_with(lambda: fetch_image(f"{s3_bucket}/none.png", None, 1, sleep=waits.append)).kind == "missing"
    assert fail_with(lambda: fetch_image(f"{s3_bucket}/a//b.png", None, 1, sleep=waits.append)).kind == "read"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = fail_with(lambda: fetch_image(f"{s3_bucket}/a.png", None, 1, sleep=waits.append))
    assert error.kind == "denied"
    assert "wrong" not in str(error)
    assert waits == []
