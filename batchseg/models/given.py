"""A model that somebody else built: opened without running any code of it, and checked."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from batchseg.errors import UserError

PROBE_HW = (64, 96)
"""Not square and not of any common input size: a model of a fixed size or with swapped axes shows here."""

SCALING = (layers.Rescaling, layers.Normalization)
FLOAT_POLICIES = ("float", "bfloat", "mixed_")


def open_given_model(path: str, num_classes: int) -> keras.Model:
    """A .keras file -> the same model, taking uint8 NxHxWx3 and giving float32 NxHxWxC.

    It computes in the current dtype policy, whatever it was saved under: float32 throughout, or mixed but for scaling,
    the last layer, and what a file in mixed precision holds in float32.
    Raises UserError when the file is missing, cannot be read in safe mode, or does not segment into num_classes.
    """
    if not os.path.isfile(path):
        raise UserError(f"model.architecture: {path} does not exist; it must be a model saved as .keras")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types for a file that it cannot read
        raise UserError(f"model.architecture: {path} cannot be loaded by plain Keras in safe mode: {error}") from error
    _check_shapes(path, model, num_classes)
    wrapped = _wrap(_apply_policy(path, model))
    _check_probe(path, wrapped, num_classes)
    return wrapped


def _apply_policy(path: str, model: keras.Model) -> keras.Model:
    """The model under the current dtype policy. Keras restores the policy that each layer was saved with."""
    wanted = keras.config.dtype_policy().name
    # Inputs have no policy: they show the current one.
    parts = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model | layers.InputLayer)]
    policies = {layer.name: layer.dtype_policy.name for layer in parts}
    for name, policy in policies.items():
        if "_from_" in policy:
            raise UserError(f"model.architecture: {path} is quantised (layer {name} is {policy}); save it before that")
    held = {_find_last(model).name, *(layer.name for layer in parts if isinstance(layer, SCALING))}
    if any(policy.startswith("mixed_") for policy in policies.values()):
        held |= {name for name, policy in policies.items() if policy == "float32"}
    if all(policy == ("float32" if name in held else wanted) for name, policy in policies.items()):
        return model
    with tempfile.TemporaryDirectory() as folder:
        # Through a page of the current Keras: layers that are shared, nested or wrapped come back as they were.
        keras.saving.save_model(model, folder, zipped=False)
        page = Path(folder, "config.json")
        page.write_text(json.dumps(_change_policies(json.loads(page.read_text()), held, wanted)))
        try:
            return keras.saving.load_model(folder, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises many types, as above
            raise UserError(f"model.architecture: {path} cannot be built to compute in {wanted}: {error}") from error


def _change_policies(part: Any, held: set[str], policy: str) -> Any:
    """A part of a model's page with `policy` in place of each float policy; float32 within the layers named in held."""
    if isinstance(part, list):
        return [_change_policies(each, held, policy) for each in part]
    if not isinstance(part, dict):
        return part
    config = part.get("config")
    if isinstance(config, dict):
        if str(part.get("class_name")).startswith("DTypePolicy"):
            # Those of whole numbers stay, and a map of several becomes one.
            is_float = str(config.get("name", "float")).startswith(FLOAT_POLICIES)
            named = {**part, "class_name": "DTypePolicy", "config": {"name": policy}}
            return named if is_float else part
        policy = "float32" if config.get("name") in held else policy
    return {key: _change_policies(each, held, policy) for key, each in part.items()}


def _find_last(model: Any) -> Any:
    """The layer that gives the output, within nested models too."""
    while isinstance(model, keras.Model):
        model = model.outputs[0]._keras_history.operation
    return model


def _wrap(model: keras.Model) -> keras.Model:
    takes_uint8 = model.inputs[0].dtype == "uint8"
    if takes_uint8 and model.outputs[0].dtype == "float32":
        return model
    image = keras.Input((None, None, 3), dtype="uint8", name="image_rgb")
    pixels = image if takes_uint8 else layers.Rescaling(1.0, dtype="float32", name="image_as_float")(image)
    # Its call, not itself: so its layers are layers of the new model, where an "encoder" among them is found.
    logits = layers.Activation("linear", dtype="float32", name="logits_as_float")(model.call(pixels))
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
