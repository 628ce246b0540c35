"""The card of a bundle: what is missing, foreign or changed is refused, without Keras."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchseg import images
from batchseg.bundle import check_weights, read_card
from batchseg.classes import parse_classes
from batchseg.errors import UserError
from batchseg.geometry import Geometry

CLASSES = parse_classes(["ground", {"name": "thing", "color": "#00ff00", "values": [1, 7]}], [9])
WEIGHTS = b"not really Keras"


def seal(card: dict[str, Any]) -> dict[str, Any]:
    """The digest is over everything else, with sorted keys."""
    rest = {key: value for key, value in card.items() if key != "digest"}
    return {**rest, "digest": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def make_card() -> dict[str, Any]:
    canvas = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    mask = (canvas[..., 0] > 100).astype(np.uint8)
    return seal(
        {
            "format": 1,
            **CLASSES.to_json(),
            "ignore_id": 255,
            "geometry": Geometry((30, 60), "letterbox", 32).to_json(),
            "model": {"encoder": "mobilenet"},
            "data": {"images": 3},
            "scores": {"miou": 0.5},
            "versions": {"batchseg": "0.1.0"},
            "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "golden": {
                "image": base64.b64encode(images.encode_image(canvas, ".png")).decode(),
                "mask": base64.b64encode(images.encode_mask(mask, CLASSES.palette)).decode(),
            },
        }
    )


def write_bundle(folder: Path, card: object) -> str:
    (folder / "bundle.json").write_text(json.dumps(card))
    (folder / "model.keras").write_bytes(WEIGHTS)
    return str(folder)


def test_a_good_card(tmp_path: Path) -> None:
    written = make_card()
    card = read_card(write_bundle(tmp_path, written))
    assert card.location == str(tmp_path)
    assert card.digest == written["digest"]
    assert card.classes.to_json() == CLASSES.to_json()
    assert card.geometry == Geometry((30, 60), "letterbox", 32)
    assert (card.model, card.data, card.scores) == ({"encoder": "mobilenet"}, {"images": 3}, {"miou": 0.5})
    assert card.golden.canvas.shape == (32, 64, 3)
    assert np.array_equal(card.golden.mask, card.golden.canvas[..., 0] > 100)
    assert check_weights(card) == WEIGHTS


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    card = make_card()
    turned = dict(reversed(card.items()))
    assert read_card(write_bundle(tmp_path, turned)).digest == card["digest"]


def test_missing_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("none", "empty", "file"):
        with pytest.raises(UserError, match=rf"bundle .*/{name} does not exist, or holds no bundle\.json"):
            read_card(str(tmp_path / name))


@pytest.mark.parametrize("data", [b"", b"{", b"not json", b"\xff\xfe\x00"])
def test_card_that_is_not_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(data)
    with pytest.raises(UserError, match=r"bundle .*: bundle\.json cannot be read"):
        read_card(str(tmp_path))


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_other_format_version(tmp_path: Path, found: object) -> None:
    with pytest.raises(UserError, match=rf"bundle .* has format {found!r}; this batchseg reads 1"):
        read_card(write_bundle(tmp_path, seal({**make_card(), "format": found})))


@pytest.mark.parametrize("card", [[], [1], "text", 3, None, {}])
def test_json_that_is_no_card(tmp_path: Path, card: object) -> None:
    with pytest.raises(UserError, match="has format None; this batchseg reads 1"):
        read_card(write_bundle(tmp_path, card))


@pytest.mark.parametrize("key", ["classes", "geometry", "scores", "weights_sha256", "golden", "digest", "new key"])
def test_changed_card(tmp_path: Path, key: str) -> None:
    card = make_card()
    card[key] = {"changed": True}
    with pytest.raises(UserError, match=r"bundle\.json was changed after it was sealed \(its digest does not match\)"):
        read_card(write_bundle(tmp_path, card))
    del card[key]
    if key != "new key":
        with pytest.raises(UserError, match="was changed after it was sealed"):
            read_card(write_bundle(tmp_path, card))


def test_changed_and_missing_weights(tmp_path: Path) -> None:
    card = read_card(write_bundle(tmp_path, make_card()))
    (tmp_path / "model.keras").write_bytes(WEIGHTS + b".")
    with pytest.raises(UserError, match=r"model\.keras has sha256 \w{12}…, the card says \w{12}….*copy the bundle"):
        check_weights(card)
    (tmp_path / "model.keras").unlink()
    with pytest.raises(UserError, match=r"model\.keras cannot be read"):
        check_weights(card)
