"""Runs the look over chunks of samples on all cores, in bounded memory, and outlives a file that kills its decoder."""

import faulthandler
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import cv2

from batchseg.isolation import ChildDiedError, IsolatedFunction


class Cuttable(Protocol):
    """A sequence, as far as it is needed here."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


Chunk = TypeVar("Chunk", bound=Cuttable)
Result = TypeVar("Result")

_CHUNKS_AHEAD = 3
_REMOTE_THREADS = 32
_CHILD_BYTES = 8 * 2**30
_CHILD_TIMEOUT_S = 300


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ChunkPool(Generic[Chunk, Result]):
    """Calls look(chunk) for many chunks at once; results come in any order.

    Local files are decoded in forked processes: a file that kills its decoder takes a worker down and not the command,
    and on many cores no interpreter lock is shared (on two, threads are no slower). What comes from S3 waits for the
    network and is read in threads, for its client does not survive a fork.

    look: picklable, as are its chunks and results. blame(chunk of one, reason): the result for a sample that killed
    the process that looked at it.
    """

    def __init__(
        self, look: Callable[[Chunk], Result], blame: Callable[[Chunk, str], Result], workers: int, *, is_remote: bool
    ):
        self._look, self._blame, self._workers, self._is_remote = look, blame, workers, is_remote
        self._executor: Executor | None = None

    def __enter__(self) -> "ChunkPool[Chunk, Result]":
        self._executor = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, chunks: Iterator[Chunk]) -> Iterator[Result]:
        """Holds a few chunks and results at a time, however many there are."""
        waiting: dict[Future[Result], Chunk] = {}
        limit = self._workers * _CHUNKS_AHEAD
        for chunk in chunks:
            self._submit(chunk, waiting)
            while len(waiting) >= limit:
                yield from self._collect(waiting)
        while waiting:
            yield from self._collect(waiting)

    def _submit(self, chunk: Chunk, waiting: dict[Future[Result], Chunk]) -> None:
        assert self._executor is not None
        with suppress(BrokenProcessPool):
            waiting[self._executor.submit(self._look, chunk)] = chunk
            return
        failed: Future[Result] = Future()
        failed.set_exception(BrokenProcessPool())
        waiting[failed] = chunk  # done again with the others that were under way

    def _collect(self, waiting: dict[Future[Result], Chunk]) -> Iterator[Result]:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        broken: list[Chunk] = []
        for future in done:
            chunk = waiting.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                broken.append(chunk)
                continue
            yield result
        if broken:
            yield from self._repeat([*broken, *waiting.values()])
            waiting.clear()

    def _repeat(self, chunks: list[Chunk]) -> Iterator[Result]:
        """What was under way when a process died, each chunk in a child of its own; then a new pool."""
        assert self._executor is not None
        self._executor.shutdown(cancel_futures=True)
        with IsolatedFunction(self._look, memory_bytes=_CHILD_BYTES, timeout_s=_CHILD_TIMEOUT_S) as child:
            for chunk in chunks:
                try:
                    yield child(chunk)
                except ChildDiedError:
                    yield from self._look_singly(child, chunk)
        self._executor = self._start()

    def _look_singly(self, child: IsolatedFunction, chunk: Chunk) -> Iterator[Result]:
        for index in range(len(chunk)):
            single = chunk[index : index + 1]
            try:
                yield child(single)
            except ChildDiedError as death:
                yield self._blame(single, str(death))

    def _start(self) -> Executor:
        if self._is_remote:
            return ThreadPoolExecutor(_REMOTE_THREADS)
        cv2.setNumThreads(1)  # as in isolation.py: OpenCV's own threads do not survive a fork
        executor = ProcessPoolExecutor(
            self._workers, mp_context=multiprocessing.get_context("fork"), initializer=_stay_quiet
        )
        # Forks all of them now, before a live line has a thread whose locks a child would inherit.
        executor.submit(os.getpid).result()
        return executor


def _stay_quiet() -> None:
    """Ctrl-C reaches every process of the terminal, and the parent alone says so; it also tells of a death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()
