"""Losses that add up: (y_true, y_pred) -> (sum, weight), so that any number of workers gives the same quotient.

y_true: integer NxHxW with 255 where ignored. y_pred: float32 logits NxHxWxC. Ignored pixels count in neither part; an
all-ignored batch gives (0, 0), and the step divides by at least a small number, so its loss is 0 and never NaN.
A weight depends on y_true alone: the step knows the weight of the whole batch before it asks the model.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from batchseg.classes import IGNORE_ID
from batchseg.config import TrainingConfig

Tensor = Any
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_DICE_SMOOTHING = 1.0


def cross_entropy(
    y_true: Tensor, y_pred: Tensor, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over valid pixels; the weight is their number, or the sum of their class weights.

    label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016). With weights, a
    pixel weighs as its true class says.
    """
    targets, weights = _weigh(y_true, y_pred, class_weights)
    scores = ops.log_softmax(y_pred, axis=-1)
    chosen = ops.sum(targets * scores, axis=-1)
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * ops.mean(scores, axis=-1)
    return -ops.sum(weights * chosen), ops.sum(weights)


def focal(
    y_true: Tensor, y_pred: Tensor, class_weights: Sequence[float] | None = None, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy times (1 - share of the true class) ** gamma (Lin et al. 2017), weighed as the cross-entropy is."""
    targets, weights = _weigh(y_true, y_pred, class_weights)
    chosen = ops.sum(targets * ops.log_softmax(y_pred, axis=-1), axis=-1)
    # Not below 0 by rounding, where a power has no slope.
    missing = ops.maximum(1 - ops.exp(chosen), keras.config.epsilon())
    return -ops.sum(weights * ops.power(missing, gamma) * chosen), ops.sum(weights)


def hard_pixels(
    y_true: Tensor, y_pred: Tensor, class_weights: Sequence[float] | None = None, share: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the hardest `share` of each image's valid pixels (Shrivastava et al. 2016, per image).

    The weight is the number of pixels kept, rounded up, so that an image with one valid pixel keeps it.
    """
    targets, weights = _weigh(y_true, y_pred, class_weights)
    per_pixel = -weights * ops.sum(targets * ops.log_softmax(y_pred, axis=-1), axis=-1)
    valid = _flatten(ops.cast(ops.not_equal(y_true, IGNORE_ID), "float32"))
    kept = ops.ceil(share * ops.sum(valid, axis=-1))
    # Ignored pixels have a loss of 0 and sort last.
    hardest = -ops.sort(-_flatten(per_pixel), axis=-1)
    rank = ops.cumsum(ops.ones_like(hardest), axis=-1)
    return ops.sum(hardest * ops.cast(rank <= kept[:, None], "float32")), ops.sum(kept)


def dice(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """1 - soft Dice, per image over the classes that its truth holds (Milletari et al. 2016), summed over images.

    The weight is the number of images with a valid pixel.
    """
    valid = ops.not_equal(y_true, IGNORE_ID)
    targets = _one_hot(y_true, valid, y_pred.shape[-1])
    shares = ops.softmax(y_pred, axis=-1) * ops.expand_dims(ops.cast(valid, "float32"), -1)
    overlap = ops.sum(targets * shares, axis=(1, 2))
    total = ops.sum(targets, axis=(1, 2)) + ops.sum(shares, axis=(1, 2))
    missing = 1 - (2 * overlap + _DICE_SMOOTHING) / (total + _DICE_SMOOTHING)
    return _average_present(missing, targets)


def lovasz(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Lovász-softmax (Berman et al. 2018), per image over the classes that its truth holds, summed over images.

    The weight is the number of images with a valid pixel.
    """
    num_classes = y_pred.shape[-1]
    valid = ops.not_equal(y_true, IGNORE_ID)
    targets = _one_hot(y_true, valid, num_classes)
    errors = ops.abs(targets - ops.softmax(y_pred, axis=-1))
    # Ignored pixels get the smallest error, so that they sort last, where their share of the sum is cut off.
    errors = ops.where(ops.expand_dims(valid, -1), errors, -1.0)
    errors, truth = (ops.transpose(_flatten_classes(values), (0, 2, 1)) for values in (errors, targets))
    order = ops.argsort(-ops.stop_gradient(errors), axis=-1)
    errors, truth = ops.take_along_axis(errors, order, axis=-1), ops.take_along_axis(truth, order, axis=-1)
    slopes = _jaccard_slopes(truth)
    return _average_present(ops.sum(ops.maximum(errors, 0.0) * slopes, axis=-1), targets)


LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "hard_pixels": hard_pixels,
}


def build_losses(config: TrainingConfig, class_weights: Sequence[float] | None) -> list[tuple[float, Loss]]:
    """(share, loss) for each entry of `training.losses`, with its options and the class weights filled in."""
    options: dict[str, dict[str, Any]] = {
        "cross_entropy": {"class_weights": class_weights, "label_smoothing": config.label_smoothing},
        "focal": {"class_weights": class_weights, "gamma": config.focal_gamma},
        "hard_pixels": {"class_weights": class_weights, "share": config.hard_pixel_share},
    }
    return [(share, partial(LOSSES[name], **options.get(name, {}))) for name, share in config.losses.items()]


def divide(total: Tensor, weight: Tensor) -> Tensor:
    """sum / weight, and 0 where nothing counted."""
    return total / ops.maximum(weight, keras.config.epsilon())


def _weigh(y_true: Tensor, y_pred: Tensor, class_weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """(one-hot targets NxHxWxC, what each pixel weighs NxHxW: 0 where ignored, else 1 or its class's weight)."""
    valid = ops.not_equal(y_true, IGNORE_ID)
    targets = _one_hot(y_true, valid, y_pred.shape[-1])
    if class_weights is None:
        return targets, ops.cast(valid, "float32")
    return targets, ops.sum(targets * ops.convert_to_tensor(class_weights, "float32"), axis=-1)


def _one_hot(y_true: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    ids = ops.where(valid, ops.cast(y_true, "int32"), 0)
    targets = ops.one_hot(ids, num_classes, dtype="float32")
    return targets * ops.expand_dims(ops.cast(valid, "float32"), -1)


def _average_present(per_class: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NxC -> the mean over the classes that each image's truth holds, summed; and the number of images that count."""
    present = ops.cast(ops.any(targets > 0, axis=(1, 2)), "float32")
    per_image = ops.sum(per_class * present, axis=-1) / ops.maximum(ops.sum(present, axis=-1), 1.0)
    return ops.sum(per_image), ops.sum(ops.max(present, axis=-1))


def _jaccard_slopes(truth: Tensor) -> Tensor:
    """Slopes of the Jaccard loss along errors sorted from large to small. truth: 0 or 1, NxCxP (ibid., algorithm 1)."""
    total = ops.sum(truth, axis=-1, keepdims=True)
    overlap = total - ops.cumsum(truth, axis=-1)
    union = total + ops.cumsum(1 - truth, axis=-1)
    # Where a class is absent its union begins at 1, and its loss is left out of the mean.
    loss = 1 - overlap / ops.maximum(union, 1.0)
    return ops.concatenate([loss[..., :1], loss[..., 1:] - loss[..., :-1]], axis=-1)


def _flatten(per_pixel: Tensor) -> Tensor:
    """NxHxW -> NxP."""
    return ops.reshape(per_pixel, (ops.shape(per_pixel)[0], -1))


def _flatten_classes(per_class: Tensor) -> Tensor:
    """NxHxWxC -> NxPxC."""
    return ops.reshape(per_class, (ops.shape(per_class)[0], -1, per_class.shape[-1]))
