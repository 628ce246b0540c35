"""One training worker: its model, optimizer and data, and what it does with them."""

import tempfile
import time
from typing import Any

import keras
import numpy as np
import ray
import ray.train

from batchseg import bundle as bundles
from batchseg import geometry as geo
from batchseg.board import Throttle
from batchseg.config import ModelConfig
from batchseg.errors import ImageError, UserError
from batchseg.feed import MemoryBudget, SampleCache, Shard, TrainFeed, iterate_val
from batchseg.journal import Journal
from batchseg.lease import check_token
from batchseg.losses import build_losses
from batchseg.metrics import ConfusionMatrix
from batchseg.models import build_model, download_weights, load_start
from batchseg.optimizers import WeightAverage, build_optimizer, build_schedule
from batchseg.predict import make_runner
from batchseg.runtime import load_tensorflow
from batchseg.train_step import StepOptions, make_step, sum_counts
from batchseg.train_task import (
    Progress,
    TrainTask,
    are_finite,
    describe_checkpoint,
    list_variables,
    read_checkpoint,
    write_checkpoint,
)
from batchseg.val_sheet import ValPicture, pick_evenly

VAL_BATCH_SIZE = 8
_VAL_PICTURES = 4
_STEPS_PER_LOOK = 10
"""How often the workers ask together whether a node of theirs is to be taken away; clouds say so 30 to 120 s ahead."""


