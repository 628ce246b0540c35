"""What `segment` would do and why, and what it would take, measured on a sample of the images that are to do."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray

from batchseg import board as boards
from batchseg import cluster, ledger, sizing, storage
from batchseg.console import Console, format_duration
from batchseg.errors import StoppedError
from batchseg.images import decode_image
from batchseg.lease import LeaseTimes
from batchseg.options import SegmentOptions
from batchseg.plan_sample import SampleCost, measure_sample
from batchseg.segment_job import SegmentJob, open_job
from batchseg.stages import Decode
from batchseg.stream import COMMIT_ROWS, COMMIT_SECONDS

SAMPLE_IMAGES = 32
_STARTUP_SECONDS = 20.0  # Ray, its workers, TensorFlow
_LOOKS_PER_SECOND = 2.0  # of the driver at its lease
_KEYS_PER_LIST = 1000
_READ_REQUESTS = 2  # HEAD and GET
_PARQUET_REQUESTS = 3  # HEAD, its end, the columns
_READS_OF_PARTS = 3  # before the run, after the lease, at the end


@dataclass(frozen=True)
class RemoteCounts:
    """What lies on S3. listed: images that INPUT holds, and how many of these are named one by one in a list.

    parquets: files of INPUT with images in them. parts: of OUT, as they are now.
    """

    todo: int = 0
    listed: int = 0
    named: int = 0
    parquets: int = 0
    parts: int = 0


@dataclass(frozen=True)
class JobPlan:
    """reasons: images by why they are to do, or `done`. gone: rows of images that INPUT holds no more.

    cost: None where nothing is to do.
    """

    root: str
    out: str
    reasons: dict[str, int]
    stream: sizing.StreamPlan | None
    cpus: float
    cost: SampleCost | None
    gone: int = 0
    remote: RemoteCounts = RemoteCounts()

    @property
    def todo(self) -> int:
        return sum(count for why, count in self.reasons.items() if why != "done")

    @property
    def seconds(self) -> float:
        """Of the whole run. On CPUs model and stages share the cores; with GPUs the slower of the two decides."""
        if self.cost is None or self.stream is None:
            return 0.0
        cost = self.cost
        stages = (cost.fetch_seconds + cost.decode_seconds + cost.render_seconds + cost.write_seconds) / self.cpus
        model = cost.model_seconds / self.stream.actors
        if self.stream.gpus:
            return _STARTUP_SECONDS + self.todo * max(stages, model)
        cores = cost.model_seconds * self.stream.threads / self.cpus
        return _STARTUP_SECONDS + self.todo * (stages + cores)

    @property
    def stage_tasks(self) -> int:
        """Tasks that fetch, decode and write, as many as find a place beside the actors."""
        if self.stream is None:
            return 0
        return max(1, int((self.cpus - self.stream.actors * self.stream.cpus) / self.stream.stage_cpus + 1e-6))


def plan_job(
    location: str,
    bundle: str | None = None,
    out: str | None = None,
    *,
    options: SegmentOptions | None = None,
    find_bundle: Callable[[], str] | None = None,
    address: str | None = None,
    console: Console | None = None,
    decode: Decode = decode_image,
) -> JobPlan:
    """What segment_images with the same arguments would do. Nothing stays of what it writes.

    Raises UserError as it would, StoppedError when the model dies over the sample.
    """
    console, options = console or Console.quiet(), options or SegmentOptions()

    def look_at_cluster() -> None:
        with cluster.join(address):
            sizing.plan_stream(options.actors, options.gpus_per_actor)

    job = open_job(location, bundle, out, options, find_bundle, console, decode, look_at_cluster)
    index = job.read_index()
    work = ledger.plan_work(job.listing.manifest, index)
    gone = ledger.count_rows(index, job.listing.manifest)["gone"]
    if not len(work.todo):
        return JobPlan(job.listing.root, job.out, work.reasons, None, 0.0, None, gone)
    step = max(1, len(work.todo) // SAMPLE_IMAGES)
    sample = work.todo.take(list(range(0, len(work.todo), step))[:SAMPLE_IMAGES])
    with cluster.connect(address):
        plan = sizing.plan_stream(options.actors, options.gpus_per_actor)
        for remark in plan.wanted.list_remarks():
            console.say(remark)
        cpus = ray.cluster_resources().get("CPU", 1.0)
        with console.status(f"measuring {len(sample)} images"):
            cost = _measure(job, sample, plan, cpus)
    remote = _count_remote(job, index, work.todo)
    return JobPlan(job.listing.root, job.out, work.reasons, plan, cpus, cost, gone, remote)


def _measure(job: SegmentJob, sample: pa.Table, plan: sizing.StreamPlan, cpus: float) -> SampleCost:
    """measure_sample where a model actor would run."""
    measure = ray.remote(num_cpus=min(plan.threads, cpus), num_gpus=plan.gpus, max_retries=1)(measure_sample)
    try:
        found: SampleCost = ray.get(
            measure.remote(sample, job.card.location, job.options, plan.threads, job.out, job.decode)
        )
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise StoppedError(
            f"the process that measured {len(sample)} images has died: {type(error).__name__}. Is the memory too "
            f"small? A smaller --batch-size needs less"
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise boards.find_cause(error) or error from None
    return found


def _count_remote(job: SegmentJob, index: pa.Table, todo: pa.Table) -> RemoteCounts:
    listing = job.listing
    is_remote = pc.starts_with(listing.manifest["uri"], "s3://")
    uris = listing.manifest["uri"].filter(is_remote)
    return RemoteCounts(
        todo=pc.sum(pc.starts_with(todo["uri"], "s3://")).as_py() or 0,
        listed=len(uris),
        named=len(uris) if listing.kind == "list" else 0,
        parquets=pc.count_distinct(uris).as_py() if listing.kind == "parquet" else 0,
        parts=pc.count_distinct(index["part"].cast(pa.string())).as_py() if storage.is_remote(job.out) else 0,
    )


def show_plan(console: Console, plan: JobPlan, options: SegmentOptions, price_per_hour: float | None) -> None:
    """The tables of `batchseg plan`."""
    console.say(f"{plan.root} -> {plan.out}")
    console.show_table("images", ["why", "images"], [[why, f"{count:,}"] for why, count in plan.reasons.items()])
    if plan.gone:
        what = "are dropped" if options.prune else "stay; --prune drops them"
        console.say(f"{plan.gone:,} rows of images that INPUT holds no more {what}")
    if options.overwrite:
        console.say("--overwrite: what the rows of OUT name is removed first")
    if plan.cost is None or plan.stream is None:
        console.say("nothing to do: every image has its row")
        return
    _show_sample(console, plan.cost, plan.stream)
    rows = [["time", format_duration(plan.seconds)], ["images/s", f"{plan.todo / plan.seconds:.1f}"]]
    rows += [[name, _format_bytes(size)] for name, size in estimate_bytes(plan).items()]
    rows += [[name, _format_bytes(size)] for name, size in estimate_memory(plan).items()]
    rows += [[name, f"{count:,}"] for name, count in estimate_requests(plan, options).items()]
    if price_per_hour is not None:
        rows.append(["cost", f"{plan.seconds / 3600 * price_per_hour:,.2f}"])
    console.show_table(
        f"estimated for {plan.todo:,} images: {plan.stream.actors} actors, {plan.cpus:g} CPUs",
        ["what", "how much"],
        rows,
    )


def _show_sample(console: Console, cost: SampleCost, stream: sizing.StreamPlan) -> None:
    failed = ", ".join(f"{count} {kind}" for kind, count in cost.failures.items())
    steps = [
        ("fetch", cost.fetch_seconds),
        ("decode, fit", cost.decode_seconds),
        (f"model ({stream.threads} threads)", cost.model_seconds),
        ("render: restore, draw, encode", cost.render_seconds),
        ("rows made, nothing sent to S3" if cost.is_remote else "write", cost.write_seconds),
    ]
    console.show_table(
        f"measured on {cost.images} images" + (f", of which some failed: {failed}" if failed else ""),
        ["step", "ms an image"],
        [[name, f"{1e3 * seconds:.1f}"] for name, seconds in steps],
    )
    if cost.left_out:
        names = ", ".join(cost.left_out)
        console.say(f"left out, because decoding kills its process: {names}. `segment` makes rows `crash` of such")
    if sum(cost.failures.values()) >= cost.images:
        console.say("no image of the sample could be segmented: the estimate lacks the model and the pictures")
    elif cost.is_remote:
        size = _format_bytes(cost.file_bytes + cost.row_bytes)
        console.say(f"the time of sending {size} an image to S3 is not in the estimate: nothing is written there")


def estimate_bytes(plan: JobPlan) -> dict[str, float]:
    """Bytes that the run reads and writes."""
    assert plan.cost is not None
    return {
        "bytes in": plan.todo * plan.cost.input_bytes,
        "bytes out, files": plan.todo * plan.cost.file_bytes,
        "bytes out, rows": plan.todo * plan.cost.row_bytes,
    }


def estimate_memory(plan: JobPlan) -> dict[str, float]:
    """Bytes at the peak of a process of each kind, and of all at once, libraries that they share counted in each."""
    assert plan.cost is not None
    assert plan.stream is not None
    model, stage = plan.cost.model_memory_bytes, plan.cost.stage_memory_bytes
    actors, tasks = plan.stream.actors, plan.stage_tasks
    return {
        "peak memory of one model actor": float(model),
        "peak memory of one task that decodes or writes": float(stage),
        f"together at most ({actors} x actor + {tasks} x task)": float(actors * model + tasks * stage),
    }


def estimate_requests(plan: JobPlan, options: SegmentOptions) -> dict[str, int]:
    """Of S3, where input or output lie there; a local run has none. Tries again are not counted."""
    remote, requests = plan.remote, {}
    reads = _READ_REQUESTS * remote.todo + remote.named + _PARQUET_REQUESTS * remote.parquets
    lists = math.ceil((remote.listed - remote.named) / _KEYS_PER_LIST)
    if storage.is_remote(plan.out):
        parts = math.ceil(max(plan.todo / COMMIT_ROWS, plan.seconds / COMMIT_SECONDS))
        blocks = math.ceil(plan.todo / (2 * options.batch_size))
        beats = math.ceil(plan.seconds / LeaseTimes().heartbeat_s)
        looks = blocks + parts + beats + math.ceil(plan.seconds * _LOOKS_PER_SECOND)  # each reads the lease
        reads += _READ_REQUESTS * looks + _PARQUET_REQUESTS * (_READS_OF_PARTS * remote.parts + parts)
        lists += _READS_OF_PARTS * math.ceil((remote.parts + parts) / _KEYS_PER_LIST)
        pictures = 1 + bool(options.overlay_suffix) + options.inference.score_map if "png" in options.write else 0
        requests["PUT requests"] = plan.todo * pictures + parts + beats + 5  # run.json twice, classes, manifest, lease
    if reads or lists:
        requests = {"GET and HEAD requests": reads, "LIST requests": lists, **requests}
    return requests


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(size)
