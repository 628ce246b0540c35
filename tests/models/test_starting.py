"""Weights of one model into another."""

import numpy as np
import pytest
from small_models import configure, draw_images, run, scatter_weights

from batchseg.config import ModelConfig
from batchseg.errors import UserError
from batchseg.models import build_model, load_start


def test_start_takes_every_weight_of_the_same_model() -> None:
    source, model = build_model(configure("fpn"), 3), build_model(configure("fpn"), 3)
    scatter_weights(source)
    report = load_start(model, source)
    np.testing.assert_array_equal(run(model, draw_images()), run(source, draw_images()))
    assert report.describe() == f"loaded {len(model.weights)} of {len(model.weights)} weights; head kept, 3 classes"


def test_start_leaves_the_head_new_for_other_classes() -> None:
    source, model = build_model(configure(), 6), build_model(configure(), 11)
    scatter_weights(source)
    head = model.get_layer("head").get_weights()
    report = load_start(model, source)
    total = len(model.weights)
    assert report.describe() == f"loaded {total - 2} of {total} weights; head new: 6 classes there, 11 here"
    for ours, before in zip(model.get_layer("head").get_weights(), head, strict=True):
        np.testing.assert_array_equal(ours, before)
    for ours, theirs in zip(model.weights[:-2], source.weights[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            configure(decoder_channels=(8, 16, 8, 8)),
            r"layer decoder_1_1 has weights of 3x3x72x16 in the bundle and of 3x3x72x8 ",
        ),
        (
            configure(encoder_width=0.5),
            r"layer encoder/conv1 has weights of 3x3x3x16 in the bundle and of 3x3x3x8 here",
        ),
        (configure(decoder_channels=(8,) * 5), r"layer decoder_4_1 .* and of no shape \(there is no such layer\) here"),
        (configure("fpn"), r"layer decoder_0_1 has weights of no shape"),
    ],
)
def test_start_from_another_model_names_the_first_difference(there: ModelConfig, message: str) -> None:
    model = build_model(configure(), 3)
    before = model.get_weights()
    with pytest.raises(UserError, match=message):
        load_start(model, build_model(there, 3))
    for ours, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, old)
