"""AdamW with warm-up and cosine decay; weight decay on kernels alone."""

from typing import Any

import keras

from batchseg.config import TrainingConfig


def build_schedule(config: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to config.learning_rate, then cosine decay to 1 % of it at the last step."""
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=config.learning_rate / max(1, warmup_steps),
        decay_steps=max(1, total_steps - warmup_steps),
        alpha=0.01,
        warmup_target=config.learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def build_optimizer(config: TrainingConfig, steps_per_epoch: int, variables: list[Any]) -> Any:
    """AdamW for these trainable variables, built; wrapped for loss scaling under mixed_float16."""
    optimizer = keras.optimizers.AdamW(build_schedule(config, steps_per_epoch), weight_decay=config.weight_decay)
    # One-dimensional variables are the norms and biases.
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) <= 1])
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer
