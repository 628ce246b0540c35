"""What ONE training worker runs: epoch after epoch, each reported. Ray Train starts it on every worker."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import ray.train

from batchseg.board import report_errors
from batchseg.feed import Shard
from batchseg.metrics import ConfusionMatrix
from batchseg.train_folder import check_out_is_seen
from batchseg.train_task import Progress, TrainTask, is_stalled
from batchseg.train_worker import Worker


def run_worker(loop_config: dict[str, Any]) -> None:
    """The entry point that Ray Train calls. Every worker reports once per epoch; rank 0 adds the checkpoint.

    What the user has to mend goes to the board: Ray Train would start the group again and again, and it ends at once.
    """
    task: TrainTask = loop_config["task"]
    if "fatal" in ray.get(task.board.read.remote()):
        return
    with report_errors(task.board):
        context = ray.train.get_context()
        shard = Shard(context.get_world_rank(), context.get_world_size())
        starts = ray.get(task.board.start_group.remote(shard.world_size)) if shard.rank == 0 else 1
        check_out_is_seen(task.config.out)
        train_epochs(task, shard, starts)


def train_epochs(task: TrainTask, shard: Shard, starts: int) -> None:
    """From the last checkpoint, if there is one, to the last epoch. starts: how often workers have begun."""
    checkpoint = ray.train.get_checkpoint()
    worker = Worker(task, shard, resumes=checkpoint is not None)
    progress = worker.resume(checkpoint)
    if starts > 1:
        worker.say(f"workers have started again, {shard.world_size} now (start {starts}): {progress.describe()}")
    for epoch in range(len(progress.history), task.config.training.epochs):
        if is_stalled(progress.history, task.config.training.stop_after):
            worker.say(f"ended after epoch {epoch}: no better val mIoU in {task.config.training.stop_after} scorings")
            return
        worker.train_epoch(epoch, progress)
        trained = time.monotonic()
        confusion = worker.score_val(epoch) if worker.is_scored(epoch) else None
        row = {
            "epoch": epoch + 1,
            "loss": float(np.mean(progress.losses)),
            **describe_val(confusion, task.classes.names),
            "learning_rate": worker.learning_rate,
            "train_seconds": round(progress.seconds, 2),
            "val_seconds": round(time.monotonic() - trained, 2),
        }
        progress = Progress([*progress.history, row])
        worker.report_epoch(progress, confusion)


def describe_val(confusion: ConfusionMatrix | None, class_names: Sequence[str]) -> dict[str, float | None]:
    """The columns of an epoch's row about val; None where val was not scored, or has no valid pixel of a class.

    Such a class is None whatever was predicted, as in the scores: its IoU of 0 would be of no mean.
    """
    if confusion is None:
        return dict.fromkeys(("val_miou", "val_pixel_accuracy", *(f"val_iou/{name}" for name in class_names)))
    by_class = np.where(confusion.counts.sum(1) > 0, confusion.iou, np.nan)
    values = {
        "val_miou": confusion.miou,
        "val_pixel_accuracy": confusion.pixel_accuracy,
        **{f"val_iou/{name}": float(iou) for name, iou in zip(class_names, by_class, strict=True)},
    }
    return {key: value if np.isfinite(value) else None for key, value in values.items()}
