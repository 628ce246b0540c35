"""Training from config to bundle: data set -> Ray Train -> best checkpoint -> sealed bundle."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from batchseg import board as boards
from batchseg import cluster, doctor, sizing, storage
from batchseg import geometry as geo
from batchseg.bundle import BundleCard, GoldenSample, save_bundle
from batchseg.checkpoint_list import CHECKPOINT_FOLDER, mend_list
from batchseg.config import RESOLVED_HEADER, TrainConfig
from batchseg.console import Console, TrainProgress, watch_board
from batchseg.datasets import Dataset
from batchseg.datasets.sample import load_sample
from batchseg.datasets.splitting import SPLITS_FOLDER, write_splits
from batchseg.lease import Lease, check_token, wait_until_free
from batchseg.runtime import load_tensorflow
from batchseg.train_folder import (
    BUNDLE_FOLDER,
    CONFIG_FILE,
    SCORES_FILE,
    check_out,
)
from batchseg.train_opening import OpenedJob, open_job
from batchseg.train_task import TrainTask, read_checkpoint

_GOLDEN_SIDE = 192
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@dataclass(frozen=True)
class TrainResult:
    """Where the bundle lies, its scores on val, and whether it was there before."""

    bundle: str
    scores: dict[str, Any]
    was_finished: bool


def train_model(config: TrainConfig, *, address: str | None = None, console: Console | None = None) -> TrainResult:
    """Trains (or goes on training) into config.out. Raises UserError before anything is written if something
    is wrong.
    """
    console = console or Console.quiet()
    config = config.model_copy(update={"out": cluster.resolve_output(config.out)})
    finished = check_out(config)
    if finished:
        console.say(f"{config.out} is finished already; more training.epochs would go on")
        return TrainResult(finished.location, finished.scores, was_finished=True)
    ended = wait_until_free(config.out, say=console.say)
    with cluster.join(address):
        sizing.plan_workers(config)  # what can never be held is refused before the data are looked at
        job = open_job(config, console, lambda: storage.join(config.out, "data"))
        return _train_opened(job, ended, address, console)


def _train_opened(job: OpenedJob, ended: bytes | None, address: str | None, console: Console) -> TrainResult:
    """ended: the lease of a job that died."""
    config = job.config
    with cluster.connect(address):
        plan = sizing.plan_workers(config)
        for remark in plan.wanted.list_remarks():
            console.say(remark)
        storage.make_folder(config.out)
        cluster.check_shared(config.out, job.list_files())
        with Lease.acquire(config.out, say=console.say, ended=ended) as lease:
            if finished := check_out(config):  # another job has come and gone meanwhile
                return TrainResult(finished.location, finished.scores, was_finished=True)
            card = _train(job, plan, lease, console)
            check_token(config.out, lease.token)
            storage.write_atomic(storage.join(config.out, SCORES_FILE), json.dumps(card.scores, indent=1))
    return TrainResult(card.location, card.scores, was_finished=False)


def _train(job: OpenedJob, plan: sizing.WorkerPlan, lease: Lease, console: Console) -> BundleCard:
    """Everything that writes into out, but the scores, which come last."""
    config = job.config
    console.log_into(config.out)
    mend_list(config.out, console.say)
    # Before the config of a longer run: one with scores is whole, and these come last again.
    storage.delete_file(storage.join(config.out, SCORES_FILE))
    page = f"{RESOLVED_HEADER}{job.dataset.fingerprint()}\n{config.to_yaml()}"
    storage.write_atomic(storage.join(config.out, CONFIG_FILE), page)
    write_splits(job.dataset, storage.join(config.out, SPLITS_FOLDER))
    board = boards.start_board()
    task = job.make_task(plan.threads, board, lease.token)
    console.say(f"training {job.describe()}, {plan.describe()} x {plan.cpus:g} CPU {plan.gpus:g} GPU -> {config.out}")
    with boards.unwrap_errors(board):
        with watch_board(board, TrainProgress(console, config.training.epochs, plan.wanted.describe_wait)):
            best = run_training(task, plan)
        check_token(config.out, lease.token)
        with console.status("sealing the bundle"):
            card: BundleCard = ray.get(_seal_in_worker.remote(task, best, _data_facts(job.dataset, job.facts)))
    return card


def run_training(task: TrainTask, plan: sizing.WorkerPlan) -> ray.train.Checkpoint:
    """Runs Ray Train to the end and returns the checkpoint with the best val mIoU. An earlier run goes on."""
    load_tensorflow()  # Ray's trainer and the loop import it: late and quietly
    from batchseg.train_loop import run_worker

    filesystem, path = storage.filesystem_of(task.config.out)
    trainer = find_trainer()(
        run_worker,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=plan.size,
            use_gpu=plan.gpus > 0,
            resources_per_worker={"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})},
        ),
        run_config=RunConfig(
            storage_path=path,
            # Ours, which knows the endpoint of AWS_ENDPOINT_URL_S3; of a local path Ray makes folders by itself.
            storage_filesystem=filesystem if storage.is_remote(task.config.out) else None,
            name=CHECKPOINT_FOLDER,
            failure_config=FailureConfig(max_failures=task.config.cluster.max_failures),
            # By their ranks the best on val and the last two; what a kill cut off is never the only one.
            checkpoint_config=CheckpointConfig(
                num_to_keep=3, checkpoint_score_attribute="rank", checkpoint_score_order="max"
            ),
        ),
    )
    with _ask_again_sooner() if plan.min_workers is not None else nullcontext():
        result = _fit_interruptibly(trainer)
    boards.raise_reported(task.board)
    checkpoints = result.best_checkpoints or []
    if not checkpoints:
        raise RuntimeError("Ray Train ended without a checkpoint")
    return max(checkpoints, key=lambda pair: pair[1]["val_miou"])[0]


def find_trainer() -> Any:
    """Ray's trainer; on a Ray without dashboard, as our own is, without the actor that removes what a dead one leaves.

    That actor asks the dashboard every second whether the trainer lives. Where there is none each question takes ten
    seconds, and the end of the training waits for the last (2.60). An own Ray ends with its driver, and leaves nothing.
    """
    from ray.train.tensorflow import TensorflowTrainer

    if cluster.has_dashboard():
        return TensorflowTrainer

    class Trainer(TensorflowTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer


@contextmanager
def _ask_again_sooner() -> Iterator[None]:
    """For a group that may be smaller: how long Ray waits for what it needs before it looks what there is by then.

    A node that is lost counts as there until Ray misses it, and with 60 s, its own figure, a minute was lost with it.
    """
    if _START_TIMEOUT in os.environ:  # the user's choice
        yield
        return
    os.environ[_START_TIMEOUT] = "15"
    try:
        yield
    finally:
        del os.environ[_START_TIMEOUT]


def _fit_interruptibly(trainer: Any) -> Any:
    """trainer.fit(), but Ctrl-C is a KeyboardInterrupt: Ray Train's handler ends the process with 0, and stays on."""
    if threading.current_thread() is not threading.main_thread():
        return trainer.fit()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


