"""Models that somebody else built."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from small_models import draw_images, load_plainly, run

from batchseg.config import ModelConfig
from batchseg.errors import UserError
from batchseg.models import build_model


def save_given(path: Path, output: Any = None, shape: Any = (None, None, 3), dtype: str = "float32") -> str:
    image = keras.Input(shape, dtype=dtype)
    scaled = layers.Rescaling(1 / 255)(image)
    result = output(scaled) if output else layers.Conv2D(4, 3, padding="same")(scaled)
    keras.Model(image, result).save(path)
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_given_model_takes_uint8_and_gives_what_it_gave(dtype: str, tmp_path: Path) -> None:
    path = save_given(tmp_path / "own.keras", dtype=dtype)
    images = draw_images()
    expected = run(keras.saving.load_model(path), images.astype(dtype))
    model = build_model(ModelConfig(architecture=path), 4)
    assert model.inputs[0].dtype == "uint8"
    np.testing.assert_array_equal(run(model, images), expected)
    model.save(tmp_path / "again.keras")
    np.testing.assert_array_equal(run(load_plainly(tmp_path / "again.keras"), images), expected)


def test_given_model_in_half_precision_gives_float32(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        path = save_given(tmp_path / "own.keras", dtype="uint8")
    finally:
        keras.config.set_dtype_policy("float32")
    assert run(build_model(ModelConfig(architecture=path), 4), draw_images()).dtype == np.float32


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"output": layers.Conv2D(5, 3, padding="same")}, "gives 5 channels, but there are 4 classes"),
        ({"output": layers.Conv2D(4, 3, strides=2, padding="same")}, "gives 32x48 for a picture of 64x96"),
        (
            {"output": layers.Conv2D(4, 1, activation="softmax")},
            "gives probabilities; save it without its last softmax",
        ),
        ({"output": layers.GlobalAveragePooling2D()}, r"gives \?x3; NxHxWxC is needed"),
        ({"shape": (32, 32, 3)}, r"takes \?x32x32x3; batch, height and width must be free"),
        ({"shape": (None, None, 1)}, r"takes \?x\?x\?x1; NxHxWx3 is needed"),
        ({"shape": (None, 3)}, r"takes \?x\?x3; NxHxWx3 is needed"),
        ({"output": layers.Permute((2, 1, 3))}, "gives 3 channels"),
    ],
)
def test_given_model_that_does_not_segment(knobs: dict[str, Any], message: str, tmp_path: Path) -> None:
    if knobs.get("shape") == (None, 3):
        knobs = {**knobs, "output": layers.Dense(4)}
    path = save_given(tmp_path / "own.keras", **knobs)
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(architecture=path), 4)


def test_given_model_is_not_run_as_code(tmp_path: Path) -> None:
    path = save_given(tmp_path / "own.keras", layers.Lambda(lambda pixels: pixels + 1, output_shape=(None, None, 3)))
    with pytest.raises(UserError, match="cannot be loaded by plain Keras in safe mode"):
        build_model(ModelConfig(architecture=path), 3)


def test_given_model_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.keras does not exist"):
        build_model(ModelConfig(architecture=str(tmp_path / "none.keras")), 3)
    (tmp_path / "bad.keras").write_bytes(b"not a zip file")
    with pytest.raises(UserError, match=r"bad\.keras cannot be loaded"):
        build_model(ModelConfig(architecture=str(tmp_path / "bad.keras")), 3)
    image, second = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    keras.Model([image, second], layers.Add()([image, second])).save(tmp_path / "two.keras")
    with pytest.raises(UserError, match="has 2 inputs and 1 outputs"):
        build_model(ModelConfig(architecture=str(tmp_path / "two.keras")), 3)
