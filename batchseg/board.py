"""What processes on a cluster tell the driver: how far they are, and what the user has to mend."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchseg.errors import StoppedError, UserError, describe_no_space

_ASK_TIMEOUT_S = 10.0


class JobMetrics:
    """What Ray exports to Prometheus from here, each name with `ray_` before it; for a dashboard in Grafana."""

    def __init__(self) -> None:
        self._counters = {
            "ok": Counter("batchseg_images_ok", "images segmented or scored"),
            "failed": Counter("batchseg_images_failed", "images that ended with an error row"),
            "bytes": Counter("batchseg_bytes", "bytes of the images that have ended"),
            "busy/PredictStage": Counter("batchseg_model_seconds", "seconds that model actors were at work"),
        }
        self._queue = Gauge("batchseg_queue", "pieces of work that stages have begun and not ended")

    def count(self, counts: dict[str, float]) -> None:
        """Adds those of the counts that are exported."""
        for name in counts.keys() & self._counters.keys():
            if counts[name] > 0:
                self._counters[name].inc(counts[name])

    def set_queue(self, length: int) -> None:
        self._queue.set(length)


class ProgressBoard:
    """Where workers say how far they are, for the one console that shows it; an actor."""

    def __init__(self) -> None:
        self._metrics = JobMetrics()
        self._state: dict[str, Any] = {}
        self._begun: dict[str, int] = {}
        self._actors: list[Any] = []
        self._starts = 0

    def put(self, **values: Any) -> None:
        """Sets values."""
        self._state.update(values)

    def add(self, **counts: float) -> None:
        """Adds to counters."""
        for name, count in counts.items():
            self._state[name] = self._state.get(name, 0) + count
        self._metrics.count(counts)

    def begin(self, work: str) -> int:
        """How often this piece of work has been begun now: once, or more often when a process died over it."""
        self._begun[work] = self._begun.get(work, 0) + 1
        self._metrics.set_queue(len(self._begun))
        return self._begun[work]

    def end(self, work: str, stage: str, seconds: float) -> None:
        """A piece of work came to its end, in so many seconds of a stage."""
        self._begun.pop(work, None)
        self._metrics.set_queue(len(self._begun))
        self.add(**{f"busy/{stage}": seconds})

    def enlist(self, actor: Any) -> None:
        """The handle of an actor that must not outlive the work, and has begun."""
        self._actors.append(actor)
        self.add(begun=1)

    def start_group(self, size: int) -> int:
        """So many training workers have begun together. Returns how often workers have, from 1 on."""
        self._starts += 1
        self._state["begun"] = size
        return self._starts

    def list_actors(self) -> list[Any]:
        return self._actors

    def read(self) -> dict[str, Any]:
        return self._state


def start_board() -> Any:
    """A ProgressBoard as an actor beside the driver, which lives as long as its handle."""
    beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ProgressBoard)
    return board.options(scheduling_strategy=beside_driver).remote()


class Throttle:
    """True at most once in `seconds`."""

    def __init__(self, seconds: float):
        self._seconds, self._next = seconds, 0.0

    def is_due(self) -> bool:
        """True if `seconds` have passed since it last was; the first time always."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


@contextmanager
def report_errors(board: Any) -> Iterator[None]:
    """In a worker: puts what the user has to mend on the board, and raises it.

    Ray wraps what a worker raises, and of most wrappers only the text reaches the driver.
    """
    try:
        yield
    except (UserError, StoppedError, OSError) as error:
        found = describe_no_space(error) or error
        if not isinstance(found, OSError):
            ray.get(board.put.remote(fatal=str(found), stopped=isinstance(found, StoppedError)))
        raise


def raise_reported(board: Any) -> None:
    """In the driver: raises what a worker has put on the board."""
    try:
        state = ray.get(board.read.remote(), timeout=_ASK_TIMEOUT_S)
    except ray.exceptions.RayError:
        return  # without a board the error itself is what there is to tell
    if "fatal" in state:
        raise StoppedError(state["fatal"]) if state["stopped"] else UserError(state["fatal"])


@contextmanager
def unwrap_errors(board: Any) -> Iterator[None]:
    """In the driver: raises the UserError or StoppedError behind a failure of Ray, if there is one."""
    try:
        yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError, RuntimeError) as error:
        raise_reported(board)
        inner = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
        for cause in (error, *inner):
            if found := find_cause(cause):
                raise found from None
        raise


def find_cause(error: BaseException | None) -> UserError | StoppedError | None:
    """The UserError or StoppedError in a chain of causes; a full disk is a StoppedError."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Ray's RayTaskError is of the type of its cause as well, but its text is a traceback: the cause goes first.
        inner = getattr(error, "cause", None) or error.__cause__ or error.__context__
        if isinstance(error, (UserError, StoppedError)) and not isinstance(error, ray.exceptions.RayError):
            return error
        if not isinstance(error, ray.exceptions.RayError) and (full := describe_no_space(error)):
            return full
        error = inner
    return None
