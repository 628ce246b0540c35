"""Where a model begins: an own bundle, an own model file; and what is refused at the door."""

from pathlib import Path

import keras
import pytest

from batchseg.bundle import load_model, read_card
from batchseg.config import load_config
from batchseg.errors import UserError
from batchseg.train import train_model
from batchseg.train_opening import find_model_files


@pytest.fixture
def given_model(tmp_path: Path) -> Path:
    """A small Keras model of somebody else: float in, scaling within, two sizes of kernels, no batch norm."""
    inputs = keras.Input((None, None, 3))
    features = keras.layers.Rescaling(1 / 255)(inputs)
    for width in (8, 8):
        features = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(features)
    model = keras.Model(inputs, keras.layers.Conv2D(6, 1)(features))
    model.save(tmp_path / "mine.keras")
    return tmp_path / "mine.keras"


@pytest.mark.slow
def test_fine_tuning_begins_where_the_bundle_ended(
    bundle: Path, tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path
) -> None:
    # Next to no learning, and moving statistics that stay: those of a young bundle would get better by themselves.
    still = {"training.learning_rate": "1e-6", "training.batch_norm_momentum": "0.999", "training.epochs": "1"}
    job = {**tiny_overrides, **still, "cluster.workers": "1"}
    started = train_model(load_config(None, {**job, "out": str(tmp_path / "tuned"), "model.start_from": str(bundle)}))
    assert started.scores["miou"] == pytest.approx(read_card(str(bundle)).scores["miou"], abs=0.03)


@pytest.mark.slow
def test_a_given_model_is_trained_and_sealed(
    given_model: Path, tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path
) -> None:
    job = {**tiny_overrides, "model.architecture": str(given_model), "cluster.workers": "1"}
    job = {key: value for key, value in job.items() if not key.startswith("model.") or "architecture" in key}
    result = train_model(load_config(None, {**job, "out": str(tmp_path / "out")}))
    assert 0 < result.scores["miou"] < 1
    model = load_model(read_card(result.bundle))
    assert model.input.dtype == "uint8"
    assert model.output_shape[-1] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.encoder_weights": "/no/w.h5"}, r"model\.encoder_weights: /no/w\.h5 is no local file; allowed are i"),
        ({"model.architecture": "/no/m.keras"}, r"model\.architecture: /no/m\.keras is no local file; allowed are u"),
        ({"model.start_from": "/no/bundle"}, r"bundle /no/bundle does not exist"),
    ],
)
def test_what_is_not_there_stops_at_the_door(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model_files(load_config(None, change).model)


def test_paths_are_absolute_for_the_workers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    model = load_config(None, {"model.start_from": "bundle", "model.encoder_weights": "none"}).model
    assert find_model_files(model).start_from == str(bundle)
