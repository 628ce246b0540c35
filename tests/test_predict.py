"""The predictor and the bundle it loads."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from batchseg import bundle as bundles
from batchseg.bundle import read_card
from batchseg.errors import UserError
from batchseg.predict import Predictor


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, batch_size=4)


def test_an_image_gets_the_same_answer_in_any_batch(predictor: Predictor) -> None:
    canvases = np.random.default_rng(0).integers(0, 256, (7, 96, 128, 3), np.uint8)
    ids, confidence = predictor.run(canvases)
    assert ids.shape == confidence.shape == (7, 96, 128)
    assert confidence.min() > 1 / 6 - 1e-6
    assert confidence.max() <= 1
    for index in range(7):
        alone, sure = predictor.run(canvases[index : index + 1])
        np.testing.assert_array_equal(alone[0], ids[index])
        np.testing.assert_array_equal(sure[0], confidence[index])


def test_plain_keras_loads_the_model(bundle: Path, predictor: Predictor) -> None:
    model = keras.saving.load_model(bundle / "model.keras")
    canvases = np.random.default_rng(1).integers(0, 256, (2, 64, 160, 3), np.uint8)
    logits = np.asarray(model(canvases))
    assert logits.dtype == np.float32
    assert logits.shape == (2, 64, 160, 6)
    np.testing.assert_array_equal(logits.argmax(-1), predictor.run(canvases)[0])
    own = (keras.layers.BatchNormalization,)
    assert not any(layer.synchronized for layer in model._flatten_layers() if isinstance(layer, own))
    assert all(type(layer).__module__.startswith("keras.") for layer in model._flatten_layers())


def test_confidence_is_the_softmax_of_the_winner(bundle: Path, predictor: Predictor) -> None:
    canvases = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), np.uint8)
    logits = np.asarray(keras.saving.load_model(bundle / "model.keras")(canvases), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(predictor.run(canvases)[1], shares.max(-1), rtol=1e-4)


def test_a_machine_that_computes_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A bundle whose golden mask does not come out, though every digest is right."""
    shutil.copytree(bundle, tmp_path / "other")
    page = tmp_path / "other" / "bundle.json"
    card = json.loads(page.read_text())
    golden = read_card(str(bundle)).golden
    wrong = bundles.images.encode_mask((golden.mask + 1) % 6, read_card(str(bundle)).classes.palette)
    card["golden"]["mask"] = bundles._to_text(wrong)
    card["digest"] = bundles._digest_card(card)
    page.write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"its golden image comes out right on 0\.00% of the pixels"):
        Predictor(tmp_path / "other")
