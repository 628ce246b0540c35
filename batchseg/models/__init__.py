"""Encoder-decoders of stock Keras layers. Keras API only, so that another Keras backend can load them."""

from batchseg.models.building import build_model, iterate_batch_norms
from batchseg.models.encoders import ENCODERS, download_weights
from batchseg.models.starting import StartReport, load_start

__all__ = ["ENCODERS", "StartReport", "build_model", "download_weights", "iterate_batch_norms", "load_start"]
