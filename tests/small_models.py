"""Small models, pictures for them, and weights that show what a graph does."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from batchseg.config import ModelConfig

NARROW = {"mobilenet": 0.25, "mobilenet_v2": 0.35, "mobilenet_v3_small": 0.75, "mobilenet_v3_large": 0.75}
DECODER: dict[str, dict[str, Any]] = {
    "unet": {"decoder_channels": (8, 8, 8, 8)},
    "deeplabv3plus": {"decoder_width": 8},
    "fpn": {"decoder_width": 8},
}


def configure(architecture: str = "unet", encoder: str = "mobilenet", **knobs: Any) -> ModelConfig:
    settings = {"encoder_weights": "none", "encoder_width": NARROW.get(encoder, 1.0), **DECODER[architecture], **knobs}
    return ModelConfig(architecture=architecture, encoder=encoder, **settings)


def draw_images(count: int = 2, size_hw: tuple[int, int] = (32, 64)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size_hw, 3), np.uint8)


def run(model: Any, images: np.ndarray) -> Any:
    return keras.tree.map_structure(np.asarray, model(images, training=False))


def load_plainly(path: Path) -> keras.Model:
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def scatter_weights(model: keras.Model) -> None:
    """Weights that let no layer off. Fresh ones do: a LayerScale starts at 1e-6, and the picture fades with depth."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, (keras.Model, layers.Normalization)):
            continue
        for variable in layer.weights:
            if variable.name in ("beta", "bias", "moving_mean"):
                variable.assign(rng.normal(0, 0.1, variable.shape))
            elif len(variable.shape) == 1:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif variable.name == "kernel":
                is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
                fan_in = np.prod(variable.shape[:2] if is_depthwise else variable.shape[:-1])
                variable.assign(rng.normal(0, np.sqrt(2 / fan_in), variable.shape))
