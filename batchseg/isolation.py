"""A function in a process of its own, for input that may kill the process that reads it.

A codec that meets a poisoned file can take its process down (a segmentation fault, memory without end). What runs here
takes down a child, and the caller learns which input did it.
"""

import faulthandler
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2

from batchseg.errors import ImageError

# fork, not spawn: the child needs a codec and nothing else, starts in milliseconds, and takes any callable.
_CONTEXT: Any = multiprocessing.get_context("fork")


class ChildDiedError(Exception):
    """The child died over this input. The message says of what."""


class IsolatedFunction:
    """Calls `function` in a forked child, which is started when first needed and again after a death.

    function: its ImageError and MemoryError come back as they are. memory_bytes: what the child may allocate beyond
    what this process holds. timeout_s: a call that takes longer is killed and counts as a death.
    """

    def __init__(self, function: Callable[..., Any], *, memory_bytes: int, timeout_s: int):
        self._function, self._memory_bytes, self._timeout_s = function, memory_bytes, timeout_s
        self._child: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "IsolatedFunction":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, *arguments: Any) -> Any:
        """Raises ChildDiedError when the child dies; the next call gets a new one."""
        pipe = self._pipe or self._start()
        try:
            pipe.send(arguments)
            succeeded, outcome = pipe.recv()
        except (EOFError, OSError):
            raise ChildDiedError(self._bury()) from None
        if not succeeded:
            raise outcome
        return outcome

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._bury()

    def _start(self) -> Connection:
        # The threads of OpenCV's pool do not survive a fork: a child that asked for them, or ended them, would wait for
        # ever. So this process goes without them from here on.
        cv2.setNumThreads(1)
        mine, its = _CONTEXT.Pipe()
        self._child = _CONTEXT.Process(
            target=_serve, args=(its, mine, self._function, self._memory_bytes, self._timeout_s), daemon=True
        )
        self._child.start()
        its.close()
        self._pipe = mine
        return mine

    def _bury(self) -> str:
        """Reaps the dead child and says what it died of."""
        self._child.join()
        code, child, pipe = self._child.exitcode, self._child, self._pipe
        self._child = self._pipe = None
        child.close()
        if pipe is not None:
            pipe.close()
        if code == -signal.SIGALRM:
            return f"took longer than {self._timeout_s} s"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _serve(pipe: Connection, parents_end: Connection, function: Callable[..., Any], memory: int, timeout: int) -> None:
    """The child: one answer for each question, until the pipe is closed or an input kills it."""
    parents_end.close()  # else the end of the parent would never be seen
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # the parent tells of the death, in one line
    _limit_memory(memory)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            sys.exit(0)
        signal.alarm(timeout)
        try:
            answer = (True, function(*arguments))
        except (ImageError, MemoryError) as error:
            answer = (False, error)
        signal.alarm(0)
        pipe.send(answer)


def _limit_memory(extra_bytes: int) -> None:
    """At most so much more than now, and the first to go when the machine runs out."""
    held = 1024 * next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + extra_bytes, held + extra_bytes))
    with suppress(OSError):  # a hardened container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
