"""Encoders against keras.applications: the same features for the same picture, and denser ones that hold them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from small_models import NARROW, configure, draw_images, load_plainly, run, scatter_weights

from batchseg.models import ENCODERS, build_model
from batchseg.models.encoders import build_encoder
from batchseg.models.rewriting import rewrite


def set_scaling(model: keras.Model, mean: Any, variance: Any) -> None:
    """EfficientNet scales within, by numbers that come with its weights."""
    for layer in model.layers:
        if isinstance(layer, layers.Normalization) and layer.weights:
            layer.set_weights([np.array(mean), np.array(variance), *layer.get_weights()[2:]])
            layer.finalize_state()


apps = keras.applications
# name, constructor, what prepares a picture of 0 to 255 for it, the layer whose input (<) or output is the deepest
REFERENCES = [
    ("mobilenet", apps.MobileNet, apps.mobilenet.preprocess_input, "conv_pw_13_relu"),
    ("mobilenet_v2", apps.MobileNetV2, apps.mobilenet_v2.preprocess_input, "block_16_project_BN"),
    ("mobilenet_v3_small", apps.MobileNetV3Small, None, "expanded_conv_10_add"),
    ("efficientnet_b0", apps.EfficientNetB0, None, "block7a_project_bn"),
    pytest.param("efficientnet_v2_b0", apps.EfficientNetV2B0, None, "block6h_add", marks=pytest.mark.slow),
    ("resnet50", apps.ResNet50, apps.resnet.preprocess_input, "conv5_block3_out"),
    ("convnext_tiny", apps.ConvNeXtTiny, None, ""),
]


def make_base(constructor: Any, **settings: Any) -> keras.Model:
    """A model of keras.applications as it comes, in which every layer matters."""
    base = constructor(input_shape=(None, None, 3), include_top=False, weights=None, **settings)
    scatter_weights(base)
    return base


@pytest.mark.parametrize(("name", "constructor", "prepare", "deepest"), REFERENCES)
def test_encoder_sees_pictures_as_keras_applications_does(
    name: str, constructor: Any, prepare: Any, deepest: str, tmp_path: Path
) -> None:
    base = make_base(constructor)
    if name == "efficientnet_b0":  # as its ImageNet weights have it
        set_scaling(base, [0.485, 0.456, 0.406], np.array([0.229, 0.224, 0.225]) ** 2)
    path = tmp_path / "encoder.weights.h5"
    base.save_weights(path)
    picture = draw_images(1, (64, 96)).astype(np.float32)
    reference = keras.Model(base.input, base.get_layer(deepest).output if deepest else base.output)
    expected = run(reference, prepare(picture.copy()) if prepare else picture)

    model = build_model(configure(encoder=name, encoder_weights=str(path), encoder_width=1.0), 2)
    encoder = model.get_layer("encoder")
    got = np.asarray(encoder(model.get_layer("scale")(picture), training=False)[-1])
    # A picture changed by 1e-7 comes out of these weights up to 0.0025 of the largest feature apart.
    assert np.abs(got - expected).max() < 0.005 * np.abs(expected).max()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.slow
def test_taps_are_at_the_strides(name: str) -> None:
    encoder = build_encoder(name, NARROW.get(name, 1.0), "none")
    sides = [output.shape[1] for output in encoder(np.zeros((1, 64, 64, 3), np.float32))]
    assert sides == ([16, 8, 4, 2] if name.startswith("convnext") else [32, 16, 8, 4, 2])


# ---- output stride ----


SLOW = pytest.mark.slow
DILATED = [
    pytest.param("mobilenet", apps.MobileNet, 8, "keras"),
    pytest.param("mobilenet_v2", apps.MobileNetV2, 16, "keras", marks=SLOW),
    pytest.param("mobilenet_v2", apps.MobileNetV2, 8, "torch"),
    pytest.param("resnet50", apps.ResNet50, 8, "keras", marks=SLOW),
    pytest.param("convnext_tiny", apps.ConvNeXtTiny, 8, "keras", marks=SLOW),
]


@pytest.mark.parametrize(("name", "constructor", "stride", "padding"), DILATED)
def test_dilated_features_hold_the_features_before(
    name: str, constructor: Any, stride: int, padding: str, tmp_path: Path
) -> None:
    """At every 32nd pixel, a stride turned into dilation changes nothing, up to the border."""
    base = make_base(constructor)
    path = tmp_path / "encoder.weights.h5"
    base.save_weights(path)
    picture = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    coarse, fine = (
        run(build_encoder(name, 1.0, str(path), padding=padding, output_stride=one), picture)[-1]
        for one in (32, stride)
    )
    step = 32 // stride
    assert fine.shape[1:3] == (64 // stride, 96 // stride)
    spread = coarse.std(axis=(1, 2)).max()
    assert np.abs(fine[:, ::step, ::step] - coarse).max() < 0.01 * spread
    assert np.abs(fine[:, 1::step, 1::step] - coarse).max() > 0.1 * spread


@pytest.mark.parametrize(
    ("name", "constructor", "strided"),
    [
        pytest.param("efficientnet_b0", apps.EfficientNetB0, "block6a_dwconv", marks=SLOW),  # 5x5, padded before
        ("efficientnet_v2_b0", apps.EfficientNetV2B0, "block6a_dwconv2"),  # padded by the convolution itself
        ("mobilenet_v3_large", apps.MobileNetV3Large, "expanded_conv_12_depthwise"),
    ],
)
def test_first_dilated_convolution_after_squeeze_and_excite(name: str, constructor: Any, strided: str) -> None:
    """Further in, means over a denser grid differ a little, so only the first is compared."""
    base = make_base(constructor, **ENCODERS[name].settings)
    set_scaling(base, np.zeros(3), np.full(3, 1 / 255**2))  # undoes the 1 / 255 before it
    picture = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    coarse, fine = (
        run(keras.Model(model.input, model.get_layer(strided).output), picture)
        for model in (base, rewrite(base, max_stride=16))
    )
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-3, atol=1e-4 * np.abs(coarse).max())


def test_output_stride_8_doubles_the_rates_of_the_pyramid() -> None:
    for stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        model = build_model(configure("deeplabv3plus", output_stride=stride), 2)
        found = [model.get_layer(f"aspp_{number}_depthwise").dilation_rate for number in (1, 2, 3)]
        assert found == [(rate, rate) for rate in rates]
        assert model.get_layer("encoder")(np.zeros((1, 64, 96, 3), np.float32))[-1].shape[1:3] == (
            64 // stride,
            96 // stride,
        )


# ---- stochastic depth ----


def list_drops(model: keras.Model) -> dict[str, float]:
    found = [layer for layer in model.get_layer("encoder").layers if isinstance(layer, layers.Dropout)]
    assert all(layer.noise_shape == (None, 1, 1, 1) for layer in found)
    return {layer.name: layer.rate for layer in found}


def run_training(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=True))


STOCHASTIC = ["efficientnet_b0", "efficientnet_v2_b0", "convnext_tiny"]


@pytest.mark.parametrize("encoder", [STOCHASTIC[0], *(pytest.param(name, marks=SLOW) for name in STOCHASTIC[1:])])
def test_nothing_is_drawn_without_dropout_and_stochastic_depth(encoder: str) -> None:
    images = draw_images(4)
    depth = {"stochastic_depth": 0.5} if encoder == "convnext_tiny" else {}
    dropping = build_model(configure(encoder=encoder, dropout=0, **depth), 2)
    steady = build_model(configure(encoder=encoder, dropout=0, stochastic_depth=0), 2)
    scatter_weights(dropping)
    assert list_drops(dropping)
    assert not list_drops(steady)
    # The same weights in the same order: start_from, checkpoints and bundles do not depend on the knob.
    assert [variable.path for variable in steady.weights] == [variable.path for variable in dropping.weights]
    steady.set_weights(dropping.get_weights())
    np.testing.assert_array_equal(run(steady, images), run(dropping, images))
    assert not np.array_equal(run_training(dropping, images), run_training(dropping, images))
    np.testing.assert_array_equal(run_training(steady, images), run_training(steady, images))


def test_stochastic_depth_as_keras_has_it() -> None:
    expected = {
        layer.name: layer.rate
        for layer in apps.EfficientNetB0(include_top=False, weights=None).layers
        if isinstance(layer, layers.Dropout)
    }
    for knobs in ({}, {"stochastic_depth": 0.2}):
        assert list_drops(build_model(configure(encoder="efficientnet_b0", **knobs), 2)) == pytest.approx(expected)
    halved = list_drops(build_model(configure(encoder="efficientnet_b0", stochastic_depth=0.1), 2))
    assert halved == pytest.approx({name: rate / 2 for name, rate in expected.items()})


def test_stochastic_depth_of_a_convnext_grows_to_the_knob(tmp_path: Path) -> None:
    assert not list_drops(build_model(configure(encoder="convnext_tiny"), 2))
    model = build_model(configure(encoder="convnext_tiny", stochastic_depth=0.34), 2)
    rates = list(list_drops(model).values())
    assert rates == pytest.approx([0.02 * number for number in range(1, 18)])  # 18 blocks, the first always kept
    model.save(tmp_path / "model.keras")
    assert list_drops(load_plainly(tmp_path / "model.keras")) == list_drops(model)
