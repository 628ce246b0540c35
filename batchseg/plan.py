"""What `segment` would do and why, and what it would take, measured on a sample of the images that are to do."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from batchseg import cluster, images, ledger, render, storage
from batchseg import geometry as geo
from batchseg.bundle import BundleCard, read_card
from batchseg.columns import unpack_picture
from batchseg.console import Console, format_duration
from batchseg.options import SegmentOptions
from batchseg.quality import finish_mask
from batchseg.segment import open_job
from batchseg.stages import FitStage, PredictStage
from batchseg.stream import COMMIT_ROWS, COMMIT_SECONDS

SAMPLE_IMAGES = 32
_STARTUP_SECONDS = 20.0  # Ray, its workers, TensorFlow
_ROW_BYTES = 300  # of a row without its pictures, compressed


@dataclass(frozen=True)
class SampleCost:
    """Seconds and bytes per image, means over a sample. model: of one actor with its threads; write: with encoding."""

    images: int
    failed: int
    fit_seconds: float
    model_seconds: float
    write_seconds: float
    input_bytes: float
    mask_bytes: float
    overlay_bytes: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class JobPlan:
    """reasons: images by why they are to do, or `done`. cost: None where nothing is to do."""

    root: str
    out: str
    reasons: dict[str, int]
    stream: cluster.StreamPlan | None
    cpus: float
    cost: SampleCost | None

    @property
    def todo(self) -> int:
        return sum(count for why, count in self.reasons.items() if why != "done")

    @property
    def seconds(self) -> float:
        """Of the whole run. On CPUs model and stages share the cores; with GPUs the slower of the two decides."""
        if self.cost is None or self.stream is None:
            return 0.0
        stages = (self.cost.fit_seconds + self.cost.write_seconds) / self.cpus
        model = self.cost.model_seconds / self.stream.actors
        if self.stream.gpus:
            return _STARTUP_SECONDS + self.todo * max(stages, model)
        cores = self.cost.model_seconds * self.stream.threads / self.cpus
        return _STARTUP_SECONDS + self.todo * (stages + cores)


def plan_job(
    location: str,
    bundle: str | None = None,
    out: str | None = None,
    *,
    options: SegmentOptions | None = None,
    find_bundle: Callable[[], str] | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> JobPlan:
    """What segment_images with the same arguments would do. Writes nothing. Raises UserError as it would."""
    console, options = console or Console.quiet(), options or SegmentOptions()
    job = open_job(location, bundle, out, options, find_bundle, console)
    work = ledger.plan_work(job.listing.manifest, job.read_index())
    if not len(work.todo):
        return JobPlan(job.listing.root, job.out, work.reasons, None, 0.0, None)
    step = max(1, len(work.todo) // SAMPLE_IMAGES)
    sample = work.todo.take(list(range(0, len(work.todo), step))[:SAMPLE_IMAGES])
    with cluster.connect(address):
        plan = cluster.plan_stream(options.actors, options.gpus_per_actor)
        cpus = ray.cluster_resources().get("CPU", 1.0)
        measure = ray.remote(num_cpus=min(plan.threads, cpus), num_gpus=plan.gpus)(measure_sample)
        with console.status(f"measuring {len(sample)} images"):
            cost = ray.get(measure.remote(sample, job.card.location, options, plan.threads))
    return JobPlan(job.listing.root, job.out, work.reasons, plan, cpus, cost)


def measure_sample(todo: pa.Table, bundle: str, options: SegmentOptions, threads: int) -> SampleCost:
    """Sends images through the stages in this process; nothing is kept."""
    card = read_card(bundle)
    fit = FitStage(card.geometry, options.max_megapixels, options.overlay_size if options.overlay_suffix else None)
    predict = PredictStage(bundle, options.batch_size, threads, options.inference)
    predict(pa.concat_tables(fit(todo.slice(0, 1))))  # the first call compiles
    started = time.perf_counter()
    fitted = pa.concat_tables(fit(todo))
    fit_seconds, started = time.perf_counter() - started, time.perf_counter()
    predicted = predict(fitted)
    model_seconds, started = time.perf_counter() - started, time.perf_counter()
    sizes = np.array([_encode(predicted, row, card, options) for row in range(len(predicted))], float)
    write_seconds = time.perf_counter() - started
    mask_bytes, overlay_bytes = sizes.mean(axis=0)
    return SampleCost(
        len(todo), len(todo) - predicted["error_kind"].null_count, fit_seconds / len(todo), model_seconds / len(todo),
        write_seconds / len(todo), float(np.mean([size or 0 for size in todo["bytes"].to_pylist()])),
        float(mask_bytes), float(overlay_bytes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )  # fmt: skip


def _encode(table: pa.Table, row: int, card: BundleCard, options: SegmentOptions) -> tuple[int, int]:
    """(bytes of the mask, bytes of the overlay) of one image; none for one that failed."""
    if table["error_kind"][row].is_valid:
        return 0, 0
    plan = geo.make_plan((table["height"][row].as_py(), table["width"][row].as_py()), card.geometry)
    mask = finish_mask(unpack_picture(table["ids"], row, plan.canvas_hw), plan, options.inference)
    overlay = b""
    if options.overlay_suffix:
        preview_hw = render.scale_to_longest(plan.image_hw, options.overlay_size)
        preview = unpack_picture(table["preview"], row, (*preview_hw, 3))
        overlay = images.encode_image(render.draw_overlay(preview, mask, card.classes.palette), options.overlay_suffix)
    return len(images.encode_mask(mask, card.classes.palette)), len(overlay)


def show_plan(console: Console, plan: JobPlan, options: SegmentOptions, price_per_hour: float | None) -> None:
    """The tables of `batchseg plan`."""
    console.say(f"{plan.root} -> {plan.out}")
    console.show_table("images", ["why", "images"], [[why, f"{count:,}"] for why, count in plan.reasons.items()])
    if plan.cost is None or plan.stream is None:
        console.say("nothing to do: every image has its row")
        return
    cost = plan.cost
    console.show_table(
        f"measured on {cost.images} images" + (f", of which {cost.failed} failed" if cost.failed else ""),
        ["stage", "ms an image"],
        [
            ["fetch, decode, fit", f"{1e3 * cost.fit_seconds:.1f}"],
            [f"model ({plan.stream.threads} threads)", f"{1e3 * cost.model_seconds:.1f}"],
            ["restore, render, encode", f"{1e3 * cost.write_seconds:.1f}"],
        ],
    )
    rows = [["time", format_duration(plan.seconds)], ["images/s", f"{plan.todo / plan.seconds:.1f}"]]
    rows += [[name, _format_bytes(size)] for name, size in estimate_bytes(plan, options).items()]
    rows += [[name, f"{count:,}"] for name, count in estimate_requests(plan, options).items()]
    if price_per_hour is not None:
        rows.append(["cost", f"{plan.seconds / 3600 * price_per_hour:,.2f}"])
    console.show_table(
        f"estimated for {plan.todo:,} images: {plan.stream.actors} actors, {plan.cpus:g} CPUs",
        ["what", "how much"],
        rows,
    )


def estimate_bytes(plan: JobPlan, options: SegmentOptions) -> dict[str, float]:
    """Bytes that the run reads and writes, and what a model process holds at its peak."""
    assert plan.cost is not None
    pictures = plan.cost.mask_bytes + plan.cost.overlay_bytes
    copies = len(options.write)
    return {
        "bytes in": plan.todo * plan.cost.input_bytes,
        "bytes out": plan.todo * (pictures * copies + _ROW_BYTES),
        "peak memory of a model process": float(plan.cost.peak_memory_bytes),
    }


def estimate_requests(plan: JobPlan, options: SegmentOptions) -> dict[str, int]:
    """Of S3, where input or output lie there; a local run has none."""
    requests = {}
    if storage.is_remote(plan.root):
        requests["GET and HEAD requests"] = 2 * plan.todo
    if storage.is_remote(plan.out):
        pictures = plan.todo * (1 + bool(options.overlay_suffix)) if "png" in options.write else 0
        parts = max(plan.todo / COMMIT_ROWS, plan.seconds / COMMIT_SECONDS)
        requests["PUT requests"] = int(pictures + parts) + 1
    return requests


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(size)
