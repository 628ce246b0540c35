"""build_model: uint8 RGB in, float32 logits of the same size out."""

from collections.abc import Sequence

import keras
from keras import layers

from batchseg.config import ModelConfig
from batchseg.models.encoders import build_encoder


def build_model(config: ModelConfig, num_classes: int, *, batch_norm_momentum: float = 0.9) -> keras.Model:
    """A model of stock layers: uint8 NxHxWx3 with H and W multiples of 32 -> float32 logits NxHxWxC.

    The current dtype policy decides the compute type; scaling and logits are float32 under each.
    """
    image = keras.Input((None, None, 3), dtype="uint8", name="image_rgb")
    scaled = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scale")(image)
    encoder = build_encoder(
        config.encoder, config.encoder_width, config.encoder_weights, padding=config.encoder_padding
    )
    features = decode_unet(encoder(scaled), config.decoder_channels)
    if config.dropout:
        features = layers.SpatialDropout2D(config.dropout, name="dropout")(features)
    logits = layers.Conv2D(num_classes, 1, dtype="float32", name="head")(features)
    if len(config.decoder_channels) == 4:
        # Repeat and a 3x3 mean blend neighbours 2:1, nearly as bilinear does (3:1). UpSampling2D(bilinear)
        # itself cannot be traced with free height and width (Keras 3.15).
        logits = layers.UpSampling2D(2, dtype="float32", name="enlarge")(logits)
        logits = layers.AveragePooling2D(3, strides=1, padding="same", dtype="float32", name="blend")(logits)
    model = keras.Model(image, logits, name="batchseg")
    for layer in iterate_batch_norms(model):
        layer.momentum = batch_norm_momentum
    return model


def decode_unet(features: Sequence[keras.KerasTensor], channels: Sequence[int]) -> keras.KerasTensor:
    """U-Net (Ronneberger et al. 2015): enlarge, join the encoder's features of that size, two convolutions, five times.

    features: at strides 2, 4, 8, 16, 32. Returns the last of len(channels) levels, at stride 2 for 4, 1 for 5.
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


def iterate_batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Every batch norm of the model, those of the encoder within included."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]


def _convolve(inputs: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
    current = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(inputs)
    current = layers.BatchNormalization(name=f"{name}_bn")(current)
    return layers.ReLU(name=f"{name}_relu")(current)
