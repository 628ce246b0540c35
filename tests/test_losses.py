"""Losses against independent computations in numpy, and that they add up over any split of a batch."""

from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from batchseg.config import TrainingConfig
from batchseg.losses import LOSSES, Loss, build_losses, cross_entropy, dice, divide, focal, hard_pixels, lovasz

SHAPE = (4, 6, 5)
CLASSES = 3


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
    truth[rng.uniform(size=SHAPE) < 0.3] = 255
    truth[3] = 255
    return truth, rng.normal(size=(*SHAPE, CLASSES)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(-1, keepdims=True)


def test_cross_entropy_against_numpy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    weights = [1.0, 2.0, 0.5]
    valid = truth != 255
    chosen = np.take_along_axis(softmax(logits), np.where(valid, truth, 0)[..., None].astype(int), -1)[..., 0]
    total, weight = cross_entropy(truth, logits)
    assert float(weight) == valid.sum()
    assert float(total) == pytest.approx(-np.log(chosen[valid]).sum(), rel=1e-5)
    per_pixel = np.asarray(weights)[truth[valid]]
    total, weight = cross_entropy(truth, logits, weights)
    assert float(weight) == pytest.approx(per_pixel.sum())
    assert float(total) == pytest.approx(-(np.log(chosen[valid]) * per_pixel).sum(), rel=1e-5)


def test_dice_against_numpy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    shares = softmax(logits)
    expected = []
    for image in range(3):
        valid = truth[image] != 255
        missing = []
        for class_id in range(CLASSES):
            hits = truth[image][valid] == class_id
            if hits.any():
                p = shares[image][valid][:, class_id]
                missing.append(1 - (2 * p[hits].sum() + 1) / (hits.sum() + p.sum() + 1))
        expected.append(np.mean(missing))
    total, weight = dice(truth, logits)
    assert float(weight) == 3
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


def test_label_smoothing_against_numpy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    weights = np.array([1.0, 2.0, 0.5])
    expected = 0.0
    for position in np.argwhere(truth != 255):
        target = np.full(CLASSES, 0.2 / CLASSES)
        target[truth[tuple(position)]] += 0.8
        shares = softmax(logits)[tuple(position)]
        expected -= weights[truth[tuple(position)]] * (target * np.log(shares)).sum()
    total, weight = cross_entropy(truth, logits, list(weights), label_smoothing=0.2)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == pytest.approx(weights[truth[truth != 255]].sum())


def list_true_shares(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The share that each valid pixel gives to its true class."""
    valid = truth != 255
    return softmax(logits)[valid][np.arange(valid.sum()), truth[valid]]


def test_focal_against_numpy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    shares = list_true_shares(truth, logits)
    weights = np.array([1.0, 2.0, 0.5])
    total, weight = focal(truth, logits, list(weights), gamma=1.5)
    expected = -(weights[truth[truth != 255]] * (1 - shares) ** 1.5 * np.log(shares)).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == pytest.approx(weights[truth[truth != 255]].sum())
    plain = [float(part) for part in cross_entropy(truth, logits)]
    assert [float(part) for part in focal(truth, logits, gamma=0.0)] == pytest.approx(plain, rel=1e-5)


def test_hard_pixels_against_numpy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    expected, kept = 0.0, 0
    for image in range(SHAPE[0]):
        losses = np.sort(-np.log(list_true_shares(truth[image], logits[image])))[::-1]
        count = int(np.ceil(0.3 * len(losses) - 1e-9))
        expected, kept = expected + losses[:count].sum(), kept + count
    total, weight = hard_pixels(truth, logits, share=0.3)
    assert float(weight) == kept
    assert float(total) == pytest.approx(expected, rel=1e-5)
    one = np.full((1, 2, 2), 255, np.uint8)
    one[0, 1, 1] = 2
    assert float(hard_pixels(one, np.zeros((1, 2, 2, 3), np.float32), share=0.01)[1]) == 1


def compute_lovasz(errors: np.ndarray, hits: np.ndarray) -> float:
    """The definition: the sum of errors times what the Jaccard loss gains when each pixel, worst first, is missed."""
    order = np.argsort(-errors)
    total, before = 0.0, 0.0
    missed = np.zeros(len(errors), bool)
    for index in order:
        missed[index] = True
        overlap, union = (hits & ~missed).sum(), (hits | missed).sum()
        loss = 1 - overlap / union
        total, before = total + errors[index] * (loss - before), loss
    return total


def test_lovasz_against_its_definition(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    expected = 0.0
    for image in range(3):
        valid = truth[image] != 255
        ids, shares = truth[image][valid], softmax(logits[image])[valid]
        present = np.unique(ids)
        expected += np.mean([compute_lovasz(np.abs((ids == c) - shares[:, c]), ids == c) for c in present])
    total, weight = lovasz(truth, logits)
    assert float(weight) == 3
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_answer_costs_nothing(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, _ = batch
    logits = 100 * np.eye(CLASSES, dtype=np.float32)[np.where(truth == 255, 0, truth)]
    for name, loss in LOSSES.items():
        assert float(divide(*loss(truth, logits))) == pytest.approx(0, abs=1e-3), name


def assert_slopes_fit(loss: Loss, truth: np.ndarray, logits: np.ndarray) -> None:
    """Along the slopes, along parts of them, and at random."""
    import tensorflow as tf

    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total, _ = loss(truth, variable)
    slopes = tape.gradient(total, variable).numpy().astype(np.float64)
    assert np.isfinite(slopes).all()
    assert not slopes[truth == 255].any(), "ignored pixels pull"
    rng = np.random.default_rng(1)
    directions = [slopes, *(slopes * rng.uniform(0, 2, logits.shape) for _ in range(5))]
    directions += [rng.normal(size=logits.shape) for _ in range(5)]
    size = np.linalg.norm(slopes)
    for direction in directions:
        # Of length 1 the slope is at most `size`, and near to it for the first six. A step of 0.06 is far above the
        # rounding of float32 sums (3e-4 of `size` was measured), and sorting seldom changes within it.
        unit, step = direction / np.linalg.norm(direction), 0.06
        ends = [float(loss(truth, (logits + sign * step / 2 * unit).astype(np.float32))[0]) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / step == pytest.approx((slopes * unit).sum(), rel=0, abs=2e-3 * size)


SLOPE_OPTIONS: dict[str, dict[str, float]] = {"cross_entropy": {"label_smoothing": 0.1}, "hard_pixels": {"share": 0.4}}


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_are_finite_differences(name: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    assert_slopes_fit(partial(LOSSES[name], **SLOPE_OPTIONS.get(name, {})), *batch)


@pytest.mark.parametrize("factor", [0.99, 1.1])
@pytest.mark.parametrize("name", LOSSES)
def test_slopes_that_are_a_little_off_are_found(name: str, factor: float, batch: tuple[np.ndarray, np.ndarray]) -> None:
    """The check itself: the same values, with slopes times a factor."""

    def bend(truth: np.ndarray, logits: Any) -> tuple[Any, Any]:
        total, weight = LOSSES[name](truth, logits)
        return keras.ops.stop_gradient(total * (1 - factor)) + total * factor, weight

    with pytest.raises(AssertionError, match="comparison failed"):
        assert_slopes_fit(bend, *batch)


def test_weights_depend_on_the_truth_alone(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    for name, loss in LOSSES.items():
        assert float(loss(truth, logits)[1]) == float(loss(truth, np.zeros_like(logits))[1]), name


def test_config_fills_in_options(batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    config = TrainingConfig(losses={"focal": 2.0, "dice": 0.5}, focal_gamma=1.0)
    (share, first), (other, second) = build_losses(config, [1.0, 2.0, 3.0])
    assert (share, other) == (2.0, 0.5)
    assert float(first(truth, logits)[0]) == float(focal(truth, logits, [1.0, 2.0, 3.0], gamma=1.0)[0])
    assert float(second(truth, logits)[0]) == float(dice(truth, logits)[0])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_parts_add_up_to_the_whole(loss, batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    whole = [float(part) for part in loss(truth, logits)]
    first, second = loss(truth[:1], logits[:1]), loss(truth[1:], logits[1:])
    for index in range(2):
        assert float(first[index]) + float(second[index]) == pytest.approx(whole[index], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_all_ignored_gives_zero_and_no_nan(loss) -> None:
    total, weight = loss(np.full((2, 4, 4), 255, np.uint8), np.full((2, 4, 4, 3), 50.0, np.float32))
    assert (float(total), float(weight), float(divide(total, weight))) == (0.0, 0.0, 0.0)
