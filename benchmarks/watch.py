"""What the processes of a command hold: sampled from /proc while it runs. Used by the other benchmarks."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


def list_tree(ancestor: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [ancestor]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def read_kib(path: Path, key: str) -> int:
    """One number of /proc/PID/status or smaps_rollup; 0 when the process has ended."""
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match.group(1)) if match else 0


def read_kind(pid: int) -> str:
    """What a process is: driver, the name of a stage, the name of an actor, or of a part of Ray; '' when it ended."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    return title.removeprefix("ray::").removesuffix(".submit") if title.startswith("ray::") else name


@dataclass
class Memory:
    """Peaks in bytes. rss_anon: by (pid, kind of the process when it was largest). pss_sum: of all at one moment."""

    rss_anon: dict[int, int] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    pss_sum: int = 0
    pss_at_peak: dict[str, int] = field(default_factory=dict)


@contextmanager
def watch_memory(ancestor: int, *, every_s: float = 0.2, with_pss: bool = False) -> Iterator[Memory]:
    """Samples the tree under a process until the context ends."""
    memory, ended = Memory(), threading.Event()

    def look() -> None:
        pss: dict[str, int] = {}
        for pid in list_tree(ancestor):
            folder = Path(f"/proc/{pid}")
            held = 1024 * read_kib(folder / "status", "RssAnon")
            if held > memory.rss_anon.get(pid, 0):
                memory.rss_anon[pid], memory.kinds[pid] = held, read_kind(pid)
            if with_pss:
                kind = read_kind(pid)
                pss[kind] = pss.get(kind, 0) + 1024 * read_kib(folder / "smaps_rollup", "Pss")
        if sum(pss.values()) > memory.pss_sum:
            memory.pss_sum, memory.pss_at_peak = sum(pss.values()), pss

    def watch() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def run_watched(command: list[str], log: Path, *, with_pss: bool = False) -> tuple[int, float, Memory]:
    """Runs a command to its end. Returns its exit code, seconds and what it held."""
    began = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        with watch_memory(process.pid, with_pss=with_pss) as memory:
            code = process.wait()
    return code, time.monotonic() - began, memory
