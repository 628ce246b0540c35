"""Training with `fit: tile`, from config to bundle: the scores of the last val are those of the predictor."""

from pathlib import Path

import numpy as np
import pytest

from batchseg.bundle import read_card
from batchseg.config import load_config
from batchseg.datasets import open_dataset
from batchseg.datasets.sample import load_sample
from batchseg.metrics import ConfusionMatrix
from batchseg.predict import Predictor
from batchseg.train import train_model


@pytest.mark.slow
def test_training_with_tiles(
    tiny_overrides: dict[str, str], drawn_data: Path, ray_session: None, tmp_path: Path
) -> None:
    tile = {"input.fit": "tile", "input.size": "64,90", "input.overlap": "20", "augment.crop": "none"}
    config = load_config(None, {**tiny_overrides, **tile, "out": str(tmp_path / "out")})
    result = train_model(config)
    geometry = read_card(result.bundle).geometry
    assert (geometry.fit, geometry.canvas_hw, geometry.overlap, geometry.tile_overlap) == ("tile", (64, 96), 20, 32)
    predictor, dataset = Predictor(result.bundle), open_dataset(str(drawn_data))
    total = ConfusionMatrix.empty(len(dataset.classes))
    sizes = set()
    for sample in dataset.samples("val"):
        loaded = load_sample(sample, dataset.classes, geometry)
        sizes.add(loaded.truth.shape)
        (found,) = predictor.predict([sample.image])
        total += ConfusionMatrix.from_masks(loaded.truth, found.mask, len(dataset.classes))
    assert len(sizes) > 1
    # Training scored two shares on two workers; here it is one image after the other.
    assert np.array_equal(total.counts, np.asarray(result.scores["confusion"]))
