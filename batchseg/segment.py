"""The batch job: every image of INPUT becomes a mask, an overlay and one row under OUT, exactly once.

list -> compare with rows -> lease -> settle -> subtract -> stream (stream.py) -> settle
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from batchseg import board as boards
from batchseg import clearing, cluster, ledger, sizing, storage
from batchseg.bundle import BundleCard
from batchseg.console import Console, CountProgress, format_duration, watch_board
from batchseg.errors import StoppedError, UserError
from batchseg.images import decode_image
from batchseg.lease import Lease
from batchseg.options import SegmentOptions
from batchseg.results import JobFacts, WriteStage
from batchseg.sanity import Band, SanityCheck
from batchseg.segment_job import SegmentJob, open_job
from batchseg.stages import Decode, FitStage
from batchseg.stream import Committer, ModelSpec, Write, add_last_stage, build_stream, release_actors

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class SegmentResult:
    """ok and failed count the rows of the images listed, after the run; `reasons` what it had to do and why.

    gone: rows of images that INPUT holds no more. pruned: such rows that were dropped. seconds: 0 if nothing was done.
    """

    out: str
    ok: int
    failed: int
    gone: int
    pruned: int
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
    decode: Decode = decode_image,
) -> SegmentResult:
    """Segments every image of INPUT that has no row yet, or whose row has failed or is of an older file.

    bundle: default the one that OUT was made with, then what find_bundle() names.
    out: default runs/<name of INPUT>-segmented. decode: as images.decode_image.
    Raises UserError before anything is written if something is wrong, StoppedError for a run that ended early.
    """
    console, options = console or Console.quiet(), options or SegmentOptions()
    with ExitStack() as connected:

        def look_at_cluster() -> None:
            """What can never be held is refused first of all."""
            connected.enter_context(cluster.join(address))
            sizing.plan_stream(options.actors, options.gpus_per_actor)

        job = open_job(location, bundle, out, options, find_bundle, console, decode, look_at_cluster)
        return _segment(job, address, console)


def _segment(job: SegmentJob, address: str | None, console: Console) -> SegmentResult:
    """Finds out what is to be done, and does it."""
    options = job.options
    work = ledger.plan_work(job.listing.manifest, job.read_index())
    reasons = ", ".join(f"{count} {why}" for why, count in work.reasons.items() if count)
    console.say(f"{job.listing.root}: {len(job.listing.manifest)} images ({reasons}) -> {job.out}")
    if work.unseen:
        console.say(f"{work.unseen} of those done cannot be found now (a disk that is away?); their rows stay")
    if not len(work.todo) and job.before and job.before["state"] == "complete" and not options.prune:
        counts = ledger.count_rows(job.read_index(), job.listing.manifest)
        if counts == job.before["counts"] and not options.overwrite:
            return SegmentResult(job.out, counts["ok"], counts["error"], counts["gone"], 0, work.reasons, 0.0)
    if not len(work.todo):
        with Lease.acquire(job.out, say=console.say, ended=job.ended) as lease:
            return _run(job, None, lease, console)
    with cluster.connect(address):
        plan = sizing.plan_stream(options.actors, options.gpus_per_actor)
        for remark in plan.wanted.list_remarks():
            console.say(remark)
        cluster.check_shared(job.out, [job.card.location, work.todo["uri"][0].as_py()])
        with Lease.acquire(job.out, say=console.say, ended=job.ended) as lease:
            return _run(job, plan, lease, console)


def _run(job: SegmentJob, plan: sizing.StreamPlan | None, lease: Lease, console: Console) -> SegmentResult:
    """Everything that writes. plan: None where there is nothing to stream."""
    started = time.monotonic()
    # Another job may have come and gone between our first look and our lease.
    job = replace(job, before=ledger.read_run(job.out))
    job.check_parameters()
    manifest = job.listing.manifest
    _prepare_out(job, console)
    index = ledger.settle(job.out)
    pruned = clearing.prune(job.out, index, manifest["image_id"]) if job.options.prune else 0
    index = ledger.read_index(job.out) if pruned else index
    work = ledger.plan_work(manifest, index)
    speed: dict[str, Any] = {}
    if len(work.todo) and plan:
        try:
            ledger.subtract(job.out, index, work.redone)
            speed = _stream(job, work.todo, plan, lease, console)
        except UserError:
            if job.before is None:
                ledger.forget_run(job.out)
            raise
        except (KeyboardInterrupt, StoppedError) as stop:
            with suppress(UserError, StoppedError, OSError):
                lease.check()  # else run.json says what another job does now
                state = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped"
                job.record(state, ledger.count_rows(ledger.read_index(job.out), manifest))
            raise
        lease.check()
        index = ledger.settle(job.out)
        clearing.delete_failed_pictures(job.out, index, job.run)
    ledger.sweep_staging(job.out)  # what killed workers have left
    counts = ledger.count_rows(index, manifest)
    if counts["ok"] + counts["error"] != len(manifest):
        raise StoppedError(
            f"{counts['ok'] + counts['error']} of {len(manifest)} images have a row; the same line does the others"
        )
    lease.check()
    job.record("complete", counts, speed)
    seconds = time.monotonic() - started if len(work.todo) else 0.0
    return SegmentResult(job.out, counts["ok"], counts["error"], counts["gone"], pruned, work.reasons, seconds)


def _prepare_out(job: SegmentJob, console: Console) -> None:
    """Makes OUT ours before the first picture, and clears what a killed run left half-written."""
    if job.options.overwrite and job.before:
        clearing.remove_output(job.out)
    job.record("running", {"manifest": len(job.listing.manifest)})
    console.log_into(job.out)
    ledger.sweep_staging(job.out)
    classes = json.dumps(job.card.classes.to_json(), indent=1)
    storage.write_atomic(storage.join(job.out, ledger.CLASSES_FILE), classes, ledger.staging_of(job.out))
    ledger.write_table(storage.join(job.out, ledger.MANIFEST_FILE), job.listing.manifest, job.out)


def _stream(job: SegmentJob, todo: pa.Table, plan: sizing.StreamPlan, lease: Lease, console: Console) -> dict[str, Any]:
    """The stream, its rows committed as they come. Returns how fast. Raises UserError or StoppedError of a stage."""
    started, board, options = time.monotonic(), boards.start_board(), job.options
    facts = JobFacts(
        job.out, job.run, lease.token, job.card.digest, job.card.classes, job.card.geometry, _find_band(job.card)
    )
    fit = FitStage(
        job.card.geometry, options.max_megapixels, options.overlay_size if options.overlay_suffix else None, job.decode
    )
    model = ModelSpec(job.card.location, options.batch_size, options.inference)
    shown = watch_board(board, CountProgress(console, len(todo), "segmented", plan.wanted.describe_wait))
    with shown, boards.unwrap_errors(board), Committer(facts, board) as committer:
        rows = add_last_stage(
            build_stream(todo, fit, model, plan, board), Write(WriteStage(facts, options, board), board), plan
        )
        try:
            with release_actors(board):
                _commit_all(rows, committer, job, lease, board, console)
        except (KeyboardInterrupt, StoppedError, ray.exceptions.RayError):
            # What is there is kept; where even that fails, the next run does it again.
            with suppress(UserError, StoppedError, OSError, ray.exceptions.RayError):
                committer.finish()
            raise
    return _describe_speed(len(todo), time.monotonic() - started, ray.get(board.read.remote()))


def _commit_all(
    rows: ray.data.Dataset, committer: Committer, job: SegmentJob, lease: Lease, board: Any, console: Console
) -> None:
    """Drives the stream to its end, with an eye on how it goes."""
    share = job.card.data.get("single_class_share")
    check = SanityCheck(share, _find_band(job.card), job.options.max_failed_share, job.options.sanity_check)
    due = boards.Throttle(_LOOK_SECONDS)
    for bundle in rows.iter_internal_ref_bundles():
        committer.add(bundle)
        # Each time, not now and then: a stream may end within a moment.
        for warning in check.judge(ray.get(board.read.remote())):
            console.say(warning)
        if due.is_due():
            lease.check()
    committer.finish()


def _find_band(card: BundleCard) -> Band | None:
    found = card.data.get("brightness") or {}
    return Band(found["p1"], found["p99"]) if {"p1", "p99"} <= set(found) else None


def _describe_speed(images: int, seconds: float, state: dict[str, Any]) -> dict[str, Any]:
    """Images per second of the run, and per busy second of each stage."""
    stages = {name.removeprefix("busy/"): value for name, value in state.items() if name.startswith("busy/")}
    return {
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 2),
        "stages": {
            name: {"busy_seconds": round(busy, 2), "images_per_busy_second": round(images / max(busy, 1e-9), 2)}
            for name, busy in stages.items()
        },
    }


def show_result(console: Console, result: SegmentResult) -> None:
    """The table at the end of `segment`."""
    if not result.seconds:
        console.say("nothing to do: every image has its row")
    done = sum(count for why, count in result.reasons.items() if why != "done")
    rows = [["ok", f"{result.ok:,}"], ["failed", f"{result.failed:,}"]]
    if result.gone:
        rows.append(["gone from INPUT", f"{result.gone:,}"])
    if result.pruned:
        rows.append(["pruned", f"{result.pruned:,}"])
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