class Worker:
    """One worker's model, optimizer and data."""

    def __init__(self, task: TrainTask, shard: Shard, *, resumes: bool = False):
        """resumes: a checkpoint follows, so that no encoder weights are needed."""
        self.task, self.shard, config = task, shard, task.config
        self.tf = load_tensorflow(task.threads)
        keras.utils.set_random_seed(config.training.seed)
        spec = config.model
        if resumes or spec.start_from or spec.is_given:
            spec = spec.model_copy(update={"encoder_weights": "none"})
        self.strategy = self._make_strategy()  # first: TensorFlow refuses it once anything has been computed
        download_weights(spec.encoder, spec.encoder_width, spec.encoder_weights)
        budget = MemoryBudget(int(config.training.cache_gb * 1e9))
        train_cache = SampleCache(task.train, task.classes, task.geometry, budget, fits_masks=True)
        self.val_cache = SampleCache(task.val, task.classes, task.geometry, budget, fits_masks=False)
        self.feed = TrainFeed(
            train_cache,
            shard,
            config.training.batch_size,
            config.training.seed,
            config.augment.apply_strength(),
            task.crop_hw,
            threads=max(2, task.threads),
        )
        self._build(spec)
        if spec.start_from and not resumes:
            self._start_from(spec.start_from)
        self._has_notice = False
        self._progress_due = Throttle(0.5)
        self._journal: Journal | None = None
        self._pictures: list[ValPicture] = []

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

    def _start_from(self, location: str) -> None:
        """Takes the weights of a bundle; the average begins with them."""
        card = bundles.read_card(location)
        keep_head = card.classes.names == self.task.classes.names
        report = load_start(self.model, bundles.load_model(card), keep_head=keep_head)
        self.average.restart()
        self.say(f"start from {location}: {report.describe()}")

    def say(self, text: str) -> None:
        """One line for the user, said once however many workers there are."""
        if self.shard.rank == 0:
            ray.get(self.task.board.put.remote(note=text))

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.learning_rate.numpy())

    def train_epoch(self, epoch: int, progress: Progress) -> None:
        """Runs the steps of an epoch that `progress` does not have yet, and adds their losses and seconds to it.

        Raises UserError when a loss is not finite, or what would go into a checkpoint.
        """
        every, started = self.task.config.training.checkpoint_steps, time.monotonic()
        first = len(progress.losses)
        for number, (images, masks) in enumerate(self.feed.iterate_epoch(epoch, first), start=first + 1):
            loss = float(self.step(images, masks).numpy())
            if not np.isfinite(loss):
                raise UserError(self._describe_nan("the loss is", epoch, number - 1))
            progress.losses.append(loss)
            self._show("train", epoch, number, self.feed.steps_per_epoch, loss=loss)
            is_last = number == self.feed.steps_per_epoch
            is_noticed = self._gets_notice(number)
            is_kept = is_noticed or (every > 0 and number % every == 0 and not is_last)
            # The gradients of a finite loss need not be. Every worker has the same weights, and finds the same.
            if (is_kept or is_last) and not are_finite(list_variables(self.model, self.optimizer, self.average)):
                raise UserError(self._describe_nan("a weight or its gradient is", epoch, number - 1))
            if is_kept:
                progress.seconds += time.monotonic() - started
                self._report(progress, None)
                started = time.monotonic()
            if is_noticed:
                self.say(f"a node is to be taken away: a checkpoint is made, {progress.describe()}; training goes on")
        progress.seconds += time.monotonic() - started

    def _gets_notice(self, step: int) -> bool:
        """True once, when Ray has been told that a node of these workers is drained; equal on every worker."""
        is_looked_for = step % _STEPS_PER_LOOK == 0 or step == self.feed.steps_per_epoch
        if self._has_notice or not is_looked_for:
            return False
        self._has_notice = ray.train.get_preemption_info() is not None
        return self._has_notice

    def is_scored(self, epoch: int) -> bool:
        """True for every `val_every`th epoch and the last."""
        training = self.task.config.training
        return (epoch + 1) % training.val_every == 0 or epoch + 1 == training.epochs

    def _is_pictured(self, epoch: int) -> bool:
        """True where rank 0 draws what the model says on some val images: in the first scored epoch after so many."""
        training = self.task.config.training
        apart = -(-training.picture_every // training.val_every) * training.val_every
        return self.shard.rank == 0 and apart > 0 and ((epoch + 1) % apart == 0 or epoch + 1 == training.epochs)

    def score_val(self, epoch: int) -> ConfusionMatrix:
        """The confusion matrix over the whole val split, at each image's own size, equal on every worker."""
        self.twin.set_weights([np.asarray(weight) for weight in self.average.weights])
        total = ConfusionMatrix.empty(len(self.task.classes))
        samples = iterate_val(self.val_cache, self.shard, max(2, self.task.threads))
        count = len(self.shard.take(range(len(self.val_cache))))
        items = ((sample, sample.canvas, sample.plan) for sample in samples)
        self._pictures = []
        pictured = pick_evenly(count, _VAL_PICTURES) if self._is_pictured(epoch) else []
        for number, (sample, outcome) in enumerate(self.runner.stream(items)):
            if isinstance(outcome, ImageError):
                raise UserError(f"val cannot be scored: an image of {outcome}. Make input.size smaller.")
            mask = geo.restore_mask(outcome.ids, sample.plan)
            total += ConfusionMatrix.from_masks(sample.mask, mask, len(self.task.classes))
            if number in pictured:
                height, width = sample.plan.content_hw
                name = self.task.val[self.shard.take(range(len(self.task.val)))[number]].name
                self._pictures.append(ValPicture(name, sample.canvas[:height, :width], sample.mask, mask))
            self._show("val", epoch, number + 1, count)
        return ConfusionMatrix(sum_counts(self.tf, self.strategy, total.counts))

    def report_epoch(self, progress: Progress, confusion: ConfusionMatrix | None) -> None:
        """Tells Ray Train the scores of the last epoch; rank 0 hands over a checkpoint and keeps the journal."""
        scores = confusion.to_scores(self.task.classes.names, len(self.task.val)) if confusion else None
        self._report(progress, scores)
        if self.shard.rank == 0:
            assert self._journal is not None, "the first worker keeps it"
            self._journal.write_epoch(progress.history, self._pictures if confusion else [])
            self.task.board.put.remote(history=progress.history)

    def _report(self, progress: Progress, scores: dict[str, Any] | None) -> None:
        """Every worker reports equally often, Ray waits for all of them; rank 0 adds the checkpoint."""
        metrics = describe_checkpoint(progress)
        if self.shard.rank != 0:
            ray.train.report(metrics)
            return
        if self.task.lease:  # a driver that is gone, or was away for too long, may have a successor
            check_token(self.task.config.out, self.task.lease)
        state = {**progress.to_json(), "scores": scores, "fingerprint": self.task.fingerprint}
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(folder, list_variables(self.model, self.optimizer, self.average), state)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def resume(self, checkpoint: Any) -> Progress:
        """Takes up weights, optimizer and progress of a checkpoint; nothing is done yet without one."""
        if checkpoint is None:
            return self._begin(Progress([]))
        with checkpoint.as_directory() as folder:
            state, arrays = read_checkpoint(folder)
        if state["fingerprint"] != self.task.fingerprint:
            raise UserError(
                f"out {self.task.config.out} was begun on other data: classes, splits or files of "
                f"{self.task.config.data} have changed since. Give another --out, or delete that folder."
            )
        for group, variables in list_variables(self.model, self.optimizer, self.average).items():
            if group == "loss_scale" and len(variables) != len(arrays[group]):
                continue  # the checkpoint is of another precision
            if [variable.shape for variable in variables] != [array.shape for array in arrays[group]]:
                raise UserError(f"checkpoint {checkpoint.path} does not fit the model: its {group} differ in shape")
            for variable, array in zip(variables, arrays[group], strict=True):
                variable.assign(array)
        return self._begin(Progress.from_json(state))

    def _begin(self, progress: Progress) -> Progress:
        """Rank 0 opens the journal, in which a kill may have cut something off."""
        if self.shard.rank == 0:
            if progress.history or progress.losses:
                self.task.board.put.remote(history=progress.history, resumed=len(progress.history))
            training, steps = self.task.config.training, self.feed.steps_per_epoch
            rates = np.asarray(build_schedule(training, steps)(np.arange(training.epochs * steps)))
            self._journal = Journal(self.task.config.out, self.task.classes, progress.history, rates.tolist())
        return progress

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

    def _describe_nan(self, what: str, epoch: int, step: int) -> str:
        names = [self.task.train[index].name for index in self.feed.batch_indices(epoch, step)]
        return (
            f"{what} not a number in epoch {epoch + 1}, step {step + 1}. Lower training.learning_rate, or look at "
            f"the files of that batch: {', '.join(names)}. The last checkpoint is kept; the same out goes on from it."
        )
