"""AdamW and SGD with warm-up and decay, rates of their own for the encoder, and a moving average of weights."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import keras
from keras import ops

from batchseg.config import TrainingConfig

Tensor = Any
_LAST_SHARE = 0.01
_POLY_POWER = 0.9


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak`, then decay to 1 % of it at the last step.

    decay: `cosine` (Loshchilov and Hutter 2017), `poly` with power 0.9 (Chen et al. 2017), or `constant`.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, decay: str = "cosine"):
        self.peak, self.warmup_steps, self.total_steps, self.decay = peak, warmup_steps, total_steps, decay

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        warming = (step + 1) / max(1, self.warmup_steps)
        done = ops.clip((step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps), 0.0, 1.0)
        return self.peak * ops.where(step < self.warmup_steps, warming, self._decay(done))

    def _decay(self, done: Tensor) -> Tensor:
        if self.decay == "constant":
            return ops.ones_like(done)
        left = (1 + ops.cos(math.pi * done)) / 2 if self.decay == "cosine" else ops.power(1 - done, _POLY_POWER)
        return _LAST_SHARE + (1 - _LAST_SHARE) * left

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "total_steps", "decay")}


def build_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The learning rate at every step of the run. steps_per_epoch: steps in which the optimizer acts."""
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 2)
    return Schedule(config.learning_rate, warmup_steps, total_steps, config.schedule)


class _Grouped:
    """Over an optimizer of Keras: a share of the rate, a frozen start, and decoupled decay, for each variable.

    Keras has one rate for all. Decay follows the variable's own rate, as with parameter groups of other libraries.
    """

    def set_groups(self, shares: Sequence[float], frozen_steps: Sequence[int], decays: Sequence[float]) -> None:
        """One number each for every variable, in the order that `build` gets."""
        self._shares, self._frozen_steps, self._decays = list(shares), list(frozen_steps), list(decays)

    def update_step(self: Any, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        """Called by Keras for each variable: its share of the rate, its decay, then the optimizer's own step."""
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._shares[index]
        if self._frozen_steps[index]:
            rate *= ops.cast(self.iterations >= self._frozen_steps[index], variable.dtype)
        if self._decays[index]:
            self.assign_sub(variable, variable * rate * self._decays[index])
        super().update_step(gradient, variable, rate)  # type: ignore[misc]


class GroupedAdam(_Grouped, keras.optimizers.Adam):  # type: ignore[misc]
    """AdamW (Loshchilov and Hutter 2019) with rates by group."""


class GroupedSGD(_Grouped, keras.optimizers.SGD):  # type: ignore[misc]
    """SGD with Nesterov momentum, decoupled decay and rates by group."""


def build_optimizer(
    config: TrainingConfig, steps_per_epoch: int, variables: Sequence[Any], encoder: Collection[Any] = ()
) -> Any:
    """The optimizer for these trainable variables, built; wrapped for loss scaling under mixed_float16.

    encoder: those of `variables` that belong to a pretrained encoder; they take `encoder_rate` of the rate, and none
    during the first `freeze_encoder_epochs`.
    """
    options: dict[str, Any] = {
        "learning_rate": build_schedule(config, steps_per_epoch),
        # Gradients are those of the whole batch by now, so that this is the norm over all workers.
        "global_clipnorm": config.clip_norm or None,
    }
    kinds: dict[str, Any] = {"adamw": (GroupedAdam, {}), "sgd": (GroupedSGD, {"momentum": 0.9, "nesterov": True})}
    kind, extra = kinds[config.optimizer]
    optimizer = kind(**options, **extra)
    in_encoder = [id(variable) in {id(member) for member in encoder} for variable in variables]
    frozen_steps = round(config.freeze_encoder_epochs * steps_per_epoch)
    optimizer.set_groups(
        shares=[config.encoder_rate if inside else 1.0 for inside in in_encoder],
        frozen_steps=[frozen_steps if inside else 0 for inside in in_encoder],
        # One-dimensional variables are the norms and biases.
        decays=[config.weight_decay if len(variable.shape) > 1 else 0.0 for variable in variables],
    )
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(list(variables))
    return optimizer


class WeightAverage:
    """A moving average of all weights of a model, moving statistics included; it is what val scores and a bundle holds.

    horizon_steps: the average reaches back about that far; 0 is off, and `weights` are then the model's own. While
    fewer steps are done it reaches back over about a tenth of them, so that it never lags behind a young model.
    """

    def __init__(self, model: keras.Model, horizon_steps: float):
        self._sources = list(model.weights)
        self._keep = 1 - 1 / max(1.0, horizon_steps)
        self.variables = (
            [keras.Variable(source, dtype="float32", trainable=False, name="average") for source in self._sources]
            if horizon_steps > 1
            else []
        )

    def update(self, iterations: Tensor) -> None:
        """After a step of the optimizer; iterations: how many it has done."""
        done = ops.cast(iterations, "float32")
        keep = ops.minimum(self._keep, (1 + done) / (10 + done))
        for average, source in zip(self.variables, self._sources, strict=bool(self.variables)):
            average.assign(average + (1 - keep) * (ops.cast(source, "float32") - average))

    def restart(self) -> None:
        """Begins again from what the model's weights are now."""
        for average, source in zip(self.variables, self._sources, strict=bool(self.variables)):
            average.assign(source)

    @property
    def weights(self) -> list[Any]:
        """In the order of model.weights."""
        return list(self.variables or self._sources)