@ray.remote(num_cpus=1, num_gpus=0)
def _seal_in_worker(task: TrainTask, checkpoint: Any, data: dict[str, Any]) -> BundleCard:
    """In a process of its own: the driver has no model, and no GPU."""
    return seal_bundle(task, checkpoint, data)


def seal_bundle(task: TrainTask, checkpoint: ray.train.Checkpoint, data: dict[str, Any]) -> BundleCard:
    """Checkpoint -> bundle: a float32 model with its weights, its scores, and a golden image with its mask."""
    from batchseg.models import build_model
    from batchseg.predict import make_forward

    with checkpoint.as_directory() as folder:
        state, arrays = read_checkpoint(folder)
    spec = task.config.model.model_copy(update={"encoder_weights": "none"})
    model = build_model(spec, len(task.classes), batch_norm_momentum=task.config.training.batch_norm_momentum)
    model.set_weights(arrays["average"] or arrays["weights"])
    canvas = _crop_center(load_sample(task.val[0], task.classes, task.geometry).fitted.canvas, task.geometry.stride)
    golden = GoldenSample(canvas, make_forward(model)(canvas[None])[0][0])
    return save_bundle(
        storage.join(task.config.out, BUNDLE_FOLDER),
        model,
        classes=task.classes,
        geometry=task.geometry,
        golden=golden,
        facts={
            "model": task.config.model.model_dump(mode="json"),
            "data": data,
            "scores": {**state["scores"], "epoch": state["history"][-1]["epoch"]},
        },
    )


def _crop_center(canvas: Any, stride: int) -> Any:
    """At most _GOLDEN_SIDE pixels a side, multiples of the stride, out of the middle; mirrored where it is smaller."""
    height, width = (max(stride, min(side, _GOLDEN_SIDE) // stride * stride) for side in canvas.shape[:2])
    ignored = np.zeros(canvas.shape[:2], np.uint8)
    return np.ascontiguousarray(geo.crop_center(canvas, ignored, (height, width))[0])


def _data_facts(dataset: Dataset, facts: doctor.Diagnosis) -> dict[str, Any]:
    pixels = np.asarray(facts.class_pixels["train"], np.float64)
    return {
        "fingerprint": dataset.fingerprint(),
        "images": {split: len(samples) for split, samples in dataset.splits.items()},
        "class_shares": (pixels / max(1.0, pixels.sum())).tolist(),
        "brightness": facts.brightness,
        "single_class_share": facts.single_class["train"] / max(1, facts.checked["train"]),
    }


if __name__ == "__main__":
    import sys

    from batchseg.cli import main

    main(["train", *sys.argv[1:]])
