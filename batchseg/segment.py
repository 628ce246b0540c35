"""The batch job: every image under INPUT becomes a mask, an overlay and one row under OUT.

list -> diff with rows -> fetch+decode+fit -> [model] -> restore+render+write -> rows -> settle
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasink

from batchseg import __version__, cluster, ledger, storage
from batchseg.bundle import BundleCard, check_weights, read_card
from batchseg.console import Console, CountProgress, format_duration, watch_board
from batchseg.errors import StoppedError, UserError
from batchseg.images import DEFAULT_MAX_MEGAPIXELS
from batchseg.stages import FitStage, PredictStage, WriteStage

_ROWS_PER_PART = 64
_IN_FLIGHT_PER_ACTOR = 4
_WRITES = ("parquet", "png")
_OVERLAYS = ("png", "jpg", "none")


@dataclass(frozen=True)
class SegmentOptions:
    """What goes where. No option changes what the model sees.

    overlay_size: longest side in pixels; 0 is the image's own.
    """

    write: tuple[str, ...] = _WRITES
    overlays: str = "png"
    overlay_size: int = 512
    batch_size: int = 8
    actors: int | None = None
    gpus_per_actor: float | None = None
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if not self.write or set(self.write) - set(_WRITES):
            raise UserError(f"--write is {','.join(self.write)!r}; allowed are parquet, png or parquet,png")
        if self.overlays not in _OVERLAYS:
            raise UserError(f"--overlays is {self.overlays!r}; allowed are {', '.join(_OVERLAYS)}")

    @classmethod
    def from_flags(cls, write: str, **flags: Any) -> "SegmentOptions":
        """From the command line, where `write` is a list with commas."""
        return cls(write=tuple(sorted({part.strip() for part in write.split(",") if part.strip()})), **flags)


@dataclass(frozen=True)
class SegmentResult:
    """ok and failed count the rows of the images listed, after the run; `reasons` what it had to do and why."""

    out: str
    ok: int
    failed: int
    reasons: dict[str, int]
    seconds: float


def segment_images(
    location: str,
    bundle: str | None = None,
    out: str | None = None,
    *,
    options: SegmentOptions | None = None,
    find_bundle: Callable[[], str] | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> SegmentResult:
    """Segments every image under a folder that has no row yet, or whose row has failed or is of an older file.

    bundle: default the one that OUT was made with, then what find_bundle() names.
    out: default runs/<name of INPUT>-segmented.
    Raises UserError before anything is written if something is wrong.
    """
    console, options = console or Console.quiet(), options or SegmentOptions()
    source = storage.to_absolute(location)
    out = cluster.resolve_output(out or f"runs/{storage.name_of(source)}-segmented")
    if storage.to_real(out) == storage.to_real(source):
        raise UserError(f"OUT {out} is INPUT itself; give another --out")
    before = ledger.read_run(out)
    card = read_card(cluster.resolve_bundle(_choose_bundle(bundle, find_bundle, before, console)))
    job = _open_job(source, out, before, card, options)
    with console.status(f"listing {source}"):
        manifest = ledger.list_images(source, exclude=out)
        index = ledger.settle(out)
        work = ledger.plan_work(manifest, index)
    reasons = ", ".join(f"{count} {why}" for why, count in work.reasons.items() if count)
    console.say(f"{source}: {len(manifest)} images ({reasons}) -> {out}")
    started = time.monotonic()
    if len(work.todo):
        with cluster.connect(address):
            plan = cluster.plan_stream(options.actors, options.gpus_per_actor)
            _prepare_out(job, manifest, console)
            ledger.subtract(out, index, work.redone)
            try:
                stream_images(work.todo, job, plan, console)
            except UserError:
                if before is None:
                    ledger.forget_run(out)
                raise
        index = ledger.settle(out)
    seconds = time.monotonic() - started if len(work.todo) else 0.0
    counts = ledger.count_rows(index, manifest)
    if counts["ok"] + counts["error"] != len(manifest):
        raise StoppedError(
            f"{counts['ok'] + counts['error']} of {len(manifest)} images have a row; the same line does the others"
        )
    if len(work.todo) or (before or {}).get("counts") != counts or (before or {}).get("state") != "complete":
        job.finish(manifest, counts, seconds, len(work.todo))
    return SegmentResult(out, counts["ok"], counts["error"], work.reasons, seconds)


def _open_job(
    source: str, out: str, before: dict[str, Any] | None, card: BundleCard, options: SegmentOptions
) -> "_Job":
    """Raises UserError when the bundle was changed, or OUT was made with something else."""
    check_weights(card)
    parameters = _list_parameters(source, card, options)
    if before:
        ledger.check_same_run(out, before, parameters)
    return _Job(out, (before or {}).get("run", 0) + 1, card, parameters, options)


def _prepare_out(job: "_Job", manifest: pa.Table, console: Console) -> None:
    """Makes OUT ours before the first picture, and clears what a killed run left half-written."""
    storage.make_folder(job.out)
    cluster.check_shared(job.out)
    job.record("running", {"manifest": len(manifest)})
    console.log_into(job.out)
    ledger.sweep_staging(job.out)
    classes = json.dumps(job.card.classes.to_json(), indent=1)
    storage.write_atomic(storage.join(job.out, ledger.CLASSES_FILE), classes, ledger.staging_of(job.out))


@dataclass(frozen=True)
class _Job:
    out: str
    run: int
    card: BundleCard
    parameters: dict[str, Any]
    options: SegmentOptions

    def finish(self, manifest: pa.Table, counts: dict[str, int], seconds: float, done: int) -> None:
        """Writes the listing, what came of it, and how fast."""
        ledger.write_table(storage.join(self.out, ledger.MANIFEST_FILE), manifest, self.out)
        speed = (
            {"images": done, "seconds": round(seconds, 1), "images_per_second": round(done / seconds, 2)}
            if done
            else {}
        )
        self.record("complete", counts, speed)

    def record(self, state: str, counts: dict[str, int], speed: dict[str, float] | None = None) -> None:
        """Writes run.json."""
        ledger.write_run(
            self.out,
            {
                "state": state,
                "run": self.run,
                "parameters": self.parameters,
                "bundle": self.card.location,
                "versions": {"batchseg": __version__, "ray": ray.__version__, "pyarrow": pa.__version__},
                "updated": ledger.format_now(),
                "counts": counts,
                "speed": speed or {},
            },
        )


def stream_images(todo: pa.Table, job: _Job, plan: cluster.StreamPlan, console: Console) -> None:
    """The stream itself. Raises UserError or StoppedError that a stage met."""
    card, options = job.card, job.options
    board = cluster.start_board()
    overlay_suffix = None if options.overlays == "none" else f".{options.overlays}"
    fit = FitStage(card.geometry, options.max_megapixels, options.overlay_size if overlay_suffix else None)
    write = WriteStage(
        job.out, job.run, card.digest, card.classes, card.geometry,
        "parquet" in options.write, "png" in options.write, overlay_suffix, board,
    )  # fmt: skip
    with watch_board(board, CountProgress(console, len(todo), "segmented")), cluster.unwrap_errors(board):
        images = build_stream(todo, fit, plan, card.location, options.batch_size, board)
        rows = images.map_batches(Guarded(write, board), batch_size=None, num_cpus=plan.stage_cpus)
        rows.write_datasink(RowSink(job.out, job.run, board), ray_remote_args={"num_cpus": plan.stage_cpus})


def build_stream(
    todo: pa.Table, fit: FitStage, plan: cluster.StreamPlan, bundle: str, batch_size: int, board: Any
) -> ray.data.Dataset:
    """Table with `uri` -> dataset with `ids`. Stages that scale apart; `evaluate` takes the same ones."""
    cluster.configure_data()
    return (
        ray.data.from_arrow(todo)
        # Small blocks: the actors get work at once, and nothing spills. A block is two batches.
        .repartition(target_num_rows_per_block=2 * batch_size)
        .map_batches(fit, batch_size=None, num_cpus=plan.stage_cpus)
        .map_batches(
            ModelActor,
            fn_constructor_kwargs={
                "board": board, "bundle": bundle, "batch_size": batch_size, "threads": plan.threads,
            },
            batch_size=2 * batch_size,
            compute=ActorPoolStrategy(
                min_size=plan.actors, max_size=plan.actors, max_tasks_in_flight_per_actor=_IN_FLIGHT_PER_ACTOR
            ),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
        )
    )  # fmt: skip


class Guarded:
    """A stage whose UserError or StoppedError the driver gets to see."""

    def __init__(self, stage: Callable[[Any], Any], board: Any):
        self._stage, self._board = stage, board

    def __call__(self, batch: Any) -> Any:
        with cluster.report_errors(self._board):
            return self._stage(batch)


class ModelActor(Guarded):
    """PredictStage in an actor of its own; a bundle that this machine cannot run ends the job with its message."""

    def __init__(self, board: Any, bundle: str, batch_size: int, threads: int):
        with cluster.report_errors(board):
            super().__init__(PredictStage(bundle, batch_size, threads), board)


class RowSink(Datasink[int]):
    """Commits rows as parts of OUT, failed rows apart."""

    def __init__(self, out: str, run: int, board: Any):
        self._out, self._run, self._board = out, run, board

    @property
    def min_rows_per_write(self) -> int:
        return _ROWS_PER_PART

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Called in a task; a retried one writes the same names again."""
        rows = pa.concat_tables([pa.table(block) if isinstance(block, dict) else block for block in blocks])
        has_failed = pc.is_valid(rows["error_kind"])
        with cluster.report_errors(self._board):
            for status, part in (("ok", rows.filter(pc.invert(has_failed))), ("error", rows.filter(has_failed))):
                if len(part):
                    ledger.commit_part(self._out, part, status, self._run)
        return len(rows)


