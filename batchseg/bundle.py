"""A bundle: a trained model with all it needs to be used, sealed by digests.

A folder with `model.keras` and `bundle.json`. Reading the card needs no Keras; only `load_model` imports it.
"""

import base64
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchseg import __version__, images, storage
from batchseg.classes import IGNORE_ID, ClassTable, MaskArray
from batchseg.errors import UserError
from batchseg.geometry import Geometry
from batchseg.images import RgbArray

FORMAT_VERSION = 1
MODEL_FILE = "model.keras"
CARD_FILE = "bundle.json"


@dataclass(frozen=True)
class GoldenSample:
    """A canvas and the mask that the model gave for it when it was sealed; both uint8, HxWx3 and HxW."""

    canvas: RgbArray
    mask: MaskArray


@dataclass(frozen=True)
class BundleCard:
    """What bundle.json says. `digest` seals it and, through the digest in it, the weights."""

    location: str
    digest: str
    classes: ClassTable
    geometry: Geometry
    model: dict[str, Any]
    data: dict[str, Any]
    scores: dict[str, Any]
    weights_sha256: str
    golden: GoldenSample


def save_bundle(
    location: str,
    model: Any,
    *,
    classes: ClassTable,
    geometry: Geometry,
    golden: GoldenSample,
    facts: dict[str, Any],
) -> BundleCard:
    """Writes a bundle; the card comes last, so that a bundle with a card is whole.

    model: a float32 Keras model. facts: `model`, `data` and `scores`, plain data that the card repeats.
    """
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, MODEL_FILE)
        model.save(path)
        with open(path, "rb") as stream:
            weights = stream.read()
    card = {
        "format": FORMAT_VERSION,
        **classes.to_json(),
        "ignore_id": IGNORE_ID,
        "geometry": geometry.to_json(),
        **{key: facts[key] for key in ("model", "data", "scores")},
        "versions": {"batchseg": __version__, "keras": keras.version(), "numpy": np.__version__},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "golden": {
            "image": _to_text(images.encode_image(golden.canvas, ".png")),
            "mask": _to_text(images.encode_mask(golden.mask, classes.palette)),
        },
    }
    card["digest"] = _digest_card(card)
    storage.write_atomic(storage.join(location, MODEL_FILE), weights)
    storage.write_atomic(storage.join(location, CARD_FILE), json.dumps(card, indent=1))
    return read_card(location)


def read_card(location: str) -> BundleCard:
    """Reads and checks bundle.json. Raises UserError when it is missing, of another version, or was changed."""
    location = storage.to_absolute(location)
    try:
        card = json.loads(storage.read_bytes(storage.join(location, CARD_FILE)))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"bundle {location} does not exist, or holds no {CARD_FILE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"bundle {location}: {CARD_FILE} cannot be read: {error}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT_VERSION:
        found = card.get("format") if isinstance(card, dict) else None
        raise UserError(f"bundle {location} has format {found!r}; this batchseg reads {FORMAT_VERSION}")
    if card.get("digest") != _digest_card(card):
        raise UserError(f"bundle {location}: {CARD_FILE} was changed after it was sealed (its digest does not match)")
    golden = GoldenSample(
        _decode_golden(card["golden"]["image"]),
        np.asarray(images.decode_mask(base64.b64decode(card["golden"]["mask"]), "golden"), np.uint8),
    )
    return BundleCard(
        location=location,
        digest=card["digest"],
        classes=ClassTable.from_json(card),
        geometry=Geometry.from_json(card["geometry"]),
        model=card["model"],
        data=card["data"],
        scores=card["scores"],
        weights_sha256=card["weights_sha256"],
        golden=golden,
    )


def check_weights(card: BundleCard) -> bytes:
    """The bytes of model.keras. Raises UserError when they are missing or not those that were sealed."""
    location = storage.join(card.location, MODEL_FILE)
    try:
        weights = storage.read_bytes(location)
    except OSError as error:
        raise UserError(f"bundle {card.location}: {MODEL_FILE} cannot be read: {error}") from None
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise UserError(
            f"bundle {card.location}: {MODEL_FILE} has sha256 {found[:12]}…, the card says "
            f"{card.weights_sha256[:12]}…. It was changed or is damaged; copy the bundle again."
        )
    return weights


def load_model(card: BundleCard) -> Any:
    """The Keras model of a bundle, after its sha256 was checked. No code is ever loaded with it (safe mode)."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, MODEL_FILE)
        with open(path, "wb") as stream:
            stream.write(check_weights(card))
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def _digest_card(card: dict[str, Any]) -> str:
    sealed = {key: value for key, value in card.items() if key != "digest"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode_golden(text: str) -> RgbArray:
    data = base64.b64decode(text)
    return images.decode_image(data, images.probe_image(data))
