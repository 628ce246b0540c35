"""Files here and on a real S3 server: atomic writes, listings in order, faults that pass, paths that stay inside."""

import errno
import os
import random
import resource
import stat
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path

import pytest
import s3_server
from s3_proxy import S3Proxy

from batchseg import retries, storage
from batchseg.errors import UserError


def list_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_write_atomic_makes_folders_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "a" / "b" / "c.txt"), "grüße")
    storage.write_atomic(str(tmp_path / "d.bin"), b"\x00\x01")
    assert list_names(tmp_path) == ["a/b/c.txt", "d.bin"]
    assert storage.read_text(str(tmp_path / "a/b/c.txt")) == "grüße"
    assert storage.read_bytes(str(tmp_path / "d.bin")) == b"\x00\x01"


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    storage.write_atomic(str(target), b"a long first version")
    inode = target.stat().st_ino
    storage.write_atomic(str(target), b"second")
    assert target.read_bytes() == b"second"
    # Another inode: a reader that had the old file open still has all of it.
    assert target.stat().st_ino != inode
    assert list_names(tmp_path) == ["x.bin"]


def test_write_atomic_through_a_staging_folder(tmp_path: Path) -> None:
    staging = tmp_path / "out" / ".tmp"
    storage.write_atomic(str(tmp_path / "out" / "deep" / "x.bin"), b"x", str(staging))
    assert list_names(tmp_path) == ["out/deep/x.bin"]
    assert staging.is_dir()


def test_write_atomic_cleans_up_when_the_target_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        storage.write_atomic(str(tmp_path / "taken"), b"x")
    assert list_names(tmp_path) == []


