"""Every architecture and encoder: builds, learns, is saved, is loaded by plain Keras, gives the same."""

import re
from itertools import product
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
from small_models import configure, draw_images, load_plainly, run

from batchseg.config import parse_config
from batchseg.errors import UserError
from batchseg.model_knobs import ARCHITECTURES, Encoder
from batchseg.models import ENCODERS, build_model
from batchseg.models.starting import list_weighted

OTHERS = [encoder for encoder in ENCODERS if encoder != "mobilenet"]
PAIRS = list(product(ARCHITECTURES, ENCODERS))
QUICK = [(name, "mobilenet") for name in ARCHITECTURES]
QUICK += [(ARCHITECTURES[number % 3], encoder) for number, encoder in enumerate(OTHERS)]


def check_life(architecture: str, encoder: str, tmp_path: Path) -> None:
    model = build_model(configure(architecture, encoder), 3)
    assert [layer.name for layer in model.layers][:3] == ["image_rgb", "scale", "encoder"]
    # Names that Keras numbers differ from process to process: start_from would not find those layers again.
    assert not [name for name in list_weighted(model) if re.search(r"(conv2d|dense|normalization)(_\d+)?$", name)]
    images = draw_images()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
    trained = model.get_layer("encoder").trainable_variables
    before = [variable.numpy() for variable in trained]
    assert np.isfinite(model.train_on_batch(images, images[..., 0] % 3))
    changed = [not np.array_equal(old, new) for old, new in zip(before, trained, strict=True)]
    assert np.mean(changed) > 0.5  # the gradient reaches the encoder; bits of some biases do not move in one step
    logits = run(model, images)
    assert (logits.shape, logits.dtype) == ((2, 32, 64, 3), np.float32)
    model.save(tmp_path / "model.keras")
    loaded = load_plainly(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(loaded, images), logits)
    if encoder == "mobilenet":
        assert run(loaded, draw_images(1, (64, 32))).shape == (1, 64, 32, 3)


@pytest.mark.parametrize(("architecture", "encoder"), QUICK)
def test_life_of_a_model(architecture: str, encoder: str, tmp_path: Path) -> None:
    check_life(architecture, encoder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "encoder"), [pair for pair in PAIRS if pair not in QUICK])
def test_life_of_every_other_model(architecture: str, encoder: str, tmp_path: Path) -> None:
    check_life(architecture, encoder, tmp_path)


def test_knobs_name_every_encoder() -> None:
    assert get_args(Encoder) == tuple(ENCODERS)


# ---- decoders ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scaling_and_logits_stay_in_float32_under_half_precision(architecture: str) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(configure(architecture, "efficientnet_b0" if architecture == "fpn" else "mobilenet"), 2)
    finally:
        keras.config.set_dtype_policy("float32")
    in_float32 = {layer.name for layer in model.layers if layer.compute_dtype == "float32"}
    assert {"scale", "head", "enlarge", "blend"} <= in_float32
    assert {layer.compute_dtype for layer in model.get_layer("encoder").layers[1:]} == {"bfloat16"}
    assert run(model, draw_images()).dtype == np.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_lie_over_the_picture(architecture: str) -> None:
    """A turned picture gives turned logits nearly, but not logits shifted or with axes swapped."""
    model = build_model(configure(architecture, dropout=0), 2)
    dark = np.zeros((1, 128, 192, 3), np.uint8)
    spotted = dark.copy()
    spotted[0, 32:48, 128:144] = 255
    change = np.abs(run(model, spotted) - run(model, dark)).sum(axis=-1)[0]
    change -= np.median(change)  # what the mean over the picture spreads evenly
    rows, columns = np.meshgrid(np.arange(128), np.arange(192), indexing="ij")
    weight = np.clip(change, 0, None) ** 2
    centre = ((rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum())
    assert np.hypot(centre[0] - 40, centre[1] - 136) < 24


def test_dropout_of_0_is_no_layer() -> None:
    assert "dropout" not in [layer.name for layer in build_model(configure("fpn", dropout=0), 2).layers]
    assert "dropout" in [layer.name for layer in build_model(configure("fpn", dropout=0.2), 2).layers]


# ---- knobs ----


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"architecture": "pspnet"},
            r"architecture is 'pspnet'; allowed are unet, deeplabv3plus, fpn, or a path that ends",
        ),
        (
            {"architecture": "fpn", "decoder_channels": "8,8,8,8"},
            r"decoder_channels is \[8, 8, 8, 8\].*only unet has it",
        ),
        ({"decoder_width": 64}, r"decoder_width is 64, but architecture is unet"),
        ({"output_stride": 8}, r"output_stride is 8, but architecture is unet; only deeplabv3plus"),
        ({"architecture": "deeplabv3plus", "output_stride": 4}, r"model\.output_stride is 4"),
        ({"encoder": "resnet50", "encoder_width": 0.5}, r"encoder_width is 0\.5, but resnet50 has one width only"),
        (
            {"stochastic_depth": 0.1},
            r"stochastic_depth is 0\.1, but encoder is mobilenet_v2; only efficientnets and conv",
        ),
        ({"encoder": "convnext_tiny", "stochastic_depth": 1}, r"model\.stochastic_depth is 1: "),
        ({"encoder": "resnet50", "encoder_padding": "torch"}, r"only mobilenet_v2 can be padded so"),
    ],
)
def test_knobs_that_do_not_go_together(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"model": knobs}, "job.yaml")
