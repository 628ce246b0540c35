"""Models that somebody else built."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from small_models import draw_images, load_plainly, run

from batchseg.config import ModelConfig, load_config
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


# ---- precision ----


def save_deep(path: Path, policy: str, dtype: str = "uint8", encoder: str = "encoder") -> str:
    """Nested, wrapped and shared layers, under a policy."""
    keras.config.set_dtype_policy(policy)
    try:
        features = keras.Input((None, None, 3))
        shared = layers.Conv2D(3, 3, padding="same", name="shared")
        inner = keras.Model(features, layers.BatchNormalization(name="norm")(shared(shared(features))), name=encoder)
        image = keras.Input((None, None, 3), dtype=dtype)
        current = layers.Dropout(0.1)(inner(layers.Rescaling(1 / 255, name="scaling")(image)) + 0.5)
        current = keras.Sequential([layers.Conv2D(4, 1, name="within")])(current)
        current = layers.Activation("relu", dtype="float32", name="kept")(current)
        keras.Model(image, layers.Conv2D(4, 3, padding="same", name="last")(current)).save(path)
    finally:
        keras.config.set_dtype_policy("float32")
    return str(path)


def build_under(policy: str, path: str) -> tuple[keras.Model, dict[str, str]]:
    """The model, and the policy of each layer that has one."""
    keras.config.set_dtype_policy(policy)
    try:
        model = build_model(ModelConfig(architecture=path), 4)
    finally:
        keras.config.set_dtype_policy("float32")
    names = ("scaling", "shared", "norm", "dropout", "within", "kept", "last")
    return model, {
        layer.name: layer.dtype_policy.name for layer in model._flatten_layers() if layer.name.startswith(names)
    }


@pytest.mark.parametrize("saved", ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_given_model_is_float32_whatever_it_was_saved_in(saved: str, dtype: str, tmp_path: Path) -> None:
    path = save_deep(tmp_path / "own.keras", saved, dtype)
    model, policies = build_under("float32", path)
    assert set(policies.values()) == {"float32"}
    assert len(policies) == 7
    assert {variable.dtype for variable in model.weights} == {"float32"}
    images = draw_images()
    scores = run(model, images)
    assert scores.dtype == np.float32
    expected = run(keras.saving.load_model(path), images.astype(dtype)).astype(np.float32)
    # bfloat16 has 8 bits: 0.4 % of the largest value at each of five layers.
    np.testing.assert_allclose(scores, expected, atol=0.02 * np.abs(expected).max())
    model.save(tmp_path / "bundle.keras")
    np.testing.assert_array_equal(run(load_plainly(tmp_path / "bundle.keras"), images), scores)


@pytest.mark.parametrize("wanted", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("saved", ["float32", "mixed_bfloat16"])
def test_given_model_trains_in_the_precision_asked_for(wanted: str, saved: str, tmp_path: Path) -> None:
    path = save_deep(tmp_path / "own.keras", saved, "float32")
    model, policies = build_under(wanted, path)
    in_float32 = {name for name, policy in policies.items() if policy == "float32"}
    # A file in one precision says nothing about its layers; one in mixed precision says which stay in float32.
    assert in_float32 == {"scaling", "last"} | ({"kept"} if saved == "mixed_bfloat16" else set())
    assert {policies[name] for name in ("shared", "norm", "within")} == {wanted}
    assert {variable.dtype for variable in model.weights} == {"float32"}
    assert run(model, draw_images()).dtype == np.float32
    twin, _ = build_under("float32", path)
    assert [variable.shape for variable in twin.weights] == [variable.shape for variable in model.weights]
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_given_sequential_model(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, padding="same", name="last")]).save(
        tmp_path / "own.keras"
    )
    model, policies = build_under("mixed_bfloat16", str(tmp_path / "own.keras"))
    assert policies == {"last": "float32"}
    assert run(model, draw_images()).shape == (2, 32, 64, 4)


def test_given_model_that_is_quantised(tmp_path: Path) -> None:
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Dense(4, name="last")(image))
    model.get_layer("last").quantize("int8")
    model.save(tmp_path / "own.keras")
    with pytest.raises(UserError, match=r"own\.keras is quantised \(layer last is int8_from_float32\); save it before"):
        build_model(ModelConfig(architecture=str(tmp_path / "own.keras")), 4)


# ---- its encoder ----


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_encoder_of_a_given_model_is_found(dtype: str, tmp_path: Path) -> None:
    path = save_deep(tmp_path / "own.keras", "float32", dtype)
    knobs = {"training.encoder_rate": "0.1", "training.freeze_encoder_epochs": "1"}
    assert load_config(None, {"model.architecture": path, **knobs}).model.has_encoder()
    model, _ = build_under("float32", path)
    assert len(model.get_layer("encoder").trainable_variables) == 4


def test_knobs_of_an_encoder_that_a_given_model_does_not_have(tmp_path: Path) -> None:
    path = save_deep(tmp_path / "own.keras", "float32", encoder="backbone")
    with pytest.raises(
        UserError, match=r"^config command line: training\.encoder_rate is 0\.3, but .*own\.keras has no layer called"
    ):
        load_config(None, {"model.architecture": path, "training.encoder_rate": "0.3"})
    with pytest.raises(
        UserError, match=r"training\.freeze_encoder_epochs is 2, .* no layer called encoder; allowed is 0"
    ):
        load_config(None, {"model.architecture": path, "training.freeze_encoder_epochs": "2"})
    off = {"training.encoder_rate": "1.0", "training.freeze_encoder_epochs": "0"}
    assert not load_config(None, {"model.architecture": path, **off}).model.has_encoder()


def test_a_file_that_cannot_be_read_is_refused_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "bad.keras").write_bytes(b"not a zip file")
    for name in ("bad.keras", "none.keras"):
        load_config(None, {"model.architecture": str(tmp_path / name), "training.encoder_rate": "0.3"})


# ---- what is refused ----


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
