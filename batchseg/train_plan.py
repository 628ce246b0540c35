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
from batchseg.feed import Shard, iterate_val
from batchseg.train_opening import OpenedJob, open_job
from batchseg.train_task import TrainTask

_STEPS = 4
_VAL_IMAGES = 8


@dataclass(frozen=True)
class TrainCost:
    """Measured in one worker. layers: (name, parameters) of the model's parts. Seconds are medians after a first step.

    peak_bytes: memory of that process; gpu_bytes: of its GPU, None without. cached_bytes: what all decoded images take.
    """

    layers: list[tuple[str, int]]
    trainable: int
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
    with tempfile.TemporaryDirectory() as folder:
        job = open_job(config, console, lambda: f"{folder}/drawn")
        with cluster.connect(address):
            training = config.training
            plan = sizing.plan_training_workers(config.cluster, training.batch_size, training.accumulation)
            console.say(config.to_yaml().rstrip())
            board = boards.start_board()
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
    seconds = []
    for images, masks in itertools.islice(worker.feed.iterate_epoch(0), _STEPS):
        started = time.perf_counter()
        float(worker.step(images, masks))
        seconds.append(time.perf_counter() - started)
    val_seconds = _time_val(worker)
    gpus = worker.tf.config.list_physical_devices("GPU")
    sample = worker.feed.cache.load(0)
    return TrainCost(
        layers=[(layer.name, layer.count_params()) for layer in worker.model.layers if layer.count_params()],
        trainable=sum(math.prod(variable.shape) for variable in worker.model.trainable_variables),
        step_seconds=statistics.median(seconds[1:] or seconds),
        first_step_seconds=seconds[0],
        val_image_seconds=val_seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        gpu_bytes=worker.tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None,
        cached_bytes=(sample.canvas.nbytes + sample.mask.nbytes) * (len(task.train) + len(task.val)),
    )


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
    rows = [(name, f"{count:,}") for name, count in cost.layers]
    total = sum(count for _, count in cost.layers)
    console.show_table(job.describe(), ["layer", "parameters"], [*rows, ("total", f"{total:,}")])
    steps = len(job.dataset.samples("train")) // config.batch_size
    train_seconds = steps * cost.step_seconds
    val_seconds = len(job.dataset.samples("val")) * cost.val_image_seconds / plan.workers
    scorings = -(-config.epochs // config.val_every)
    whole = config.epochs * train_seconds + scorings * val_seconds
    console.say(f"trainable    {cost.trainable:,} parameters")
    console.say(
        f"step         {cost.step_seconds:.2f} s for {config.batch_size} images on {plan.workers} workers "
        f"({config.batch_size / cost.step_seconds:.1f} images/s), the first {cost.first_step_seconds:.0f} s"
    )
    console.say(
        f"epoch        {steps} steps, {format_duration(train_seconds)}; val {format_duration(val_seconds)}; "
        f"{config.epochs} epochs {format_duration(whole)}"
    )
    console.say(f"memory       {cost.peak_bytes / 2**30:.1f} GiB a worker" + _describe_gpu(cost))
    console.say(
        f"cache        {cost.cached_bytes / 1e9:.2f} GB would hold all decoded images; "
        f"training.cache_gb is {config.cache_gb:g} a worker"
    )
    console.say("not counted  what workers spend on waiting for each other; nothing was written")


def _describe_gpu(cost: TrainCost) -> str:
    return "" if cost.gpu_bytes is None else f", {cost.gpu_bytes / 2**30:.1f} GiB of its GPU"
