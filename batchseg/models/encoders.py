"""Encoders of keras.applications, with the layers whose outputs a decoder takes up."""

import fcntl
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import keras

from batchseg.errors import UserError


@dataclass(frozen=True)
class EncoderSpec:
    """`taps` are the layers with the last features at strides 2, 4, 8, 16, 32. `constructor` takes alpha, weights."""

    constructor: Any
    taps: tuple[str, str, str, str, str]


# Both expect RGB in [-1, 1].
ENCODERS = {
    "mobilenet": EncoderSpec(
        keras.applications.MobileNet,
        ("conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"),
    ),
    "mobilenet_v2": EncoderSpec(
        keras.applications.MobileNetV2,
        # The last tap is before the widening to 1280 channels, which serves classification alone.
        (
            "block_1_expand_relu",
            "block_3_expand_relu",
            "block_6_expand_relu",
            "block_13_expand_relu",
            "block_16_project_BN",
        ),
    ),
}


def build_encoder(name: str, width: float, weights: str, *, padding: str = "keras") -> keras.Model:
    """RGB in [-1, 1], any size -> features at strides 2 to 32. weights: imagenet, a local path, or none.

    padding: keras, or torch (see pad_as_torch).

    Raises UserError when the weights are missing or do not fit.
    """
    spec = ENCODERS[name]
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise UserError(f"model.encoder_weights: {weights} does not exist; allowed are imagenet, none, or a path")
    try:
        # (None, None, 3) always: a fixed odd size makes keras.applications pad otherwise.
        base = spec.constructor(
            input_shape=(None, None, 3), alpha=width, include_top=False, weights=None if weights == "none" else weights
        )
    except Exception as error:
        if weights == "none":
            raise  # nothing was loaded: a fault of ours
        # Keras and h5py raise many types for a file that does not fit, and plain Exception for a download that fails.
        raise UserError(
            f"model.encoder_weights {weights} cannot be loaded into {name} of width {width:g}: {error}"
        ) from error
    if padding == "torch":
        base = pad_as_torch(base)
    return keras.Model(base.input, [base.get_layer(tap).output for tap in spec.taps], name="encoder")


def pad_as_torch(base: keras.Model) -> keras.Model:
    """The same graph and weights, with every ZeroPadding2D at one pixel on each of the four sides, as torchvision has.

    keras.applications pads right and below only: weights trained the other way then see all features half a
    cell off at each stride.
    """

    def pad_all_sides(layer: keras.Layer) -> keras.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D):
            settings["padding"] = ((1, 1), (1, 1))
        return type(layer).from_config(settings)

    clone = keras.models.clone_model(base, clone_function=pad_all_sides)
    clone.set_weights(base.get_weights())
    return clone


def download_weights(name: str, width: float, weights: str) -> None:
    """Fetches ImageNet weights, one process of a node at a time; does nothing for a path or none.

    Keras downloads to the final name, where another process would read a part. Not inside a distribution strategy:
    there, making variables waits for the other workers, which wait for the lock.
    """
    if weights != "imagenet":
        return
    with open(os.path.join(tempfile.gettempdir(), f"batchseg-weights-{os.getuid()}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_encoder(name, width, weights)
