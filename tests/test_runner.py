"""Tiles, views and batches with a small convolution of known reach; out of memory with a model that has little."""

from collections.abc import Callable

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from batchseg import geometry as geo
from batchseg.errors import ImageError
from batchseg.predict import make_runner
from batchseg.quality import InferenceOptions, finish_mask
from batchseg.runner import CanvasPrediction, CanvasRunner

CLASSES = 6
STRIDE = 4
REACH = 13
"""Pixels that the model looks to each side: ten convolutions of 3x3, and one of 3x3 at stride 4 (rounded up)."""


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """uint8 RGB -> logits; random weights, so that it answers something else nearly everywhere."""
    keras.utils.set_random_seed(3)
    options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
    inputs = keras.layers.Input((None, None, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    for _ in range(8):
        x = keras.layers.Conv2D(8, 3, **options)(x)
    coarse = keras.layers.Conv2D(8, 3, strides=STRIDE, **options)(x)
    x = keras.layers.Concatenate()([x, keras.layers.UpSampling2D(STRIDE, interpolation="nearest")(coarse)])
    # Without a bias and normalised, no class wins everywhere.
    logits = keras.layers.Conv2D(CLASSES, 1, kernel_initializer="he_normal")(x)
    return keras.Model(inputs, logits)


def draw_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def run(runner: CanvasRunner, image: np.ndarray, geometry: geo.Geometry) -> CanvasPrediction:
    plan = geo.make_plan(image.shape[:2], geometry)
    ((_, found),) = runner.stream([(None, geo.fit_image(image, plan), plan)])
    assert isinstance(found, CanvasPrediction)
    return found


@pytest.fixture(scope="module")
def runner(model: keras.Model) -> CanvasRunner:
    return make_runner(model, STRIDE, 4, InferenceOptions(score_map=True))


@pytest.mark.parametrize(
    ("size_hw", "edge"),
    [
        # 96 + 64 k and 128 + 96 k: the last tiles end where the image ends, so edges are padded alike.
        ((288, 416), 0),
        # Elsewhere a tile mirrors the image where the whole image ends in zeros of the convolutions.
        ((301, 443), REACH),
    ],
)
def test_tiles_are_as_good_as_the_whole_image(runner: CanvasRunner, size_hw: tuple[int, int], edge: int) -> None:
    """A model that reaches less far than the overlap: 27 of 32 pixels."""
    image = draw_image(*size_hw)
    tiled = run(runner, image, geo.Geometry((96, 128), "tile", STRIDE, 32))
    whole = run(runner, image, geo.Geometry(size_hw, "resize", STRIDE))
    window = np.s_[: size_hw[0] - edge, : size_hw[1] - edge]
    ids, other = tiled.ids[window], whole.ids[: size_hw[0], : size_hw[1]][window]
    assert np.bincount(other.ravel(), minlength=CLASSES).max() < 0.8 * other.size
    assert (ids == other).mean() >= 0.999
    assert tiled.scores is not None
    assert whole.scores is not None
    assert np.abs(tiled.scores[window].astype(int) - whole.scores[: size_hw[0], : size_hw[1]][window]).mean() < 0.5


def test_without_overlap_seams_show(runner: CanvasRunner) -> None:
    """What the test above would see if tiles were not blended."""
    image = draw_image(288, 384)
    tiled = run(runner, image, geo.Geometry((96, 128), "tile", STRIDE, 0))
    whole = run(runner, image, geo.Geometry((288, 384), "resize", STRIDE))
    assert (tiled.ids == whole.ids).mean() < 0.999


def test_one_tile_is_the_whole_image(runner: CanvasRunner) -> None:
    image = draw_image(70, 99)
    tiled = run(runner, image, geo.Geometry((96, 128), "tile", STRIDE, 32))
    padded = cv2.copyMakeBorder(image, 0, 26, 0, 29, cv2.BORDER_REFLECT_101)
    whole = run(runner, np.asarray(padded, np.uint8), geo.Geometry((96, 128), "resize", STRIDE))
    assert np.array_equal(tiled.ids, whole.ids[:70, :99])


@pytest.mark.parametrize("fit", ["tile", "resize"])
def test_flip_averages_with_the_mirrored_image(model: keras.Model, fit: geo.Fit) -> None:
    """So the mirrored image gets the mirrored answer, up to rounding."""
    runner = make_runner(model, STRIDE, 4, InferenceOptions(flip=True, score_map=True))
    image = draw_image(96, 224)
    geometry = geo.Geometry((96, 128) if fit == "tile" else (96, 224), fit, STRIDE, 32)
    found, mirrored = (run(runner, picture, geometry) for picture in (image, np.ascontiguousarray(image[:, ::-1])))
    assert (found.ids == mirrored.ids[:, ::-1]).mean() > 0.999
    plain = run(make_runner(model, STRIDE, 4), image, geometry)
    assert (found.ids == plain.ids).mean() < 0.999


def test_scales_average_what_the_model_says_of_resized_images(model: keras.Model) -> None:
    image = draw_image(64, 96)
    geometry = geo.Geometry((64, 96), "resize", STRIDE)
    found = run(make_runner(model, STRIDE, 4, InferenceOptions(scales=(1.0, 0.6), score_map=True)), image, geometry)
    views = []
    # 0.6 of 64 x 96 is 38.4 x 57.6; on the stride 40 x 56 (9.6 and 14.4 strides, rounded).
    for size_hw in ((64, 96), (40, 56)):
        seen = tf.saturate_cast(tf.round(tf.image.resize(image[None], size_hw, antialias=True)), tf.uint8)
        views.append(tf.nn.softmax(tf.image.resize(model(seen), (64, 96))).numpy()[0])
    expected = np.mean(views, 0)
    assert (found.ids == expected.argmax(-1)).mean() > 0.999
    assert found.scores is not None
    assert np.abs(found.scores - expected.max(-1) * 255).max() <= 1


def test_small_regions_are_dropped_in_the_frame_of_the_image(runner: CanvasRunner) -> None:
    image, options = draw_image(100, 150), InferenceOptions(min_region=30)
    geometry = geo.Geometry((64, 96), "letterbox", STRIDE)
    plan = geo.make_plan((100, 150), geometry)
    found = run(runner, image, geometry)
    mask = finish_mask(found.ids, plan, options)
    assert mask.shape == (100, 150)
    for class_id in range(CLASSES):
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == class_id).view(np.uint8), connectivity=4)
        assert stats[1:, cv2.CC_STAT_AREA].min(initial=30) >= 30
    assert not np.array_equal(mask, geo.restore_mask(found.ids, plan))


