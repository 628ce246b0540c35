"""Decoders: features of an encoder -> features at stride 1, 2 or 4, ready for the head."""

from collections.abc import Sequence

import keras
from keras import layers

LOW_LEVEL_WIDTH = 48
"""Channels of the fine features in DeepLabV3+: fewer than the coarse ones have, so that these lead (table 1 there)."""


def decode_unet(features: Sequence[keras.KerasTensor], channels: Sequence[int]) -> keras.KerasTensor:
    """U-Net (Ronneberger et al. 2015): enlarge, join the encoder's features of that size, two convolutions, and again.

    features: at strides 2 (or 4), up to 32. Returns the last of len(channels) levels, at stride 2 for 4, 1 for 5.
    """
    *skips, deepest = features
    current = deepest
    for level, width in enumerate(channels):
        current = layers.UpSampling2D(2, name=f"up_{level}")(current)
        if skips:
            current = layers.Concatenate(name=f"join_{level}")([current, skips.pop()])
        for number in (1, 2):
            current = _convolve(current, width, f"decoder_{level}_{number}")
    return current


def decode_deeplabv3plus(
    fine: keras.KerasTensor, coarse: keras.KerasTensor, width: int, output_stride: int
) -> keras.KerasTensor:
    """DeepLabV3+ (Chen et al. 2018): dilated convolutions side by side, joined with fine features.

    fine: at stride 4; coarse: at output_stride, 16 or 8. Returns features of `width` channels at stride 4.
    """
    rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
    current = _pool_pyramid(coarse, width, rates)
    for number in range({16: 2, 8: 1}[output_stride]):
        current = enlarge(current, f"aspp_up_{number}")
    fine = _convolve(fine, LOW_LEVEL_WIDTH, "low_level", kernel=1)
    current = layers.Concatenate(name="join")([current, fine])
    for number in (1, 2):
        current = _convolve_separably(current, width, f"decoder_{number}")
    return current


def _pool_pyramid(inputs: keras.KerasTensor, width: int, rates: Sequence[int]) -> keras.KerasTensor:
    """ASPP: one branch without dilation, one a rate, and the mean of the picture; separable, as in DeepLabV3+."""
    branches = [_convolve(inputs, width, "aspp_1x1", kernel=1)]
    branches += [_convolve_separably(inputs, width, f"aspp_{number}", rate) for number, rate in enumerate(rates, 1)]
    joined = layers.Conv2D(width, 1, use_bias=False, name="aspp_project")(
        layers.Concatenate(name="aspp_join")(branches)
    )
    mean = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean")(inputs)
    # A bias in place of a batch norm: over one pixel an image, a batch of one has no variance.
    mean = layers.Conv2D(width, 1, activation="relu", name="aspp_mean_conv")(mean)
    # A 1x1 convolution of joined branches is the sum of one over each, so the mean need not be spread out first.
    mean = layers.Conv2D(width, 1, use_bias=False, name="aspp_mean_project")(mean)
    joined = layers.Add(name="aspp_add")([joined, mean])
    return layers.ReLU(name="aspp_relu")(layers.BatchNormalization(name="aspp_bn")(joined))


def decode_fpn(features: Sequence[keras.KerasTensor], width: int) -> keras.KerasTensor:
    """Feature pyramid (Lin et al. 2017) with the semantic head of Panoptic FPN (Kirillov et al. 2019).

    features: those at strides 4 to 32. Returns features of width / 2 channels at stride 4. Batch norm where the
    paper has group norm, as in the other decoders.
    """
    current = None
    levels = []
    for number, feature in zip(range(5, 1, -1), reversed(features), strict=True):
        lateral = layers.Conv2D(width, 1, name=f"lateral_{number}")(feature)
        if current is not None:
            above = layers.UpSampling2D(2, name=f"down_{number}")(current)
            lateral = layers.Add(name=f"merge_{number}")([lateral, above])
        current = lateral
        smooth = layers.Conv2D(width, 3, padding="same", name=f"pyramid_{number}")(current)
        levels.append(_raise_level(smooth, max(1, width // 2), number))
    return layers.Add(name="pyramid_sum")(levels)


def _raise_level(inputs: keras.KerasTensor, width: int, number: int) -> keras.KerasTensor:
    """Level 2 to 5 of the pyramid -> stride 4."""
    if number == 2:
        return _convolve(inputs, width, "semantic_2")
    for step in range(number - 2):
        inputs = enlarge(_convolve(inputs, width, f"semantic_{number}_{step}"), f"semantic_{number}_{step}_up")
    return inputs


def enlarge(inputs: keras.KerasTensor, name: str, blend_name: str = "", dtype: str | None = None) -> keras.KerasTensor:
    """Twice the size, smoothly.

    Repeat and a 3x3 mean blend neighbours 2:1, nearly as bilinear does (3:1). UpSampling2D(bilinear) itself cannot be
    traced with free height and width (Keras 3.15).
    """
    current = layers.UpSampling2D(2, dtype=dtype, name=name)(inputs)
    blend_name = blend_name or f"{name}_blend"
    return layers.AveragePooling2D(3, strides=1, padding="same", dtype=dtype, name=blend_name)(current)


def _convolve(inputs: keras.KerasTensor, width: int, name: str, kernel: int = 3) -> keras.KerasTensor:
    current = layers.Conv2D(width, kernel, padding="same", use_bias=False, name=name)(inputs)
    current = layers.BatchNormalization(name=f"{name}_bn")(current)
    return layers.ReLU(name=f"{name}_relu")(current)


def _convolve_separably(inputs: keras.KerasTensor, width: int, name: str, rate: int = 1) -> keras.KerasTensor:
    current = layers.DepthwiseConv2D(3, padding="same", dilation_rate=rate, use_bias=False, name=f"{name}_depthwise")(
        inputs
    )
    current = layers.BatchNormalization(name=f"{name}_depthwise_bn")(current)
    current = layers.ReLU(name=f"{name}_depthwise_relu")(current)
    return _convolve(current, width, name, kernel=1)
