"""build_model: uint8 RGB in, float32 logits of the same size out."""

import keras
from keras import layers

from batchseg.config import ModelConfig
from batchseg.models.decoders import decode_deeplabv3plus, decode_fpn, decode_unet, enlarge
from batchseg.models.encoders import ENCODERS, build_encoder
from batchseg.models.given import open_given_model


def build_model(config: ModelConfig, num_classes: int, *, batch_norm_momentum: float = 0.9) -> keras.Model:
    """A model of stock layers: uint8 NxHxWx3 with H and W multiples of 32 -> float32 logits NxHxWxC.

    The current dtype policy decides the compute type; scaling and logits are float32 under each. All but a given model
    (`architecture: PATH.keras`) hold their encoder as the layer "encoder". Raises UserError when weights or the given
    model are missing or do not fit.
    """
    model = open_given_model(config.architecture, num_classes) if config.is_given else _build_own(config, num_classes)
    for layer in iterate_batch_norms(model):
        layer.momentum = batch_norm_momentum
    return model


def _build_own(config: ModelConfig, num_classes: int) -> keras.Model:
    image = keras.Input((None, None, 3), dtype="uint8", name="image_rgb")
    scale, offset = ENCODERS[config.encoder].scaling
    scaled = layers.Rescaling(scale, offset=offset, dtype="float32", name="scale")(image)
    encoder = build_encoder(
        config.encoder,
        config.encoder_width,
        config.encoder_weights,
        padding=config.encoder_padding,
        output_stride=config.output_stride if config.architecture == "deeplabv3plus" else 32,
        stochastic_depth=None if config.stochastic_depth == "keras" else config.stochastic_depth,
    )
    features, stride = _decode(config, encoder(scaled))
    if config.dropout:
        features = layers.SpatialDropout2D(config.dropout, name="dropout")(features)
    logits = layers.Conv2D(num_classes, 1, dtype="float32", name="head")(features)
    for number in range(stride.bit_length() - 1):
        suffix = f"_{number + 1}" if number else ""
        logits = enlarge(logits, f"enlarge{suffix}", f"blend{suffix}", dtype="float32")
    return keras.Model(image, logits, name="batchseg")


def _decode(config: ModelConfig, features: list[keras.KerasTensor]) -> tuple[keras.KerasTensor, int]:
    """The decoder's features and their stride."""
    if config.architecture == "unet":
        return decode_unet(features, config.decoder_channels), {4: 2, 5: 1}[len(config.decoder_channels)]
    if config.architecture == "fpn":
        return decode_fpn(features[-4:], config.decoder_width), 4
    return decode_deeplabv3plus(features[-4], features[-1], config.decoder_width, config.output_stride), 4


def iterate_batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Every batch norm of the model, those of the encoder within included."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
