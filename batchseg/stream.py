"""The stream of segment and evaluate on Ray Data, and how its rows become parts of OUT.

todo -> fetch+decode+fit (CPU tasks) -> model (actors) -> restore+render+write (CPU tasks) -> commits of about 30 s
"""

import hashlib
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

from batchseg import cluster, ledger
from batchseg.errors import StoppedError
from batchseg.lease import check_token
from batchseg.quality import InferenceOptions
from batchseg.results import JobFacts
from batchseg.stages import FitStage, PredictStage

_IN_FLIGHT_PER_ACTOR = 4
_DEATHS_TO_STOP = 6
"""Of a model actor or a writer over the same images: an accident does not repeat itself so often."""

COMMIT_ROWS = 1024
COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 30.0
_COMMITS_AT_ONCE = 4


@dataclass(frozen=True)
class ModelSpec:
    """What an actor loads."""

    bundle: str
    batch_size: int
    inference: InferenceOptions = field(default_factory=InferenceOptions)


def build_stream(
    todo: pa.Table, fit: FitStage, model: ModelSpec, plan: cluster.StreamPlan, board: Any
) -> ray.data.Dataset:
    """Table with `uri` -> dataset with `ids`. Stages that scale apart; `evaluate` takes the same ones."""
    cluster.configure_data()
    return (
        ray.data.from_arrow(todo)
        # Small blocks: the actors get work at once, and nothing spills. A block is two batches.
        .repartition(target_num_rows_per_block=2 * model.batch_size)
        .map_batches(GuardedFit(fit, board), batch_size=None, batch_format="pyarrow", num_cpus=plan.stage_cpus)
        .map_batches(
            ModelActor,
            fn_constructor_kwargs={"board": board, "model": model, "threads": plan.threads},
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=plan.actors, max_size=plan.actors, max_tasks_in_flight_per_actor=_IN_FLIGHT_PER_ACTOR
            ),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
        )
    )


def add_last_stage(
    images: ray.data.Dataset, stage: Callable[[pa.Table], pa.Table], plan: cluster.StreamPlan, board: Any
) -> ray.data.Dataset:
    """The stream with WriteStage or ScoreStage at its end."""
    return images.map_batches(Guarded(stage, board), batch_size=None, batch_format="pyarrow", num_cpus=plan.stage_cpus)


class Guarded:
    """A stage whose UserError or StoppedError the driver gets to see, and which is not tried for ever."""

    def __init__(self, stage: Callable[[pa.Table], Any], board: Any):
        self._stage, self._board = stage, board

    def __call__(self, table: pa.Table) -> pa.Table:
        with cluster.report_errors(self._board), self._count_attempt(table) as attempt:
            if attempt > _DEATHS_TO_STOP:
                names = ", ".join(table["image_id"].to_pylist()[:3])
                raise StoppedError(
                    f"{type(self._stage).__name__}: its process died {attempt - 1} times over the same {len(table)} "
                    f"images ({names}, …). Is the memory too small? A smaller --batch-size needs less."
                )
            return self._stage(table)

    @contextmanager
    def _count_attempt(self, table: pa.Table) -> Iterator[int]:
        """Yields how often these images have been begun here: more than once after the death of a process."""
        started, stage = time.monotonic(), type(self._stage).__name__
        names = "\0".join(table["image_id"].to_pylist())
        key = f"{stage}-{hashlib.sha256(names.encode()).hexdigest()[:24]}"
        attempt = 1
        with suppress(ray.exceptions.RayError):  # a board that is away for a moment blames nobody
            attempt = ray.get(self._board.begin.remote(key))
        yield attempt
        with suppress(ray.exceptions.RayError):  # waited for: whoever sees the block finds it counted on the board
            ray.get(self._board.end.remote(key, stage, time.monotonic() - started))


class GuardedFit(Guarded):
    """FitStage, which decodes in a child process once its own process has died over the same images."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:  # type: ignore[override]
        with cluster.report_errors(self._board), self._count_attempt(table) as attempt:
            yield from self._stage(table, isolates=attempt > 1)  # type: ignore[call-arg]


class ModelActor(Guarded):
    """PredictStage in an actor of its own; a bundle that this machine cannot run ends the job with its message."""

    def __init__(self, board: Any, model: ModelSpec, threads: int):
        with cluster.report_errors(board):
            super().__init__(PredictStage(model.bundle, model.batch_size, threads, model.inference), board)


class Committer:
    """Turns finished blocks into parts of OUT: about 30 s of work each, so that a death costs no more.

    Blocks stay where they are; only their references pass through the driver.
    """

    def __init__(self, job: JobFacts, board: Any):
        self._job, self._board = job, board
        self._blocks: list[Any] = []
        self._rows, self._bytes, self._began = 0, 0, 0.0
        self._running: list[Any] = []

    def add(self, bundle: Any) -> None:
        """Takes a bundle of the stream's output. Raises what a commit has raised."""
        if not self._blocks:
            self._began = time.monotonic()
        self._blocks += [entry.ref for entry in bundle.blocks]
        self._rows += bundle.num_rows() or 0
        self._bytes += bundle.size_bytes()
        waited = time.monotonic() - self._began
        if self._rows >= COMMIT_ROWS or self._bytes >= COMMIT_BYTES or waited >= COMMIT_SECONDS:
            self._commit()

    def finish(self) -> None:
        """Commits what is left and waits for all commits."""
        self._commit()
        self._wait(0)

    def _commit(self) -> None:
        if self._blocks:
            self._wait(_COMMITS_AT_ONCE - 1)
            # No CPU of its own: the stages may hold all of them, and this waits for the disk.
            task = ray.remote(num_cpus=0, max_retries=5)(commit_blocks)
            self._running.append(task.remote(self._job, self._board, *self._blocks))
        self._blocks, self._rows, self._bytes = [], 0, 0

    def _wait(self, allowed: int) -> None:
        while len(self._running) > allowed:
            ray.get(self._running.pop(0))


def commit_blocks(job: JobFacts, board: Any, *blocks: pa.Table) -> int:
    """In a task: rows -> at most two parts, one of good and one of failed rows. Run twice, it writes the same names."""
    with cluster.report_errors(board):
        rows = pa.concat_tables(blocks)
        has_failed = pc.is_valid(rows["error_kind"])
        check_token(job.out, job.lease)
        for status, part in (("ok", rows.filter(pc.invert(has_failed))), ("error", rows.filter(has_failed))):
            if len(part):
                ledger.commit_part(job.out, part, status, job.run)
    return len(rows)
