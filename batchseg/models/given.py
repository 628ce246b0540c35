"""A model that somebody else built: opened without running any code of it, and checked."""

import os
from typing import Any

import keras
import numpy as np
from keras import layers

from batchseg.errors import UserError

PROBE_HW = (64, 96)
"""Not square and not of any common input size: a model of a fixed size or with swapped axes shows here."""


def open_given_model(path: str, num_classes: int) -> keras.Model:
    """A .keras file -> the same model, taking uint8 NxHxWx3 and giving float32 NxHxWxC.

    Raises UserError when the file is missing, cannot be read in safe mode, or does not segment into num_classes.
    """
    if not os.path.isfile(path):
        raise UserError(f"model.architecture: {path} does not exist; it must be a model saved as .keras")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types for a file that it cannot read
        raise UserError(f"model.architecture: {path} cannot be loaded by plain Keras in safe mode: {error}") from error
    _check_shapes(path, model, num_classes)
    wrapped = _wrap(model)
    _check_probe(path, wrapped, num_classes)
    return wrapped


def _wrap(model: keras.Model) -> keras.Model:
    takes_uint8 = model.inputs[0].dtype == "uint8"
    if takes_uint8 and model.outputs[0].dtype == "float32":
        return model
    image = keras.Input((None, None, 3), dtype="uint8", name="image_rgb")
    pixels = image if takes_uint8 else layers.Rescaling(1.0, dtype="float32", name="to_float")(image)
    logits = layers.Activation("linear", dtype="float32", name="logits")(model(pixels))
    return keras.Model(image, logits, name="batchseg")


def _check_shapes(path: str, model: Any, num_classes: int) -> None:
    inputs, outputs = (getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or [])
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"model.architecture: {path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed"
        )
    taken, given = tuple(inputs[0].shape), tuple(outputs[0].shape)
    if len(taken) != 4 or taken[3] != 3:
        raise UserError(f"model.architecture: {path} takes {_show(taken)}; NxHxWx3 is needed")
    if taken[:3] != (None, None, None):
        raise UserError(f"model.architecture: {path} takes {_show(taken)}; batch, height and width must be free (None)")
    if len(given) != 4:
        raise UserError(f"model.architecture: {path} gives {_show(given)}; NxHxWxC is needed")
    if given[3] != num_classes:
        raise UserError(
            f"model.architecture: {path} gives {given[3]} channels, but there are {num_classes} classes; "
            "it must give one channel of logits a class"
        )
    if not outputs[0].dtype.startswith(("float", "bfloat")):
        raise UserError(f"model.architecture: {path} gives {outputs[0].dtype}; logits of a float type are needed")


def _check_probe(path: str, model: keras.Model, num_classes: int) -> None:
    """One grey picture through it: size kept, and logits rather than probabilities."""
    height, width = PROBE_HW
    try:
        scores = keras.ops.convert_to_numpy(model(np.full((1, height, width, 3), 128, np.uint8), training=False))
    except Exception as error:  # whatever the backend raises
        raise UserError(f"model.architecture: {path} fails on a picture of {height}x{width}: {error}") from error
    if scores.shape != (1, height, width, num_classes):
        raise UserError(
            f"model.architecture: {path} gives {scores.shape[1]}x{scores.shape[2]} for a picture of "
            f"{height}x{width}; the size must be kept"
        )
    if num_classes > 1 and (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):
        raise UserError(f"model.architecture: {path} gives probabilities; save it without its last softmax")


def _show(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)
