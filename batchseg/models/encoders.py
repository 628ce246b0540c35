"""Encoders of keras.applications, with the layers whose outputs a decoder takes up."""

import fcntl
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from batchseg.errors import UserError
from batchseg.models.rewriting import rewrite

apps = keras.applications

# Scaled picture = picture * scale + offset, RGB of 0 to 255; one number, or one a channel.
Scaling = tuple[float | Sequence[float], float | Sequence[float]]
SIGNED: Scaling = (1 / 127.5, -1.0)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET: Scaling = (
    [1 / (255 * deviation) for deviation in DEVIATION],
    [-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)],
)
CENTRED: Scaling = (1.0, [-123.68, -116.779, -103.939])


@dataclass(frozen=True)
class EncoderSpec:
    """`taps` name the last features at strides 2, 4, 8, 16, 32 (or 4 to 32): outputs of layers, or with < their inputs.

    `settings` go to the constructor; `has_width`: it takes alpha. `is_rewritten`: never used as it comes.
    """

    constructor: Any
    taps: tuple[str, ...]
    scaling: Scaling = SIGNED
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_width: bool = False
    is_rewritten: bool = False
    takes_bgr: bool = False


def _mobilenet_v3(constructor: Any, blocks: Sequence[str]) -> EncoderSpec:
    # Activations have no names of their own there: taps are what the next layer takes in.
    taps = (*(f"<expanded_conv_{block}depthwise_pad" for block in blocks), "<conv_1")
    return EncoderSpec(constructor, taps, settings={"include_preprocessing": False}, has_width=True)


def _efficientnet(constructor: Any) -> EncoderSpec:
    taps = (*(f"block{block}a_expand_activation" for block in (2, 3, 4, 6)), "<top_conv")
    # As it comes it scales within, in the compute type, and differently with weights from a path.
    return EncoderSpec(constructor, taps, IMAGENET, is_rewritten=True)


def _efficientnet_v2(constructor: Any) -> EncoderSpec:
    taps = ("<block2a_expand_conv", "<block3a_expand_conv", "block4a_expand_activation", "block6a_expand_activation")
    return EncoderSpec(constructor, (*taps, "<top_conv"), IMAGENET, settings={"include_preprocessing": False})


def _resnet(constructor: Any, blocks_of_stage_4: int) -> EncoderSpec:
    stages = ("conv2_block3_out", "conv3_block4_out", f"conv4_block{blocks_of_stage_4}_out", "conv5_block3_out")
    return EncoderSpec(constructor, ("conv1_relu", *stages), CENTRED, takes_bgr=True)


def _convnext(constructor: Any, name: str) -> EncoderSpec:
    ends = tuple(f"<{name}_downsampling_layernorm_{number}" for number in range(3))
    settings = {"include_preprocessing": False}
    return EncoderSpec(constructor, (*ends, "last_layernorm"), IMAGENET, settings, is_rewritten=True)


ENCODERS = {
    "mobilenet": EncoderSpec(
        apps.MobileNet,
        ("conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"),
        has_width=True,
    ),
    "mobilenet_v2": EncoderSpec(
        apps.MobileNetV2,
        # The last tap is before the widening to 1280 channels, which serves classification alone. So below.
        (*(f"block_{block}_expand_relu" for block in (1, 3, 6, 13)), "block_16_project_BN"),
        has_width=True,
    ),
    "mobilenet_v3_small": _mobilenet_v3(apps.MobileNetV3Small, ("", "1_", "3_", "8_")),
    "mobilenet_v3_large": _mobilenet_v3(apps.MobileNetV3Large, ("1_", "3_", "6_", "12_")),
    "efficientnet_b0": _efficientnet(apps.EfficientNetB0),
    "efficientnet_b1": _efficientnet(apps.EfficientNetB1),
    "efficientnet_b2": _efficientnet(apps.EfficientNetB2),
    "efficientnet_b3": _efficientnet(apps.EfficientNetB3),
    "efficientnet_v2_b0": _efficientnet_v2(apps.EfficientNetV2B0),
    "efficientnet_v2_b1": _efficientnet_v2(apps.EfficientNetV2B1),
    "efficientnet_v2_b2": _efficientnet_v2(apps.EfficientNetV2B2),
    "efficientnet_v2_b3": _efficientnet_v2(apps.EfficientNetV2B3),
    "resnet50": _resnet(apps.ResNet50, 6),
    "resnet101": _resnet(apps.ResNet101, 23),
    "convnext_tiny": _convnext(apps.ConvNeXtTiny, "convnext_tiny"),
    "convnext_small": _convnext(apps.ConvNeXtSmall, "convnext_small"),
}


def build_encoder(
    name: str,
    width: float,
    weights: str,
    *,
    padding: str = "keras",
    output_stride: int = 32,
    stochastic_depth: float | None = None,
) -> keras.Model:
    """Scaled RGB (see EncoderSpec), any size -> features at strides 2 to 32. weights: imagenet, a local path, or none.

    padding: keras, or torch; output_stride: 32, or 16 or 8, from which on no features are coarser; stochastic_depth:
    None is what Keras has (see rewrite).
    Raises UserError when the weights are missing or do not fit.
    """
    spec = ENCODERS[name]
    base = _build_base(name, width, weights)
    if spec.takes_bgr:
        # ImageNet weights of this family want BGR. Turned kernels want RGB, and give the same.
        stem = base.get_layer("conv1_conv")
        kernel, *rest = stem.get_weights()
        stem.set_weights([kernel[:, :, ::-1], *rest])
    if spec.is_rewritten or padding == "torch" or output_stride < 32 or stochastic_depth is not None:
        base = rewrite(
            base, pads_all_sides=padding == "torch", max_stride=output_stride, stochastic_depth=stochastic_depth
        )
    return keras.Model(base.input, [_find_tap(base, tap) for tap in spec.taps], name="encoder")


def _build_base(name: str, width: float, weights: str) -> keras.Model:
    spec = ENCODERS[name]
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise UserError(f"model.encoder_weights: {weights} does not exist; allowed are imagenet, none, or a path")
    settings = {**spec.settings, **({"alpha": width} if spec.has_width else {})}
    try:
        # (None, None, 3) always: a fixed odd size makes keras.applications pad otherwise.
        return spec.constructor(
            input_shape=(None, None, 3), include_top=False, weights=None if weights == "none" else weights, **settings
        )
    except Exception as error:
        if weights == "none":
            raise  # nothing was loaded: a fault of ours
        # Keras and h5py raise many types for a file that does not fit, and plain Exception for a download that fails.
        raise UserError(
            f"model.encoder_weights {weights} cannot be loaded into {name} of width {width:g}: {error}"
        ) from error


def _find_tap(base: keras.Model, tap: str) -> keras.KerasTensor:
    return base.get_layer(tap[1:]).input if tap.startswith("<") else base.get_layer(tap).output


def download_weights(name: str, width: float, weights: str) -> None:
    """Fetches ImageNet weights, one process of a node at a time; does nothing for a path or none.

    Keras downloads to the final name, where another process would read a part. Not inside the scope of a
    distribution strategy: there, making variables waits for the other workers, which wait for the lock.
    """
    if weights != "imagenet":
        return
    with open(os.path.join(tempfile.gettempdir(), f"batchseg-weights-{os.getuid()}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build_base(name, width, weights)
