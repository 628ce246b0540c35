"""Models: any size in, logits of the same size out, stock layers, saved and loaded by plain Keras."""

from pathlib import Path

import keras
import numpy as np
import pytest

from batchseg.config import ModelConfig
from batchseg.errors import UserError
from batchseg.models import build_model
from batchseg.models.encoders import build_encoder


def test_five_decoder_levels_end_at_full_size() -> None:
    config = ModelConfig(
        encoder="mobilenet", encoder_width=0.25, encoder_weights="none", decoder_channels=(8, 8, 8, 8, 8)
    )
    assert build_model(config, 2).output_shape == (None, None, None, 2)
    assert np.asarray(build_model(config, 2)(np.zeros((1, 32, 64, 3), np.uint8))).shape == (1, 32, 64, 2)


def test_half_precision_keeps_logits_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        config = ModelConfig(
            encoder="mobilenet", encoder_width=0.25, encoder_weights="none", decoder_channels=(8, 8, 8, 8)
        )
        model = build_model(config, 2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("decoder_0_1").compute_dtype == "bfloat16"
    assert np.asarray(model(np.zeros((1, 32, 32, 3), np.uint8))).dtype == np.float32


def test_encoder_weights_come_from_a_path(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenet_v1_0.25_224_notop.weights.h5"
    config = ModelConfig(
        encoder="mobilenet", encoder_width=0.25, encoder_weights=str(path), decoder_channels=(8, 8, 8, 8)
    )
    stem = build_model(config, 2).get_layer("encoder").get_layer("conv1").get_weights()[0]
    reference = keras.applications.MobileNet(
        input_shape=(None, None, 3), alpha=0.25, include_top=False, weights=str(path)
    )
    np.testing.assert_array_equal(stem, reference.get_layer("conv1").get_weights()[0])


def test_weights_that_do_not_fit_are_refused(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenet_v1_0.75_224_notop.weights.h5"
    config = ModelConfig(encoder="mobilenet", encoder_width=0.25, encoder_weights=str(path))
    with pytest.raises(UserError, match=r"cannot be loaded into mobilenet of width 0\.25"):
        build_model(config, 2)


@pytest.mark.slow
def test_torch_padding_is_in_the_saved_graph_and_keeps_the_weights(tmp_path: Path) -> None:
    """Padded on all sides, the first strided convolution sees pixels 2i-1 to 2i+1: those of Keras, one step earlier."""
    path = tmp_path / "encoder.weights.h5"
    keras.applications.MobileNetV2((None, None, 3), 0.35, include_top=False, weights=None).save_weights(path)
    encoders = {name: build_encoder("mobilenet_v2", 0.35, str(path), padding=name) for name in ("keras", "torch")}
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    features = {name: encoder(picture) for name, encoder in encoders.items()}
    assert [one.shape for one in features["torch"]] == [one.shape for one in features["keras"]]
    np.testing.assert_array_equal(features["torch"][0], features["keras"][0])  # before the first ZeroPadding2D
    assert not np.allclose(features["torch"][1], features["keras"][1])

    names = [[one.name for one in encoder.layers[1:]] for encoder in encoders.values()]  # inputs are numbered
    assert names[0] == names[1]
    config = ModelConfig(
        encoder_width=0.35, encoder_weights=str(path), encoder_padding="torch", decoder_channels=(8, 8, 8, 8)
    )
    build_model(config, 2).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True).get_layer("encoder")
    pads = [one.padding for one in loaded.layers if isinstance(one, keras.layers.ZeroPadding2D)]
    assert pads == [((1, 1), (1, 1))] * 4
    for ours, theirs in zip(loaded(picture), features["torch"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