def test_write_atomic_cleans_up_when_the_disk_takes_no_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            storage.write_atomic(str(tmp_path / "x.bin"), b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("part", ["..", "../x", "a/../../x", "/etc/passwd", "a/.."])
def test_join_does_not_leave_the_folder(part: str) -> None:
    with pytest.raises(UserError, match=r"path '.*' would leave /data"):
        storage.join("/data", part)


def test_join_appends() -> None:
    assert storage.join("/data", "a", "b/c.png") == "/data/a/b/c.png"
    assert storage.join("s3://bucket/key", "a..b", "..c") == "s3://bucket/key/a..b/..c"


def test_list_files_order_and_hidden_names(tmp_path: Path) -> None:
    for name in ["b.png", "a/z.png", "a/b/1.png", "a.png", "B.png", ".hidden.png", ".git/x.png", "a/.DS_Store"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    entries = list(storage.list_files(str(tmp_path)))
    paths = [entry.path for entry in entries]
    assert paths == sorted(paths)
    assert set(paths) == {"b.png", "a/z.png", "a/b/1.png", "a.png", "B.png"}
    for entry in entries:
        assert entry.location == str(tmp_path / entry.path)
        assert entry.size_bytes == len(entry.path)
        assert entry.modified.tzinfo == UTC
        assert abs(entry.modified.timestamp() - os.stat(entry.location).st_mtime) < 1e-3
    assert [entry.path for entry in storage.list_files(str(tmp_path), recursive=False)] == ["B.png", "a.png", "b.png"]


def test_list_files_with_hidden_ones(tmp_path: Path) -> None:
    names = [".hidden.png", "a/.tmp/x", "a/b.png", ".git/deep/x.png"]
    for name in names:
        storage.write_atomic(storage.join(str(tmp_path), name), name)
    entries = list(storage.list_files(str(tmp_path), hidden=True))
    assert [entry.path for entry in entries] == sorted(names)
    assert [storage.read_text(entry.location) for entry in entries] == sorted(names)
    top = storage.list_files(str(tmp_path), recursive=False, hidden=True)
    assert [entry.path for entry in top] == [".hidden.png"]
    assert [entry.path for entry in storage.list_files(str(tmp_path))] == ["a/b.png"]


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff\xfe/a.png"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(b"x")
    (tmp_path / "good.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a file name under it is not UTF-8 \(b'.*\\x.*'\); rename it") as caught:
        list(storage.list_files(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


def test_a_hidden_parent_of_the_listed_folder_does_not_hide_it(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "set"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    assert [entry.path for entry in storage.list_files(str(folder))] == ["a.png"]
    assert [entry.path for entry in storage.list_files(f"{folder}/")] == ["a.png"]


def test_unicode_and_odd_names(tmp_path: Path) -> None:
    names = ["Übersicht.png", "日本/空.png", "with space.png", "100% #1?.png", "emoji 🐈.png"]
    for name in names:
        storage.write_atomic(storage.join(str(tmp_path), name), name)
    assert {entry.path for entry in storage.list_files(str(tmp_path))} == set(names)
    for entry in storage.list_files(str(tmp_path)):
        assert storage.read_text(entry.location) == entry.path


def test_list_files_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(storage.list_files(str(tmp_path / "none")))


def test_file_type_and_exists(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert storage.file_type(str(tmp_path)) == "folder"
    assert storage.file_type(str(tmp_path / "f")) == "file"
    assert storage.file_type(str(tmp_path / "none")) == "missing"
    assert storage.exists(str(tmp_path / "f"))
    assert not storage.exists(str(tmp_path / "none"))


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))
    with pytest.raises(OSError, match="directory"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize("location", ["gs://bucket/x", "http://host/x.png", "file:///tmp/x"])
def test_unknown_scheme(location: str) -> None:
    for function in (storage.file_type, storage.read_bytes, storage.to_absolute):
        with pytest.raises(UserError, match=r"unknown scheme \w+://; allowed are a local path and s3://"):
            function(location)


def test_to_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.to_absolute("a/b/") == str(tmp_path / "a" / "b")
    assert storage.to_absolute("~/x") == str(tmp_path / "home" / "x")
    assert storage.to_absolute(tmp_path) == str(tmp_path)


def test_name_and_folder() -> None:
    assert storage.name_of("/a/b/") == "b"
    assert storage.name_of("s3://bucket/set") == "set"
    assert storage.folder_of("/a/b/c.yaml") == "/a/b"
    assert storage.is_remote("s3://bucket")
    assert not storage.is_remote("a/b")


def test_delete(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "d" / "x"), b"x")
    storage.delete_file(str(tmp_path / "d"))  # a folder is no file: nothing happens
    assert storage.exists(str(tmp_path / "d" / "x"))
    storage.delete_file(str(tmp_path / "d" / "x"))
    storage.delete_file(str(tmp_path / "d" / "x"))
    assert list_names(tmp_path) == []
    storage.delete_folder(str(tmp_path / "d"))
    storage.delete_folder(str(tmp_path / "d"))
    assert not storage.exists(str(tmp_path / "d"))
    storage.make_folder(str(tmp_path / "e" / "f"))
    assert storage.file_type(str(tmp_path / "e" / "f")) == "folder"


@pytest.mark.parametrize("name", ["a" * 300, "b/" * 3000])
def test_deleting_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    storage.delete_file(f"{tmp_path}/{name}")


def test_a_written_file_has_the_usual_rights(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    storage.write_atomic(str(tmp_path / "atomic"), b"")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def count_by_method(proxy: S3Proxy) -> dict[str, int]:
    return dict(Counter(method for method, _ in proxy.requests))


def test_s3_files_come_and_go(s3_bucket: str) -> None:
    names = ["a.bin", "deep/Übersicht #1 100%.png", "deep/er/new\nline.png", "deep/.hidden"]
    for name in names:
        storage.write_atomic(storage.join(s3_bucket, name), name)
    assert {entry.path for entry in storage.list_files(s3_bucket)} == set(names[:3])
    assert {entry.path for entry in storage.list_files(f"{s3_bucket}/deep", hidden=True)} == {
        name.removeprefix("deep/") for name in names[1:]
    }
    for entry in storage.list_files(s3_bucket):
        assert storage.read_text(entry.location) == entry.path
        stamp = storage.stat_file(entry.location)
        assert stamp is not None
        assert stamp.size_bytes == entry.size_bytes == len(entry.path.encode())
        assert abs(stamp.modified_us / 1e6 - entry.modified.timestamp()) < 2
    assert storage.file_type(f"{s3_bucket}/deep") == "folder"
    assert storage.file_type(f"{s3_bucket}/a.bin") == "file"
    assert not storage.exists(f"{s3_bucket}/none")
    storage.delete_file(f"{s3_bucket}/a.bin")
    storage.delete_file(f"{s3_bucket}/a.bin")
    storage.delete_folder(f"{s3_bucket}/deep")
    storage.delete_folder(f"{s3_bucket}/deep")
    assert list(storage.list_files(s3_bucket, hidden=True)) == []


def test_s3_needs_few_requests(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    location = f"{s3_bucket}/x.bin"
    storage.write_atomic(location, b"x" * 3_000_000)
    assert count_by_method(s3_proxy) == {"PUT": 1}
    s3_proxy.requests.clear()
    assert len(storage.read_bytes(location)) == 3_000_000
    assert count_by_method(s3_proxy) == {"HEAD": 1, "GET": 1}


@pytest.mark.parametrize("fault", ["slow_down", "reset", "half_body", "after_reset"])
def test_s3_faults_that_pass(fault: str, s3_bucket: str, s3_proxy: S3Proxy) -> None:
    left = {"PUT": 1, "GET": 1, "HEAD": 1}

    def spoil_the_first(method: str, path: str) -> str | None:
        left[method] = left.get(method, 1) - 1
        return fault if left[method] >= 0 else None

    s3_proxy.fault = spoil_the_first
    storage.write_atomic(f"{s3_bucket}/x.bin", bytes(range(256)) * 400)
    assert storage.read_bytes(f"{s3_bucket}/x.bin") == bytes(range(256)) * 400
    assert [entry.size_bytes for entry in storage.list_files(s3_bucket)] == [102_400]


def test_many_files_over_a_bad_line(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    """A tenth of all answers is spoiled; no write and no read is lost or wrong."""
    chance, lock, spoiled = random.Random(0), threading.Lock(), Counter[str]()

    def spoil(method: str, path: str) -> str | None:
        with lock:
            fault = chance.choice(["slow_down", "reset", "half_body", "after_reset"]) if chance.random() < 0.1 else None
            spoiled[fault or "none"] += 1
            return fault

    def write_and_read(number: int) -> bool:
        data = random.Random(number).randbytes(100 + 50 * number)
        storage.write_atomic(f"{s3_bucket}/{number % 7}/{number}.bin", data)
        return storage.read_bytes(f"{s3_bucket}/{number % 7}/{number}.bin") == data

    s3_proxy.fault = spoil
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write_and_read, range(200))) == [True] * 200
    assert len(spoiled) == 5, spoiled
    assert spoiled.total() - spoiled["none"] > 30, spoiled
    assert [entry.size_bytes for entry in storage.list_files(s3_bucket)] == [
        100 + 50 * number for number in sorted(range(200), key=lambda number: f"{number % 7}/{number}.bin")
    ]


def test_an_open_file_reads_any_part(s3_bucket: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10  # holds every byte that may end a part
    for location in (f"{s3_bucket}/x.bin", str(tmp_path / "x.bin")):
        storage.write_atomic(location, data)
        with storage.open_file(location) as file:
            assert (file.seek(0, 2), file.tell()) == (2560, 2560)
            for start, size in [(0, 1), (100, 300), (2500, 100), (2560, 5), (0, 0)]:
                file.seek(start)
                assert file.read(size) == data[start : start + size]
                assert file.tell() == min(2560, start + size)
            for end in (0x5B, 0xA6):
                file.seek(0)
                assert file.read(end) == data[:end]
            file.seek(-10, 2)
            assert file.read() == data[-10:]
        assert file.closed


def test_a_cut_answer_is_noticed_in_an_open_file(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    storage.write_atomic(f"{s3_bucket}/x.bin", b"x" * 1000)
    s3_proxy.fault = lambda method, path: "cut" if method == "GET" else None
    with storage.open_file(f"{s3_bucket}/x.bin") as file:
        file.seek(100)
        with pytest.raises(OSError, match="fewer than 50 bytes arrived"):
            file.read(50)


def test_an_upload_that_fails_leaves_no_short_object(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    """25 MB go in three parts; the second never arrives."""
    s3_proxy.fault = lambda method, path: "reset" if "partNumber=2" in path else None
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        storage.retry_io(lambda: storage._put(f"{s3_bucket}/x.bin", b"x" * 25_000_000), attempts=1)
    assert any("partNumber=1" in path for _, path in s3_proxy.requests)
    assert not storage.exists(f"{s3_bucket}/x.bin")


def test_s3_errors_that_stay_are_not_tried_again(
    s3_bucket: str, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{s3_bucket}/none")
    with pytest.raises(FileNotFoundError, match="NO_SUCH_BUCKET"):
        list(storage.list_files("s3://no-such-bucket-here/x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    s3_proxy.requests.clear()
    for act in (lambda: storage.write_atomic(f"{s3_bucket}/x", b"x"), lambda: storage.read_bytes(f"{s3_bucket}/x")):
        with pytest.raises(PermissionError) as caught:
            act()
        assert "not-the-secret" not in str(caught.value)
        assert s3_server.ACCESS_KEY not in str(caught.value)
    assert len(s3_proxy.requests) == 2


def test_waits_double_up_to_a_limit() -> None:
    waits: list[float] = []

    def fail() -> None:
        raise OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.")

    with pytest.raises(OSError, match="SLOW_DOWN"):
        retries.retry_io(fail, attempts=8, sleep=waits.append)
    assert len(waits) == 7
    for wait, longest in zip(waits, [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], strict=True):
        assert longest / 2 <= wait <= longest


def test_a_full_disk_is_not_tried_again() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        retries.retry_io(fail, sleep=lambda seconds: None)
    assert len(calls) == 1


def test_a_key_named_like_an_error_changes_nothing() -> None:
    def fail() -> None:
        raise OSError(
            "When reading key 'AWS Error ACCESS_DENIED during x': AWS Error SLOW_DOWN during GetObject operation"
        )

    with pytest.raises(OSError, match="SLOW_DOWN") as caught:
        retries.retry_io(fail, attempts=1)
    assert not isinstance(caught.value, PermissionError)


def test_a_durable_write_is_like_any_other(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "a" / "x.bin"), b"x", str(tmp_path / ".tmp"), durable=True)
    assert list_names(tmp_path) == ["a/x.bin"]