# --- memory ---


def limit_memory(model: keras.Model, most: int, error: Callable[[], BaseException]) -> tuple[CanvasRunner, list[int]]:
    """The real model, but more than `most` pieces at once are too many. Returns the sizes of all calls too."""
    real, calls = make_runner(model, STRIDE, 99), []

    def limit(function: Callable) -> Callable:
        def call(pixels: np.ndarray) -> object:
            calls.append(len(pixels))
            if len(pixels) > most:
                raise error()
            return function(pixels)

        return call

    forward, score = limit(real._forward), limit(real._score)
    return CanvasRunner(forward, score, 8, InferenceOptions(), (tf.errors.ResourceExhaustedError,)), calls


def make_items(geometry: geo.Geometry, count: int) -> list[tuple[int, np.ndarray, geo.Plan]]:
    items = []
    for index in range(count):
        image = draw_image(60 + 31 * index, 80 + 17 * index, seed=index)
        plan = geo.make_plan(image.shape[:2], geometry)
        items.append((index, geo.fit_image(image, plan), plan))
    return items


@pytest.mark.parametrize("error", [lambda: tf.errors.ResourceExhaustedError(None, None, "no"), MemoryError])
@pytest.mark.parametrize("geometry", [geo.Geometry((64, 64), fit, STRIDE, 16) for fit in ("resize", "tile")], ids=str)
@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_batch_and_remembers(
    model: keras.Model, runner: CanvasRunner, geometry: geo.Geometry, most: int, error: Callable[[], BaseException]
) -> None:
    small, calls = limit_memory(model, most, error)
    items = make_items(geometry, 9)
    found = list(small.stream(items))
    assert [tag for tag, _ in found] == list(range(9))
    for (_, one), (_, other) in zip(found, runner.stream(items), strict=True):
        assert isinstance(one, CanvasPrediction)
        assert isinstance(other, CanvasPrediction)
        assert np.array_equal(one.ids, other.ids)
    assert calls[:2] == [8, 4]
    assert small.batch_size == (1 if most == 1 else 2)
    assert sum(size > most for size in calls) == (3 if most == 1 else 2)


def test_an_image_that_is_too_much_alone_fails_alone(model: keras.Model) -> None:
    """Every tile of the large image is; the others have their answers."""
    geometry = geo.Geometry((64, 64), "tile", STRIDE, 16)
    items = make_items(geometry, 4)
    bright = np.full((150, 200, 3), 255, np.uint8)
    plan = geo.make_plan((150, 200), geometry)
    items.insert(2, (99, bright, plan))
    real = make_runner(model, STRIDE, 99)
    asked = []

    def score(pixels: np.ndarray) -> np.ndarray:
        if (pixels == 255).all((1, 2, 3)).any():
            asked.append(len(pixels))
            raise tf.errors.ResourceExhaustedError(None, None, "no")
        return real._score(pixels)

    found = dict(
        CanvasRunner(real._forward, score, 4, InferenceOptions(), (tf.errors.ResourceExhaustedError,)).stream(items)
    )
    assert list(found) == [0, 1, 99, 2, 3]
    failed = found.pop(99)
    assert isinstance(failed, ImageError)
    assert failed.kind == "oom"
    assert str(failed) == "200x150 needs more memory than there is to segment it"
    for index, one in found.items():
        assert isinstance(one, CanvasPrediction)
        ((_, alone),) = make_runner(model, STRIDE, 4).stream([item for item in items if item[0] == index])
        assert isinstance(alone, CanvasPrediction)
        assert np.array_equal(one.ids, alone.ids)
    # The rest of its tiles are not tried.
    assert asked.count(1) == 1


def test_images_are_taken_when_there_is_room(runner: CanvasRunner) -> None:
    """A pile of large images is not held at once."""
    taken = []

    def list_items() -> object:
        for item in make_items(geo.Geometry((64, 64), "tile", STRIDE, 16), 6):
            taken.append(item[0])
            yield item

    for tag, _ in runner.stream(list_items()):
        assert len(taken) <= tag + 4 + 1


def test_a_canvas_that_is_not_its_plan_is_a_fault(runner: CanvasRunner) -> None:
    plan = geo.make_plan((60, 80), geo.Geometry((64, 64), "resize", STRIDE))
    with pytest.raises(ValueError, match=r"canvas is \(60, 80, 3\); its plan says \(64, 64, 3\)"):
        list(runner.stream([(None, np.zeros((60, 80, 3), np.uint8), plan)]))
