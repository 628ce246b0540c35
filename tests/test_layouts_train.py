"""A short training on every layout that the README shows: it ends with a bundle that knows its classes and images."""

from pathlib import Path

import keras
import numpy as np
import pytest
from layouts import LAYOUTS, draw_splits, write_layout

from batchseg.bundle import read_card
from batchseg.classes import IGNORE_ID
from batchseg.config import load_config
from batchseg.datasets import open_dataset
from batchseg.datasets.sample import load_sample
from batchseg.train import train_model


def make_model(classes: int, folder: Path) -> str:
    """The least that can be trained; what is looked at here is the data."""
    inputs = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, keras.layers.Conv2D(classes, 1)(features)).save(folder / "small.keras")
    return str(folder / "small.keras")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_short_run_ends_with_a_bundle(name: str, ray_session: None, tmp_path: Path) -> None:
    page, _ = write_layout(name, tmp_path / "data", draw_splits(train=8, val=4))
    dataset = open_dataset(page)
    out = tmp_path / "out"
    job = {
        "data": page,
        "out": str(out),
        "model.architecture": make_model(len(dataset.classes), tmp_path),
        "input.size": "48,64",
        "training.epochs": "1",
        "training.batch_size": "4",
        "cluster.workers": "1",
    }
    result = train_model(load_config(None, job))
    card = read_card(result.bundle)
    assert card.classes.to_json() == dataset.classes.to_json()
    assert card.data["images"] == {split: len(samples) for split, samples in dataset.splits.items()}
    assert card.data["fingerprint"] == dataset.fingerprint()
    # The written splits name the same images, so they hold the truth that val was scored against.
    counts = np.zeros(len(dataset.classes), np.int64)
    for sample in open_dataset(str(out / "splits")).samples("val"):
        truth = load_sample(sample, dataset.classes, card.geometry).truth
        counts += np.bincount(truth[truth != IGNORE_ID], minlength=len(counts))
    assert counts.tolist() == np.sum(result.scores["confusion"], axis=1).tolist()
    assert counts.sum() > 0
