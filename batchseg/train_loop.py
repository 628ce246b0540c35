"""What ONE training worker runs: feed -> step -> all-reduce -> report. Ray Train starts it on every worker."""

import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import ray
import ray.train

from batchseg import geometry as geo
from batchseg import storage
from batchseg.board import Throttle, report_errors
from batchseg.config import ModelConfig
from batchseg.errors import ImageError, UserError
from batchseg.feed import MemoryBudget, SampleCache, Shard, TrainFeed, iterate_val
from batchseg.losses import build_losses
from batchseg.metrics import ConfusionMatrix
from batchseg.models import build_model, download_weights
from batchseg.optimizers import WeightAverage, build_optimizer
from batchseg.predict import make_runner
from batchseg.runtime import load_tensorflow
from batchseg.train_step import StepOptions, make_step, sum_counts
from batchseg.train_task import TrainTask, is_stalled, list_variables, read_checkpoint, write_checkpoint

VAL_BATCH_SIZE = 8


def run_worker(loop_config: dict[str, Any]) -> None:
    """The entry point that Ray Train calls. Every worker reports once per epoch; rank 0 adds the checkpoint.

    What the user has to mend goes to the board: Ray Train would start the group again and again, and it ends at once.
    """
    task: TrainTask = loop_config["task"]
    if "fatal" in ray.get(task.board.read.remote()):
        return
    with report_errors(task.board):
        train_epochs(task)


def train_epochs(task: TrainTask) -> None:
    """From the last checkpoint, if there is one, to the last epoch."""
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    worker = Worker(task, shard, resumes=checkpoint is not None)
    history = worker.resume(checkpoint)
    for epoch in range(len(history), task.config.training.epochs):
        if is_stalled(history, task.config.training.stop_after):
            return
        started = time.monotonic()
        loss = worker.train_epoch(epoch)
        trained = time.monotonic()
        confusion = worker.score_val(epoch) if worker.is_scored(epoch) else None
        history.append(
            {
                "epoch": epoch + 1,
                "loss": loss,
                **describe_val(confusion, task.classes.names),
                "learning_rate": worker.learning_rate,
                "train_seconds": round(trained - started, 2),
                "val_seconds": round(time.monotonic() - trained, 2),
            }
        )
        worker.report(history, confusion)


def describe_val(confusion: ConfusionMatrix | None, class_names: Sequence[str]) -> dict[str, float | None]:
    """The columns of an epoch's row about val; None where val was not scored, or has no valid pixel of a class."""
    if confusion is None:
        return dict.fromkeys(("val_miou", "val_pixel_accuracy", *(f"val_iou/{name}" for name in class_names)))
    values = {
        "val_miou": confusion.miou,
        "val_pixel_accuracy": confusion.pixel_accuracy,
        **{f"val_iou/{name}": float(iou) for name, iou in zip(class_names, confusion.iou, strict=True)},
    }
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


