"""`train --dry-run`: the resolved config, the model, and what a few real steps cost. Nothing is written under `out`."""

import itertools
import math
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import ray

from batchseg import board as boards
from batchseg import cluster, sizing
from batchseg.config import TrainConfig
from batchseg.console import Console, format_duration
from batchseg.feed import SampleCache, Shard, iterate_val
from batchseg.train_folder import check_out
from batchseg.train_opening import OpenedJob, open_job
from batchseg.train_task import TrainTask
from batchseg.val_sheet import pick_evenly

_STEPS = 8
_SETTLED = 4  # after that many steps what was loaded ahead, while the first one compiled, is used up
_VAL_IMAGES = 8


@dataclass(frozen=True)
class TrainCost:
    """Measured in one worker. parts: (name, parameters, those of them that train) of the model.

    step_seconds: a step with the wait for its batch, median of late steps; images are still decoded in them.
    peak_bytes: memory of that process; gpu_bytes: of its GPU, None without. cached_bytes: what all decoded images of a
    worker take.
    """

    parts: list[tuple[str, int, int]]
    step_seconds: float
    first_step_seconds: float
    val_image_seconds: float
    peak_bytes: int
    gpu_bytes: int | None
    cached_bytes: int


def plan_training(config: TrainConfig, *, address: str | None = None, console: Console | None = None) -> TrainCost:
    """Measures and prints. Raises UserError for all that `train_model` refuses before it starts."""
    console = console or Console.quiet()
    config = config.model_copy(update={"out": cluster.resolve_output(config.out)})
    if check_out(config):
        console.say(f"{config.out} is finished already; measured all the same")
    with tempfile.TemporaryDirectory() as folder, cluster.join(address):
        sizing.plan_workers(config)
        job = open_job(config, console, lambda: f"{folder}/drawn")
        with cluster.connect(address):
            plan = sizing.plan_workers(config)
            console.say(config.to_yaml().rstrip())
            board = boards.start_board()
            if wait := plan.wanted.describe_wait(math.inf):
                console.say(wait)
            with boards.unwrap_errors(board), console.status("measuring some steps"):
                worker = _measure_in_worker.options(num_cpus=plan.cpus, num_gpus=plan.gpus)
                cost = ray.get(worker.remote(job.make_task(plan.threads, board), plan.workers))
    show_cost(console, job, plan, cost)
    return cost


@ray.remote(max_retries=0)
def _measure_in_worker(task: TrainTask, workers: int) -> TrainCost:
    """In a process of its own, as a worker would run."""
    with boards.report_errors(task.board):
        return measure_cost(task, workers)


def measure_cost(task: TrainTask, workers: int) -> TrainCost:
    """The share of the first of `workers` in some steps, and some val images. No worker waits for another here."""
    from batchseg.train_worker import Worker

    # The share of one worker, alone: a batch of that size is a batch to it.
    share = -(-task.config.training.batch_size // workers)
    training = task.config.training.model_copy(update={"batch_size": share})
    config = task.config.model_copy(update={"training": training})
    worker = Worker(replace(task, config=config), Shard(0, 1))
    seconds, started = [], time.perf_counter()
    for images, masks in itertools.islice(worker.feed.iterate_epoch(0), _STEPS):
        float(worker.step(images, masks))
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    val_seconds = _time_val(worker)
    gpus = worker.tf.config.list_physical_devices("GPU")
    cached = _estimate_bytes(worker.feed.cache) + _estimate_bytes(worker.val_cache) // workers
    return TrainCost(
        parts=count_parts(worker.model),
        step_seconds=statistics.median(seconds[_SETTLED:] or seconds[1:] or seconds),
        first_step_seconds=seconds[0],
        val_image_seconds=val_seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        gpu_bytes=worker.tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None,
        cached_bytes=cached,
    )


def count_parts(model: Any) -> list[tuple[str, int, int]]:
    """(name, parameters, trainable ones) of encoder, decoder and head, or of each layer of a model that has no such."""
    names = {layer.name for layer in model.layers}
    parts: dict[str, tuple[int, int]] = {}
    for layer in filter(lambda layer: layer.count_params(), model.layers):
        name = "decoder" if "encoder" in names and layer.name not in ("encoder", "head") else layer.name
        total, trainable = parts.get(name, (0, 0))
        here = sum(math.prod(variable.shape) for variable in layer.trainable_variables)
        parts[name] = (total + layer.count_params(), trainable + here)
    return [(name, *counts) for name, counts in parts.items()]


def _estimate_bytes(cache: SampleCache) -> int:
    """What all its samples take when decoded, from the mean of some."""
    samples = [cache.load(index) for index in pick_evenly(len(cache), _VAL_IMAGES)]
    sizes = [sample.canvas.nbytes + sample.mask.nbytes for sample in samples]
    return round(len(cache) * statistics.mean(sizes))


def _time_val(worker: Any) -> float:
    """Seconds for one val image, after a first one that compiles."""
    samples = list(itertools.islice(iterate_val(worker.val_cache, worker.shard, 2), _VAL_IMAGES))
    run = [(sample, sample.canvas, sample.plan) for sample in samples]
    list(worker.runner.stream(iter(run[:1])))
    started = time.perf_counter()
    list(worker.runner.stream(iter(run)))
    return (time.perf_counter() - started) / len(run)


def show_cost(console: Console, job: OpenedJob, plan: sizing.WorkerPlan, cost: TrainCost) -> None:
    """The model's parts, then time and memory."""
    config = job.config.training
    total, trainable = sum(part[1] for part in cost.parts), sum(part[2] for part in cost.parts)
    rows = [(name, f"{here:,}", f"{learned:,}") for name, here, learned in (*cost.parts, ("total", total, trainable))]
    console.show_table(job.describe(), ["part", "parameters", "trainable"], rows)
    steps = len(job.dataset.samples("train")) // config.batch_size
    train_seconds = steps * cost.step_seconds
    val_seconds = len(job.dataset.samples("val")) * cost.val_image_seconds / plan.workers
    scorings = -(-config.epochs // config.val_every)
    whole = config.epochs * train_seconds + scorings * val_seconds
    console.say(
        f"step         {cost.step_seconds:.2f} s for {config.batch_size} images on {plan.workers} workers "
        f"({config.batch_size / cost.step_seconds:.1f} images/s), the first {cost.first_step_seconds:.0f} s"
    )
    console.say(
        f"epoch        {steps} steps, {format_duration(train_seconds)}; val {format_duration(val_seconds)}; "
        f"{config.epochs} epochs {format_duration(whole)}"
    )
    console.say(
        f"memory       {cost.peak_bytes / 2**30:.1f} GiB a worker{_describe_gpu(cost)}; decoded images add up to "
        f"{min(cost.cached_bytes / 1e9, config.cache_gb):.2f} GB"
    )
    console.say(
        f"cache        {cost.cached_bytes / 1e9:.2f} GB would hold all decoded images; "
        f"training.cache_gb is {config.cache_gb:g} a worker"
    )
    console.say("not counted  what workers spend on waiting for each other; nothing was written")


def _describe_gpu(cost: TrainCost) -> str:
    return "" if cost.gpu_bytes is None else f", {cost.gpu_bytes / 2**30:.1f} GiB of its GPU"
