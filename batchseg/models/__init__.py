"""Encoder-decoders of stock Keras layers. Keras API only, so that another Keras backend can load them."""

from batchseg.models.building import build_model
from batchseg.models.encoders import ENCODERS, download_weights

__all__ = ["ENCODERS", "build_model", "download_weights"]