class Worker:
    """One worker's model, optimizer and data."""

    def __init__(self, task: TrainTask, shard: Shard, *, resumes: bool = False):
        """resumes: a checkpoint follows, so that no encoder weights are needed."""
        self.task, self.shard, config = task, shard, task.config
        self.tf = load_tensorflow(task.threads)
        keras.utils.set_random_seed(config.training.seed)
        spec = config.model.model_copy(update={"encoder_weights": "none"}) if resumes else config.model
        download_weights(spec.encoder, spec.encoder_width, spec.encoder_weights)
        self.strategy = self._make_strategy()
        budget = MemoryBudget(int(config.training.cache_gb * 1e9))
        train_cache = SampleCache(task.train, task.classes, task.geometry, budget, fits_masks=True)
        self.val_cache = SampleCache(task.val, task.classes, task.geometry, budget, fits_masks=False)
        self.feed = TrainFeed(
            train_cache,
            shard,
            config.training.batch_size,
            config.training.seed,
            config.augment,
            task.crop_hw,
            threads=max(2, task.threads),
        )
        self._build(spec)
        self._progress_due = Throttle(0.5)

    def _make_strategy(self) -> Any:
        if self.shard.world_size == 1:
            return self.tf.distribute.get_strategy()
        return self.tf.distribute.MultiWorkerMirroredStrategy()

    def _build(self, spec: ModelConfig) -> None:
        config = self.task.config
        model_options: dict[str, Any] = {
            "num_classes": len(self.task.classes),
            "batch_norm_momentum": config.training.batch_norm_momentum,
        }
        keras.config.set_dtype_policy(config.training.precision)
        with self.strategy.scope():
            self.model = build_model(spec, **model_options)
            encoder = [layer for layer in self.model.layers if layer.name == "encoder"]
            self.optimizer = build_optimizer(
                config.training,
                self.feed.steps_per_epoch,
                self.model.trainable_variables,
                encoder[0].trainable_variables if encoder else (),
            )
        self.average = WeightAverage(self.model, config.training.average_epochs * self.feed.steps_per_epoch)
        # Val scores what will be shipped: a float32 twin, whatever training computes in.
        keras.config.set_dtype_policy("float32")
        self.twin = build_model(config.model.model_copy(update={"encoder_weights": "none"}), **model_options)
        self.runner = make_runner(self.twin, self.task.geometry.stride, VAL_BATCH_SIZE)
        self.step = make_step(
            self.tf,
            self.strategy,
            self.model,
            self.optimizer,
            build_losses(config.training, self.task.class_weights),
            self.average,
            StepOptions(config.training.accumulation, config.training.xla),
        )

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.learning_rate.numpy())

    def train_epoch(self, epoch: int) -> float:
        """Runs every step of an epoch and returns the mean loss. Raises UserError when the loss is not finite."""
        losses = []
        for number, (images, masks) in enumerate(self.feed.iterate_epoch(epoch)):
            loss = float(self.step(images, masks).numpy())
            if not np.isfinite(loss):
                raise UserError(self._describe_nan(epoch, number))
            losses.append(loss)
            self._show("train", epoch, number + 1, self.feed.steps_per_epoch, loss=loss)
        return float(np.mean(losses))

    def is_scored(self, epoch: int) -> bool:
        """True for every `val_every`th epoch and the last."""
        training = self.task.config.training
        return (epoch + 1) % training.val_every == 0 or epoch + 1 == training.epochs

    def score_val(self, epoch: int) -> ConfusionMatrix:
        """The confusion matrix over the whole val split, at each image's own size, equal on every worker."""
        self.twin.set_weights([np.asarray(weight) for weight in self.average.weights])
        total = ConfusionMatrix.empty(len(self.task.classes))
        samples = iterate_val(self.val_cache, self.shard, max(2, self.task.threads))
        count = len(self.shard.take(range(len(self.val_cache))))
        items = ((sample, sample.canvas, sample.plan) for sample in samples)
        for number, (sample, outcome) in enumerate(self.runner.stream(items)):
            if isinstance(outcome, ImageError):
                raise UserError(f"val cannot be scored: an image of {outcome}. Make input.size smaller.")
            mask = geo.restore_mask(outcome.ids, sample.plan)
            total += ConfusionMatrix.from_masks(sample.mask, mask, len(self.task.classes))
            self._show("val", epoch, number + 1, count)
        return ConfusionMatrix(sum_counts(self.tf, self.strategy, total.counts))

    def report(self, history: list[dict[str, Any]], confusion: ConfusionMatrix | None) -> None:
        """Tells Ray Train the scores of the last epoch; rank 0 hands over a checkpoint and writes metrics.csv."""
        last = history[-1]
        # Ray keeps the best checkpoints by this; one without a score is never among them.
        metrics = {"epoch": last["epoch"], "val_miou": -1.0 if confusion is None else last["val_miou"] or 0.0}
        if self.shard.rank != 0:
            ray.train.report(metrics)
            return
        scores = confusion.to_scores(self.task.classes.names, len(self.task.val)) if confusion else None
        with tempfile.TemporaryDirectory() as folder:
            state = {"history": history, "scores": scores, "fingerprint": self.task.fingerprint}
            write_checkpoint(folder, list_variables(self.model, self.optimizer, self.average), state)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        write_metrics_csv(storage.join(self.task.config.out, "metrics.csv"), history)
        self.task.board.put.remote(history=history)

    def resume(self, checkpoint: Any) -> list[dict[str, Any]]:
        """Takes up weights, optimizer and history of a checkpoint; an empty history without one."""
        if checkpoint is None:
            return []
        with checkpoint.as_directory() as folder:
            state, arrays = read_checkpoint(folder)
        if state["fingerprint"] != self.task.fingerprint:
            raise UserError(
                f"out {self.task.config.out} was begun on other data: classes, splits or files of "
                f"{self.task.config.data} have changed since. Give another --out, or delete that folder."
            )
        for group, variables in list_variables(self.model, self.optimizer, self.average).items():
            if [variable.shape for variable in variables] != [array.shape for array in arrays[group]]:
                raise UserError(f"checkpoint {checkpoint.path} does not fit the model: its {group} differ in shape")
            for variable, array in zip(variables, arrays[group], strict=True):
                variable.assign(array)
        history: list[dict[str, Any]] = state["history"]
        if self.shard.rank == 0:
            self.task.board.put.remote(history=history, resumed=len(history))
            # A kill may have come between the checkpoint and its line.
            write_metrics_csv(storage.join(self.task.config.out, "metrics.csv"), history)
        return history

    def _show(self, phase: str, epoch: int, step: int, steps: int, **values: float) -> None:
        if self.shard.rank == 0 and (self._progress_due.is_due() or step == steps):
            self.task.board.put.remote(
                phase=phase,
                epoch=epoch + 1,
                step=step,
                steps=steps,
                images_per_epoch=self.feed.steps_per_epoch * self.feed.batch_size,
                **values,
            )

    def _describe_nan(self, epoch: int, step: int) -> str:
        names = [self.task.train[index].name for index in self.feed.batch_indices(epoch, step)]
        return (
            f"the loss is not a number in epoch {epoch + 1}, step {step + 1}. Lower training.learning_rate, or look at "
            f"the files of that batch: {', '.join(names)}. The last checkpoint is kept."
        )


def write_metrics_csv(location: str, history: Iterable[dict[str, Any]]) -> None:
    """One line per epoch; always the whole history, so that a resumed run leaves no epoch out or in twice."""
    rows = list(history)
    cells = [["" if value is None else f"{value:.6g}" for value in row.values()] for row in rows]
    lines = [",".join(line) for line in [list(rows[0]), *cells]]
    storage.write_atomic(location, "\n".join(lines) + "\n")
