"""batchseg: train an encoder-decoder on a Ray cluster, then segment any pile of images with it.

Nothing heavy is imported here: public names load their room on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "ConfusionMatrix": "batchseg.metrics",
    "Predictor": "batchseg.predict",
    "TrainConfig": "batchseg.config",
    "check_dataset": "batchseg.doctor",
    "evaluate_dataset": "batchseg.evaluate",
    "load_config": "batchseg.config",
    "open_dataset": "batchseg.datasets",
    "segment_images": "batchseg.segment",
    "train_model": "batchseg.train",
}

__all__ = ["__version__", *_PUBLIC_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'batchseg' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC_NAMES[name]), name)
