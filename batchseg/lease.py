"""One job per output folder at a time: OUT/lease.json says who writes there and that it still lives.

On the owner's machine its process is looked at, so a killed job is followed at once. From another machine the heartbeat
is watched: one that stands still for a minute has ended. Whoever loses the lease finds another token in the file.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from batchseg import storage
from batchseg.errors import StoppedError, UserError
from batchseg.ledger import LEASE_FILE, staging_of


@dataclass(frozen=True)
class LeaseTimes:
    """heartbeat_s: between two renewals. stale_s: a heartbeat that stands still so long, by our own clock, has ended.

    abandoned_s: one that is so old by the calendar clock is not even watched; no clocks differ so much.
    pause_s: between writing and reading back, where no lock is to be had.
    lock_s: the lock of a folder is tried for so long.
    """

    heartbeat_s: float = 5.0
    stale_s: float = 60.0
    abandoned_s: float = 86_400.0
    poll_s: float = 1.0
    pause_s: float = 1.0
    lock_s: float = 5.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lease. started: of the process, in clock ticks after boot; a pid alone may have been given anew."""

    token: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: str
    since: str
    heartbeat: str

    @classmethod
    def of_this_process(cls) -> "Owner":
        """With a new token."""
        boot_id, namespace = "", ""
        with suppress(OSError):  # not Linux: the heartbeat alone decides
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        pid, now = os.getpid(), _format_now()
        return cls(uuid.uuid4().hex, socket.gethostname(), boot_id, namespace, pid, _read_start(pid), now, now)

    @classmethod
    def from_json(cls, data: bytes | None) -> "Owner | None":
        """None for what is no lease."""
        try:
            owner = cls(**json.loads(data or b""))
            datetime.fromisoformat(owner.heartbeat)
            return owner if isinstance(owner.pid, int) else None
        except (ValueError, TypeError):
            return None

    def to_json(self) -> bytes:
        """With a heartbeat of now."""
        return json.dumps(asdict(replace(self, heartbeat=_format_now())), indent=1).encode()

    def is_on(self, other: "Owner") -> bool:
        """True if both see the same processes: same boot of the same machine, same pid namespace."""
        place = (self.boot_id, self.pid_namespace)
        return all(place) and place == (other.boot_id, other.pid_namespace)

    def lives(self) -> bool:
        """On its own machine: its process is there."""
        return bool(self.started) and _read_start(self.pid) == self.started

    def age_s(self) -> float:
        """Of the heartbeat, by the calendar clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.heartbeat)).total_seconds()

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


class Lease:
    """The right to write into OUT, renewed by a thread until `release` or the end of the context."""

    def __init__(self, out: str, times: LeaseTimes):
        self._out, self._times, self._owner = out, times, Owner.of_this_process()
        self._lost = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="batchseg-lease", daemon=True)

    @classmethod
    def acquire(
        cls, out: str, *, say: Callable[[str], None], times: LeaseTimes | None = None, ended: bytes | None = None
    ) -> "Lease":
        """Takes OUT. say: told once when the end of another job has to be waited for. ended: what wait_until_free gave.

        Raises UserError when a living job holds it, or OUT cannot be written.
        """
        lease = cls(out, times or LeaseTimes())
        try:
            storage.make_folder(out)
            while not lease._take(wait_until_free(out, say=say, times=lease._times, ended=ended)):
                pass  # another start was faster; the next look finds it alive
        except PermissionError as error:
            raise UserError(f"OUT {out} cannot be written: {error}") from error
        lease._thread.start()
        return lease

    @property
    def token(self) -> str:
        return self._owner.token

    def check(self) -> None:
        """Raises StoppedError when OUT is not ours any more."""
        if self._lost:
            raise StoppedError(self._lost)
        check_token(self._out, self.token)

    def release(self) -> None:
        """Ends the renewal and deletes the lease if it is still ours."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._times.stale_s)
        with suppress(OSError), _locked(self._out, self._times.lock_s):  # one that stays is seen to be dead
            if _is_held_with(self._out, self.token):
                storage.delete_file(_place(self._out))

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self, found: bytes | None) -> bool:
        """Puts our name in the place of `found`. False when another was faster."""
        with _locked(self._out, self._times.lock_s) as is_locked:
            if _read(self._out) != found:
                return False
            if found is not None or storage.is_remote(self._out):
                self._write()
            elif not self._create():
                return False
        if not is_locked:
            time.sleep(self._times.pause_s)
        return _is_held_with(self._out, self.token)

    def _create(self) -> bool:
        """Writes the file only where there is none: a hard link never replaces. False when there is one."""
        staged = Path(str(staging_of(self._out)), f".{self.token}.tmp")
        try:
            staged.parent.mkdir(exist_ok=True)
            staged.write_bytes(self._owner.to_json())
            os.link(staged, _place(self._out))
        except (FileExistsError, FileNotFoundError):  # the second: the faster one has swept .tmp
            return False
        except OSError:  # a disk without hard links; or one that is full, which the next line will say
            self._write()
        finally:
            staged.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        storage.write_atomic(_place(self._out), self._owner.to_json(), staging_of(self._out))

    def _keep_alive(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(self._times.heartbeat_s):
            try:
                with _locked(self._out, self._times.lock_s):
                    if not _is_held_with(self._out, self.token):
                        self._lost = _describe_loss(self._out)
                        return
                    self._write()
                renewed = time.monotonic()
            except OSError as error:
                if time.monotonic() - renewed > self._times.stale_s:
                    self._lost = (
                        f"OUT {self._out}: the lease could not be renewed for {self._times.stale_s:g} s: {error}"
                    )
                    return


def check_token(out: str, token: str) -> None:
    """Raises StoppedError when OUT is not held with this token. For tasks in other processes, before they commit."""
    if _is_held_with(out, token):
        return
    if _read(out) is None and not storage.is_remote(out):
        raise StoppedError(
            f"OUT {out} has no {LEASE_FILE} as {socket.gethostname()} sees it: that node does not see the folder "
            f"of the driver, which must be on shared storage or s3://, or another job took OUT over and has ended."
        )
    raise StoppedError(_describe_loss(out))


def wait_until_free(
    out: str, *, say: Callable[[str], None], times: LeaseTimes | None = None, ended: bytes | None = None
) -> bytes | None:
    """What lies in the lease and may be replaced, None for nothing. It only reads.

    A job of this machine is known to live or not. One of another machine is watched until its heartbeat moves, or has
    stood still for `stale_s`. ended: such a lease that was watched before. Raises UserError when its owner lives.
    """
    times, found = times or LeaseTimes(), _read(out)
    if found is None or found == ended:
        return found
    owner = Owner.from_json(found)
    if owner and owner.is_on(Owner.of_this_process()):
        if owner.lives():
            raise _describe_busy(out, owner)
        return found
    if owner and owner.age_s() > times.abandoned_s:
        return found
    who = owner or "its lease.json is damaged"
    say(f"OUT {out} may be in use ({who}); watching it for {times.stale_s:g} s at most")
    deadline = time.monotonic() + times.stale_s
    while time.monotonic() < deadline:
        time.sleep(times.poll_s)
        now = _read(out)
        if now is None:
            return None
        if now != found:
            raise _describe_busy(out, Owner.from_json(now) or owner)
    return found


def find_holder(out: str, times: LeaseTimes | None = None) -> Owner | None:
    """Who holds OUT as far as one look can tell; None when nobody does, or the owner has ended."""
    owner = Owner.from_json(_read(out))
    if owner is None:
        return None
    is_alive = (
        owner.lives() if owner.is_on(Owner.of_this_process()) else owner.age_s() < (times or LeaseTimes()).stale_s
    )
    return owner if is_alive else None


def _place(out: str) -> str:
    return storage.join(out, LEASE_FILE)


def _read(out: str) -> bytes | None:
    try:
        return storage.read_bytes(_place(out))
    except (FileNotFoundError, NotADirectoryError):  # the second: OUT cannot be, which is said when it is made
        return None


def _is_held_with(out: str, token: str) -> bool:
    owner = Owner.from_json(_read(out))
    return owner is not None and owner.token == token


@contextmanager
def _locked(out: str, timeout_s: float) -> Iterator[bool]:
    """Holds the kernel's lock on a local folder; yields False where there is none (S3, some network disks)."""
    if storage.is_remote(out):
        yield False
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        yield _try_lock(folder, timeout_s)
    finally:
        os.close(folder)  # and with it the lock


def _try_lock(folder: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:  # its holder is stopped: its write is old news by now
                return False
            time.sleep(0.05)
        except OSError:
            return False


def _read_start(pid: int) -> str:
    """Field 22 of /proc/PID/stat; empty when the process is gone, or dead and not yet fetched by its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _describe_busy(out: str, owner: Owner | None) -> UserError:
    return UserError(
        f"OUT {out} is in use by another job ({owner or 'its lease.json is damaged, but it changes'}). "
        f"Wait until it has ended, stop it, or give another --out."
    )


def _describe_loss(out: str) -> str:
    return f"another job has taken OUT {out} over; this one has stopped writing. What is finished stays."


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