def _choose_bundle(
    bundle: str | None, find_bundle: Callable[[], str] | None, before: dict[str, Any] | None, console: Console
) -> str:
    """The one given, the one that OUT was made with, the one that the caller finds."""
    if bundle:
        return bundle
    if before:
        console.say(f"model: {before['bundle']} (the one that OUT was made with)")
        return str(before["bundle"])
    if find_bundle is None:
        raise UserError("no bundle given")
    return find_bundle()


def _list_parameters(source: str, card: BundleCard, options: SegmentOptions) -> dict[str, Any]:
    """What one OUT has one of: another value would mix rows that cannot be told apart."""
    return {
        "input": source,
        "bundle_digest": card.digest,
        "write": sorted(options.write),
        "overlays": options.overlays,
        "overlay_size": options.overlay_size,
    }


def show_result(console: Console, result: SegmentResult) -> None:
    """The table at the end of `segment`."""
    if not result.seconds:
        console.say("nothing to do: every image has its row")
    done = sum(count for why, count in result.reasons.items() if why != "done")
    rows = [["ok", f"{result.ok:,}"], ["failed", f"{result.failed:,}"]]
    if result.seconds:
        rows += [
            ["this run", f"{done:,}"],
            ["images/s", f"{done / result.seconds:.1f}"],
            ["time", format_duration(result.seconds)],
        ]
    console.show_table("rows", ["status", "images"], rows)
    console.say(f"out: {result.out}")
    if result.failed:
        console.say(
            f"failures, by name and reason: {storage.join(result.out, 'rows', 'status=error')}\n"
            f"the same line tries them again"
        )


if __name__ == "__main__":
    import sys

    from batchseg.cli import main

    main(["segment", *sys.argv[1:]])
