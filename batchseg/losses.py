"""Losses that add up: (y_true, y_pred) -> (sum, weight), so that any number of workers gives the same quotient.

y_true: integer NxHxW with 255 where ignored. y_pred: float32 logits NxHxWxC. Ignored pixels count in neither part; an
all-ignored batch gives (0, 0), and the step divides by at least a small number, so its loss is 0 and never NaN.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from batchseg.classes import IGNORE_ID

Tensor = Any
_DICE_SMOOTHING = 1.0


def cross_entropy(
    y_true: Tensor, y_pred: Tensor, class_weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over valid pixels; the weight is their number, or the sum of their class weights."""
    valid = ops.not_equal(y_true, IGNORE_ID)
    targets = _one_hot(y_true, valid, y_pred.shape[-1])
    if class_weights is not None:
        targets = targets * ops.convert_to_tensor(class_weights, "float32")
    return -ops.sum(targets * ops.log_softmax(y_pred, axis=-1)), ops.sum(targets)


def dice(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """1 - soft Dice, per image over the classes that its truth holds (Milletari et al. 2016), summed over images.

    The weight is the number of images with a valid pixel.
    """
    valid = ops.not_equal(y_true, IGNORE_ID)
    targets = _one_hot(y_true, valid, y_pred.shape[-1])
    shares = ops.softmax(y_pred, axis=-1) * ops.expand_dims(ops.cast(valid, "float32"), -1)
    overlap = ops.sum(targets * shares, axis=(1, 2))
    total = ops.sum(targets, axis=(1, 2)) + ops.sum(shares, axis=(1, 2))
    present = ops.cast(ops.any(targets > 0, axis=(1, 2)), "float32")
    missing = 1 - (2 * overlap + _DICE_SMOOTHING) / (total + _DICE_SMOOTHING)
    per_image = ops.sum(missing * present, axis=-1) / ops.maximum(ops.sum(present, axis=-1), 1.0)
    return ops.sum(per_image), ops.sum(ops.max(present, axis=-1))


def _one_hot(y_true: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    ids = ops.where(valid, ops.cast(y_true, "int32"), 0)
    targets = ops.one_hot(ids, num_classes, dtype="float32")
    return targets * ops.expand_dims(ops.cast(valid, "float32"), -1)


def divide(total: Tensor, weight: Tensor) -> Tensor:
    """sum / weight, and 0 where nothing counted."""
    return total / ops.maximum(weight, keras.config.epsilon())
