"""One job per OUT: living owners are respected, dead ones are followed at once, lost leases stop their job."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchseg import lease, storage
from batchseg.config import load_config
from batchseg.errors import EXIT_STOPPED, EXIT_USAGE, StoppedError, UserError
from batchseg.lease import Lease, LeaseTimes, Owner, check_token, find_holder, wait_until_free
from batchseg.train import train_model

FAST = LeaseTimes(heartbeat_s=0.05, stale_s=0.6, abandoned_s=600, poll_s=0.02, pause_s=0.02, lock_s=1)
HOLD = """
import sys, time
from batchseg.lease import Lease, LeaseTimes
held = Lease.acquire(sys.argv[1], say=print)
print(held.token, flush=True)
time.sleep(600)
"""


def fail(text: str) -> None:
    raise AssertionError(f"said {text!r}")


@contextmanager
def hold(out: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds OUT, and its token."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def write_foreign(out: Path, **values: str) -> dict[str, object]:
    """A lease of another host."""
    with Lease.acquire(str(out), say=fail, times=FAST):
        owner = json.loads((out / "lease.json").read_text())
    owner |= {"token": "theirs", "host": "elsewhere", "boot_id": "other", **values}
    (out / "lease.json").write_text(json.dumps(owner))
    return owner


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def test_a_free_folder_is_taken_and_given_back(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with Lease.acquire(str(out), say=fail, times=FAST) as held:
        held.check()
        check_token(str(out), held.token)
        written = json.loads((out / "lease.json").read_text())
        assert (written["token"], written["pid"]) == (held.token, os.getpid())
        assert find_holder(str(out)) == Owner(**written)
    assert not (out / "lease.json").exists()
    assert find_holder(str(out)) is None
    assert not any((out / ".tmp").iterdir())


def test_the_heartbeat_beats(tmp_path: Path) -> None:
    with Lease.acquire(str(tmp_path), say=fail, times=FAST):
        first = (tmp_path / "lease.json").read_bytes()
        wait_for(lambda: (tmp_path / "lease.json").read_bytes() != first)


def test_a_second_job_on_this_machine_is_refused_at_once(tmp_path: Path) -> None:
    with hold(tmp_path) as (process, token):
        # With the real intervals: it would watch for 60 s if it did not look at the process.
        with pytest.raises(UserError, match=rf"in use by another job \(host .*, pid {process.pid}, since 20") as caught:
            Lease.acquire(str(tmp_path), say=fail)
        assert caught.value.exit_code == EXIT_USAGE
        assert json.loads((tmp_path / "lease.json").read_text())["token"] == token
        check_token(str(tmp_path), token)


def test_a_second_lease_in_one_process_is_refused(tmp_path: Path) -> None:
    with Lease.acquire(str(tmp_path), say=fail, times=FAST), pytest.raises(UserError, match=f"pid {os.getpid()}"):
        Lease.acquire(str(tmp_path), say=fail, times=FAST)


def test_a_killed_job_is_followed_at_once(tmp_path: Path) -> None:
    with hold(tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        # Dead, but not yet fetched by its parent: its entry in /proc is still there.
        wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert find_holder(str(tmp_path)) is None
        with Lease.acquire(str(tmp_path), say=fail) as held:
            held.check()


def test_a_pid_that_was_given_anew_is_not_the_owner(tmp_path: Path) -> None:
    with Lease.acquire(str(tmp_path), say=fail, times=FAST):
        owner = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps(owner | {"started": "1"}))
    Lease.acquire(str(tmp_path), say=fail).release()


def test_another_pid_namespace_is_another_machine(tmp_path: Path) -> None:
    write_foreign(tmp_path, boot_id=Owner.of_this_process().boot_id, pid_namespace="pid:[1]")
    said: list[str] = []
    Lease.acquire(str(tmp_path), say=said.append, times=FAST).release()
    assert len(said) == 1


def test_another_host_that_lives_is_refused(tmp_path: Path) -> None:
    owner, stop, said = write_foreign(tmp_path), threading.Event(), list[str]()

    def beat() -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            (tmp_path / "new").write_text(json.dumps(owner | {"heartbeat": f"2099-01-01T00:00:00.{number:03d}+00:00"}))
            os.replace(tmp_path / "new", tmp_path / "lease.json")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"in use by another job \(host elsewhere, pid \d+, since"):
            Lease.acquire(str(tmp_path), say=said.append, times=FAST)
    finally:
        stop.set()
        thread.join()
    assert len(said) == 1
    assert "elsewhere" in said[0]
    assert "watching it for 0.6 s at most" in said[0]
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "theirs"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"token": "x"}', b"\xff\xfe"])
def test_what_stands_still_is_watched_then_taken(tmp_path: Path, content: bytes | None) -> None:
    write_foreign(tmp_path)
    if content is not None:
        (tmp_path / "lease.json").write_bytes(content)
    said: list[str] = []
    started = time.monotonic()
    with Lease.acquire(str(tmp_path), say=said.append, times=FAST) as held:
        assert time.monotonic() - started >= FAST.stale_s
        held.check()
    assert len(said) == 1


def test_a_lease_that_is_given_back_meanwhile_is_taken(tmp_path: Path) -> None:
    write_foreign(tmp_path)
    times = LeaseTimes(stale_s=600, poll_s=0.02)

    def end(text: str) -> None:
        threading.Timer(0.1, (tmp_path / "lease.json").unlink).start()

    Lease.acquire(str(tmp_path), say=end, times=times).release()


def test_what_was_watched_to_its_end_is_not_watched_again(tmp_path: Path) -> None:
    write_foreign(tmp_path)
    said: list[str] = []
    ended = wait_until_free(str(tmp_path), say=said.append, times=FAST)
    assert ended == (tmp_path / "lease.json").read_bytes()
    assert len(said) == 1
    Lease.acquire(str(tmp_path), say=fail, ended=ended).release()


def test_a_heartbeat_of_long_ago_is_not_watched(tmp_path: Path) -> None:
    write_foreign(tmp_path, heartbeat="2020-01-01T00:00:00+00:00")
    assert find_holder(str(tmp_path)) is None
    Lease.acquire(str(tmp_path), say=fail).release()


def test_find_holder_believes_a_young_heartbeat_of_another_host(tmp_path: Path) -> None:
    write_foreign(tmp_path)
    holder = find_holder(str(tmp_path))
    assert holder is not None
    assert str(holder).startswith("host elsewhere, pid ")


@pytest.mark.parametrize("theirs", ["other", "gone"])
def test_a_lost_lease_stops_its_job(tmp_path: Path, theirs: str) -> None:
    held = Lease.acquire(str(tmp_path), say=fail, times=LeaseTimes(heartbeat_s=600))
    owner = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").unlink()
    if theirs == "other":
        (tmp_path / "lease.json").write_text(json.dumps(owner | {"token": "theirs"}))
    why = {"other": r"another job has taken OUT .* over", "gone": r"has no lease.json .* or another job took OUT over"}
    with pytest.raises(StoppedError, match=why[theirs]) as caught:
        held.check()
    assert caught.value.exit_code == EXIT_STOPPED
    with pytest.raises(StoppedError, match=why[theirs]):
        check_token(str(tmp_path), held.token)
    held.release()
    # What is not ours is not deleted.
    assert (tmp_path / "lease.json").exists() == (theirs == "other")


def test_the_heartbeat_never_writes_over_another_owner(tmp_path: Path) -> None:
    held = Lease.acquire(str(tmp_path), say=fail, times=FAST)
    owner = json.loads((tmp_path / "lease.json").read_text())
    # As a taker does: under the lock of the folder, or a heartbeat could fall in between.
    with lease._locked(str(tmp_path), 5) as is_locked:
        assert is_locked
        (tmp_path / "lease.json").write_text(json.dumps(owner | {"token": "theirs"}))
    wait_for(lambda: not held._thread.is_alive())
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "theirs"
    (tmp_path / "lease.json").unlink()
    with pytest.raises(StoppedError, match="taken OUT"):
        held.check()


def test_a_disk_that_fails_for_a_while_is_borne_and_for_long_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failures = storage.write_atomic, iter([True, True, False])

    def fail_twice(*arguments: object) -> None:
        if next(failures, False):
            raise OSError(5, "Input/output error")
        write(*arguments)  # type: ignore[arg-type]

    held = Lease.acquire(str(tmp_path), say=fail, times=FAST)
    first = (tmp_path / "lease.json").read_bytes()
    monkeypatch.setattr(storage, "write_atomic", fail_twice)
    wait_for(lambda: (tmp_path / "lease.json").read_bytes() != first)
    held.check()
    failures = iter([True] * 10_000)
    wait_for(lambda: not held._thread.is_alive())
    with pytest.raises(StoppedError, match=r"could not be renewed for 0\.6 s: .*Input/output error"):
        held.check()
    held.release()


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be made"):
        Lease.acquire(str(tmp_path / "file"), say=fail)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        Lease.acquire(str(tmp_path / "locked"), say=fail)


@pytest.mark.parametrize("has_lock", [True, False])
@pytest.mark.parametrize("before", ["nothing", "dead"])
def test_of_many_that_start_at_once_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_lock: bool, before: str
) -> None:
    if not has_lock:  # as on a network disk
        monkeypatch.setattr(lease, "_try_lock", lambda folder, timeout_s: False)
    times = LeaseTimes(pause_s=0.3)
    for number in range(3):
        out = tmp_path / str(number)
        if before == "dead":
            write_foreign(out, heartbeat="2020-01-01T00:00:00+00:00")
        barrier, won, lost = threading.Barrier(6), list[Lease](), list[str]()

        def start(out: Path = out, barrier: threading.Barrier = barrier, won: list = won, lost: list = lost) -> None:
            barrier.wait()
            try:
                won.append(Lease.acquire(str(out), say=fail, times=times))
            except UserError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 5), lost
        won[0].check()
        won[0].release()


def test_training_takes_the_lease_of_its_out(tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Lease.acquire(str(out), say=fail), pytest.raises(UserError, match=r"OUT .* is in use by another job \(host"):
        train_model(load_config(None, {**tiny_overrides, "out": str(out)}))
    assert not (out / "config.yaml").exists()
    assert not (out / "checkpoints").exists()
