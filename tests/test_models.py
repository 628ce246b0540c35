"""Every architecture and encoder: builds, learns, is saved, is loaded by plain Keras, gives the same."""

import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
from keras import layers

from batchseg.config import ModelConfig, parse_config
from batchseg.errors import UserError
from batchseg.knobs import ARCHITECTURES, Encoder
from batchseg.models import ENCODERS, build_model, load_start
from batchseg.models.encoders import build_encoder
from batchseg.models.rewriting import rewrite
from batchseg.models.starting import list_weighted

NARROW = {"mobilenet": 0.25, "mobilenet_v2": 0.35, "mobilenet_v3_small": 0.75, "mobilenet_v3_large": 0.75}
DECODER: dict[str, dict[str, Any]] = {
    "unet": {"decoder_channels": (8, 8, 8, 8)},
    "deeplabv3plus": {"decoder_width": 8},
    "fpn": {"decoder_width": 8},
}
OTHERS = [encoder for encoder in ENCODERS if encoder != "mobilenet"]
PAIRS = list(product(ARCHITECTURES, ENCODERS))
QUICK = [(name, "mobilenet") for name in ARCHITECTURES]
QUICK += [(ARCHITECTURES[number % 3], encoder) for number, encoder in enumerate(OTHERS)]


def configure(architecture: str = "unet", encoder: str = "mobilenet", **knobs: Any) -> ModelConfig:
    settings = {"encoder_weights": "none", "encoder_width": NARROW.get(encoder, 1.0), **DECODER[architecture], **knobs}
    return ModelConfig(architecture=architecture, encoder=encoder, **settings)


def draw_images(count: int = 2, size_hw: tuple[int, int] = (32, 64)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size_hw, 3), np.uint8)


def run(model: Any, images: np.ndarray) -> Any:
    return keras.tree.map_structure(np.asarray, model(images, training=False))


def load_plainly(path: Path) -> keras.Model:
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def check_life(architecture: str, encoder: str, tmp_path: Path) -> None:
    model = build_model(configure(architecture, encoder), 3)
    assert [layer.name for layer in model.layers][:3] == ["image_rgb", "scale", "encoder"]
    # Names that Keras numbers differ from process to process: start_from would not find those layers again.
    assert not [name for name in list_weighted(model) if re.search(r"(conv2d|dense|normalization)(_\d+)?$", name)]
    images = draw_images()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
    encoder = model.get_layer("encoder")
    before = [variable.numpy() for variable in encoder.trainable_variables]
    assert np.isfinite(model.train_on_batch(images, images[..., 0] % 3))
    changed = [not np.array_equal(old, new) for old, new in zip(before, encoder.trainable_variables, strict=True)]
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


# ---- encoders against keras.applications ----


def scatter_weights(model: keras.Model) -> None:
    """Weights that let no layer off. Fresh ones do: a LayerScale starts at 1e-6, and the picture fades with depth."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, (keras.Model, layers.Normalization)):
            continue
        for variable in layer.weights:
            if variable.name in ("beta", "bias", "moving_mean"):
                variable.assign(rng.normal(0, 0.1, variable.shape))
            elif len(variable.shape) == 1:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif variable.name == "kernel":
                is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
                fan_in = np.prod(variable.shape[:2] if is_depthwise else variable.shape[:-1])
                variable.assign(rng.normal(0, np.sqrt(2 / fan_in), variable.shape))


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


@pytest.mark.parametrize(("name", "constructor", "prepare", "deepest"), REFERENCES)
def test_encoder_sees_pictures_as_keras_applications_does(
    name: str, constructor: Any, prepare: Any, deepest: str, tmp_path: Path
) -> None:
    base = constructor(input_shape=(None, None, 3), include_top=False, weights=None)
    scatter_weights(base)
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
    base = constructor(input_shape=(None, None, 3), include_top=False, weights=None)
    scatter_weights(base)
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
    base = constructor(input_shape=(None, None, 3), include_top=False, weights=None, **ENCODERS[name].settings)
    scatter_weights(base)
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
        ({"encoder": "resnet50", "encoder_padding": "torch"}, r"only mobilenet_v2 can be padded so"),
    ],
)
def test_knobs_that_do_not_go_together(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"model": knobs}, "job.yaml")


# ---- a given model ----


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


# ---- start_from ----


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
