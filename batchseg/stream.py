"""The stream of segment and evaluate on Ray Data, and how its rows become parts of OUT.

todo -> fetch+decode+fit (CPU tasks) -> model (actors) -> restore+render+write (CPU tasks) -> commits of about 30 s
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy

from batchseg import board as boards
from batchseg import cluster, ledger, sizing
from batchseg.columns import replace_columns
from batchseg.errors import StoppedError
from batchseg.lease import check_token
from batchseg.quality import InferenceOptions
from batchseg.results import JobFacts
from batchseg.stages import DEATHS_TO_BLAME, FitStage, PredictStage

_IN_FLIGHT_PER_ACTOR = 4
_BLAMED_TO_STOP = 5
"""So many images that killed the model, or the writing, are no accident of theirs: the machine is too small."""

COMMIT_ROWS = 1024
COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 30.0
_COMMITS_AT_ONCE = 4
_CLOCK_SECONDS = 1.0
_ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ModelSpec:
    """What an actor loads."""

    bundle: str
    batch_size: int
    inference: InferenceOptions = field(default_factory=InferenceOptions)


def build_stream(
    todo: pa.Table, fit: FitStage, model: ModelSpec, plan: sizing.StreamPlan, board: Any
) -> ray.data.Dataset:
    """Table with `uri` -> dataset with `ids`. Stages that scale apart; `evaluate` takes the same ones."""
    cluster.configure_data()
    # Small blocks: the actors get work at once, and nothing spills. A block is two batches.
    # from_blocks: from_arrow waits for a task, so for a process, and where nodes have yet to come for one with a CPU
    # before any GPU is asked for.
    blocks = ray.data.from_blocks([todo]).repartition(target_num_rows_per_block=2 * model.batch_size)
    # Ray Data reserves a whole CPU for this, and has no public way to say less (2.60): on nodes of one CPU it would
    # find none beside the actors, and the stream stall without a word.
    blocks._logical_plan.dag.ray_remote_args["num_cpus"] = plan.stage_cpus / 2
    fitted = blocks.map_batches(Fit(fit, board), batch_size=None, batch_format="pyarrow", num_cpus=plan.stage_cpus)
    # map_batches refuses GPUs without a batch size, by which it would gather blocks, however large their pictures are.
    return fitted.map_batches_internal(
        Predict,
        fn_constructor_kwargs={"board": board, "model": model, "threads": plan.threads},
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=plan.actors,
            max_size=None if plan.may_grow else plan.actors,
            max_tasks_in_flight_per_actor=_IN_FLIGHT_PER_ACTOR,
        ),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus or None,
    )


def add_last_stage(images: ray.data.Dataset, stage: "Write | Score", plan: sizing.StreamPlan) -> ray.data.Dataset:
    """The stream with its end."""
    return images.map_batches(stage, batch_size=None, batch_format="pyarrow", num_cpus=plan.stage_cpus)


@contextmanager
def release_actors(board: Any) -> Iterator[None]:
    """Around what drives a stream: one that ends early gives its actors' CPUs and GPUs back at once.

    Ray Data ends its actors when its executor is collected (2.60), but an error, and whoever logs or keeps one, keeps
    the frames that hold it. The next job of this process would wait for those CPUs, perhaps for ever. Not on Ctrl-C,
    which ends the process: Ray Data still drives the actors then, and would report their death.
    """
    try:
        yield
    except Exception:
        with suppress(ray.exceptions.RayError):
            for actor in ray.get(board.list_actors.remote(), timeout=_ASK_TIMEOUT_S):
                ray.kill(actor)
        raise


class Guarded:
    """A stage whose UserError or StoppedError the driver gets to see, and in which an image costs itself only.

    When its process has died over some images, they are done again one by one; one that has then killed the process
    three times, each time alone in it, is a `crash`. So whatever dies, every image comes to an end.
    """

    def __init__(self, stage: Callable[[pa.Table], Any], board: Any):
        self._stage, self._board = stage, board

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        with boards.report_errors(self._board), self._count_attempt(table) as attempt:
            if attempt == 1:
                yield from self._do(table)
            else:
                for row in range(len(table)):
                    yield from self._do_alone(table.slice(row, 1))

    def _do(self, table: pa.Table, *, again: bool = False) -> Iterator[pa.Table]:
        yield self._stage(table)

    def _do_alone(self, image: pa.Table) -> Iterator[pa.Table]:
        with self._count_attempt(image, "alone") as attempt:
            yield from self._do(self._blame(image) if attempt > DEATHS_TO_BLAME else image, again=True)

    def _blame(self, image: pa.Table) -> pa.Table:
        """The image as one that has failed, which stages only pass on. Raises StoppedError if there are many."""
        stage, name = type(self._stage).__name__, image["image_id"][0].as_py()
        if ray.get(self._board.begin.remote(f"{stage} blames")) > _BLAMED_TO_STOP:
            raise StoppedError(
                f"{stage}: more than {_BLAMED_TO_STOP} images have each killed its process {DEATHS_TO_BLAME} times, "
                f"the last is {name}. Is the memory too small? A smaller --batch-size needs less."
            )
        message = f"{stage}: its process died {DEATHS_TO_BLAME} times over this image alone"
        return replace_columns(image, error_kind=pa.array(["crash"]), error=pa.array([message]))

    @contextmanager
    def _count_attempt(self, table: pa.Table, how: str = "together") -> Iterator[int]:
        """Yields how often these images have been begun here: more than once after the death of a process."""
        started, stage = time.monotonic(), type(self._stage).__name__
        names = "\0".join(table["image_id"].to_pylist())
        key = f"{stage}-{how}-{hashlib.sha256(names.encode()).hexdigest()[:24]}"
        attempt = 1
        with suppress(ray.exceptions.RayError):  # a board that is away for a moment blames nobody
            attempt = ray.get(self._board.begin.remote(key))
        yield attempt
        with suppress(ray.exceptions.RayError):  # waited for: whoever sees the block finds it counted on the board
            ray.get(self._board.end.remote(key, stage, time.monotonic() - started))


# Ray shows a stage by the name of its class: MapBatches(Fit) -> MapBatches(Predict) -> MapBatches(Write).


class Write(Guarded):
    """WriteStage, the end of segment."""


class Score(Guarded):
    """ScoreStage, the end of evaluate."""


class Fit(Guarded):
    """FitStage, which decodes in a child process once its own process has died over the same images."""

    def _do(self, table: pa.Table, *, again: bool = False) -> Iterator[pa.Table]:
        yield from self._stage(table, isolates=again)  # type: ignore[call-arg]


class Predict(Guarded):
    """PredictStage in an actor of its own; a bundle that this machine cannot run ends the job with its message."""

    def __init__(self, board: Any, model: ModelSpec, threads: int):
        with boards.report_errors(board):
            ray.get(board.enlist.remote(ray.get_runtime_context().current_actor))
            super().__init__(PredictStage(model.bundle, model.batch_size, threads, model.inference), board)


class Committer:
    """Turns finished blocks into parts of OUT: about 30 s of work each, so that a death costs no more.

    Blocks stay where they are; only their references pass through the driver. A thread looks at the clock: what is
    done does not wait for the next block, which may be a very large image.
    """

    def __init__(self, job: JobFacts, board: Any):
        self._job, self._board = job, board
        self._blocks: list[Any] = []
        self._rows, self._bytes, self._began = 0, 0, 0.0
        self._running: list[Any] = []
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> "Committer":
        threading.Thread(target=self._watch_clock, name="batchseg-commits", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def add(self, bundle: Any) -> None:
        """Takes a bundle of the stream's output. Raises what a commit has raised."""
        with self._lock:
            if not self._blocks:
                self._began = time.monotonic()
            self._blocks += [entry.ref for entry in bundle.blocks]
            self._rows += bundle.num_rows() or 0
            self._bytes += bundle.size_bytes()
            if self._rows >= COMMIT_ROWS or self._bytes >= COMMIT_BYTES or self._is_due():
                self._commit()
            self._wait(_COMMITS_AT_ONCE)

    def finish(self) -> None:
        """Commits what is left and waits for all commits."""
        with self._lock:
            self._commit()
            self._wait(0)

    def _watch_clock(self) -> None:
        while not self._ended.wait(_CLOCK_SECONDS):
            with self._lock:
                if self._is_due():
                    self._commit()

    def _is_due(self) -> bool:
        return bool(self._blocks) and time.monotonic() - self._began >= COMMIT_SECONDS

    def _commit(self) -> None:
        if self._blocks:
            # No CPU of its own: the stages may hold all of them, and this waits for the disk.
            task = ray.remote(num_cpus=0, max_retries=5)(commit_blocks)
            self._running.append(task.remote(self._job, self._board, *self._blocks))
        self._blocks, self._rows, self._bytes = [], 0, 0

    def _wait(self, allowed: int) -> None:
        while len(self._running) > allowed:
            ray.get(self._running.pop(0))


def commit_blocks(job: JobFacts, board: Any, *blocks: pa.Table) -> int:
    """In a task: rows -> at most two parts, one of good and one of failed rows. Run twice, it writes the same names."""
    with boards.report_errors(board):
        rows = pa.concat_tables(blocks)
        has_failed = pc.is_valid(rows["error_kind"])
        check_token(job.out, job.lease)
        for status, part in (("ok", rows.filter(pc.invert(has_failed))), ("error", rows.filter(has_failed))):
            if len(part):
                ledger.commit_part(job.out, part, status, job.run)
    return len(rows)
