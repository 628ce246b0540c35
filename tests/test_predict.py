"""The predictor and the bundle it loads."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from batchseg import bundle as bundles
from batchseg import geometry as geo
from batchseg.bundle import read_card
from batchseg.errors import ImageError, UserError
from batchseg.images import encode_image
from batchseg.predict import Predictor, make_forward
from batchseg.quality import InferenceOptions
from batchseg.runner import CanvasPrediction

EVERYTHING = InferenceOptions(flip=True, scales=(0.75, 1.0), min_confidence=0.2, score_map=True, min_region=40)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, batch_size=4)


@pytest.fixture(scope="module")
def tile_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, seen through tiles of 64 x 96."""
    folder = tmp_path_factory.mktemp("tile") / "bundle"
    shutil.copytree(bundle, folder)
    card = json.loads((folder / "bundle.json").read_text())
    card["geometry"] = geo.Geometry((64, 90), "tile", 32, 32).to_json()
    card["digest"] = bundles._digest_card(card)
    (folder / "bundle.json").write_text(json.dumps(card))
    return folder


def run(predictor: Predictor, canvases: np.ndarray) -> list[CanvasPrediction]:
    """The canvases as they are, none of them padded."""
    hw = canvases.shape[1:3]
    found = predictor.run(list(canvases), [geo.Plan(hw, 1, hw, hw)] * len(canvases))
    assert all(isinstance(one, CanvasPrediction) for one in found)
    return found  # type: ignore[return-value]


def draw_images() -> list[np.ndarray]:
    """Of mixed sizes, smaller and larger than a tile."""
    rng = np.random.default_rng(0)
    sizes_hw = [(1, 1), (40, 70), (64, 96), (200, 130), (97, 301), (5, 260)]
    return [rng.integers(0, 256, (*size_hw, 3), np.uint8) for size_hw in sizes_hw]


def test_an_image_gets_the_same_answer_in_any_batch(predictor: Predictor) -> None:
    canvases = np.random.default_rng(0).integers(0, 256, (7, 96, 128, 3), np.uint8)
    together = run(predictor, canvases)
    assert len(together) == 7
    for index, found in enumerate(together):
        assert found.ids.shape == (96, 128)
        assert found.scores is None
        assert 1 / 6 - 1e-6 < found.mean_confidence <= 1
        (alone,) = run(predictor, canvases[index : index + 1])
        np.testing.assert_array_equal(alone.ids, found.ids)
        assert (alone.mean_confidence, alone.uncertain_share) == (found.mean_confidence, found.uncertain_share)


def test_plain_keras_loads_the_model(bundle: Path, predictor: Predictor) -> None:
    model = keras.saving.load_model(bundle / "model.keras")
    canvases = np.random.default_rng(1).integers(0, 256, (2, 64, 160, 3), np.uint8)
    logits = np.asarray(model(canvases))
    assert logits.dtype == np.float32
    assert logits.shape == (2, 64, 160, 6)
    np.testing.assert_array_equal(logits.argmax(-1), [found.ids for found in run(predictor, canvases)])
    own = (keras.layers.BatchNormalization,)
    assert not any(layer.synchronized for layer in model._flatten_layers() if isinstance(layer, own))
    assert all(type(layer).__module__.startswith("keras.") for layer in model._flatten_layers())


def test_confidence_is_the_softmax_of_the_winner(bundle: Path, predictor: Predictor) -> None:
    canvases = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), np.uint8)
    model = keras.saving.load_model(bundle / "model.keras")
    logits = np.asarray(model(canvases), np.float64)
    shares = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).max(-1)
    np.testing.assert_allclose(make_forward(model)(canvases)[1], shares, rtol=1e-4)
    (found,) = run(predictor, canvases)
    assert found.mean_confidence == pytest.approx(shares.mean(), rel=1e-4)
    assert found.uncertain_share == pytest.approx((shares < 0.5).mean(), abs=2 / shares.size)


def test_padding_does_not_count(predictor: Predictor) -> None:
    canvas = np.random.default_rng(3).integers(0, 256, (96, 128, 3), np.uint8)
    _, confidence = make_forward(bundles.load_model(predictor.card))(canvas[None])
    (found,) = predictor.run([canvas], [geo.Plan((50, 70), 1, (50, 70), (96, 128))])
    assert isinstance(found, CanvasPrediction)
    assert found.mean_confidence == float(confidence[0, :50, :70].mean(dtype=np.float64))
    assert found.uncertain_share == float((confidence[0, :50, :70] < 0.5).mean())


@pytest.mark.parametrize("options", [InferenceOptions(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("fit", ["resize", "tile"])
def test_any_sizes_in_one_call(bundle: Path, tile_bundle: Path, fit: str, options: InferenceOptions) -> None:
    """Alone or beside others, as an array, encoded or through `run`: bit by bit the same."""
    predictor = Predictor(tile_bundle if fit == "tile" else bundle, batch_size=5, options=options)
    images = draw_images()
    together = predictor.predict(images)
    for image, found in zip(images, together, strict=True):
        assert found.mask.shape == image.shape[:2]
        assert found.mask.dtype == np.uint8
        (alone,) = predictor.predict([encode_image(image, ".png")])
        assert np.array_equal(alone.mask, found.mask)
        assert (alone.mean_confidence, alone.uncertain_share) == (found.mean_confidence, found.uncertain_share)
        if options.score_map:
            assert found.scores is not None
            assert found.scores.shape == image.shape[:2]
            assert np.array_equal(alone.scores, found.scores)
        else:
            assert found.scores is None
            assert found.mask.max() < 6


def test_abstaining_and_the_score_map_agree(tile_bundle: Path) -> None:
    images = draw_images()[3:4]
    (before,) = Predictor(tile_bundle, options=InferenceOptions(score_map=True)).predict(images)
    assert before.scores is not None
    middle = int(np.median(before.scores))
    options = InferenceOptions(min_confidence=(middle + 0.5) / 255, score_map=True)
    (after,) = Predictor(tile_bundle, options=options).predict(images)
    abstains = after.mask == 255
    assert 0.2 < abstains.mean() < 0.8
    assert np.array_equal(abstains, before.scores <= middle)
    assert np.array_equal(after.mask[~abstains], before.mask[~abstains])
    # Abstaining does not change what the model was sure of.
    assert after.scores is not None
    assert np.array_equal(after.scores, before.scores)
    assert (after.mean_confidence, after.uncertain_share) == (before.mean_confidence, before.uncertain_share)
    assert after.scores.mean() / 255 == pytest.approx(after.mean_confidence, abs=2e-3)


def test_a_broken_image_is_named_by_its_kind(tile_bundle: Path) -> None:
    with pytest.raises(ImageError, match="not an image"):
        Predictor(tile_bundle).predict([draw_images()[1], b"nothing"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ()}, r"--scales is ''; numbers from 0\.1 to 4"),
        ({"scales": (1.0, 0.0)}, r"--scales is '1,0'"),
        ({"min_confidence": 1.0}, r"--min-confidence is 1; 0 \(off\) up to below 1"),
        ({"min_confidence": float("nan")}, r"--min-confidence is nan"),
        ({"min_region": -1}, r"--min-region is -1"),
    ],
)
def test_options_are_checked_at_the_door(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InferenceOptions(**values)  # type: ignore[arg-type]


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
