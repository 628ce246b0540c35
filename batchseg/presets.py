"""The job that runs without any data: the drawn set, small enough for two CPU cores."""

from collections.abc import Mapping

DRAWN_SET = {
    "data": "drawn",
    "out": "runs/drawn",
    "model.architecture": "unet",
    "model.encoder": "mobilenet",
    "model.encoder_width": "0.25",
    "model.encoder_weights": "none",
    "model.decoder_channels": "96,64,48,32",
    "input.size": "128,160",
    "training.epochs": "10",
    "training.batch_size": "16",
    "training.learning_rate": "4e-3",
    "augment.scale": "0.8,1.25",
    "cluster.workers": "2",
}
"""Overrides of the defaults, as on a command line."""

_OF_MODEL = ("model.architecture", "model.encoder")
_OF_THIS_MODEL = ("model.encoder_width", "model.decoder_channels")


def preset_with(overrides: Mapping[str, str]) -> dict[str, str]:
    """The preset under `overrides`. Another architecture or encoder than the preset's comes with its own defaults."""
    is_other = any(overrides.get(key, DRAWN_SET[key]) != DRAWN_SET[key] for key in _OF_MODEL)
    kept = {key: value for key, value in DRAWN_SET.items() if not (is_other and key in _OF_THIS_MODEL)}
    return {**kept, **overrides}
