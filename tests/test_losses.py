"""Losses against independent computations in numpy, and that they add up over any split of a batch."""

import numpy as np
import pytest

from batchseg.losses import cross_entropy, dice, divide

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


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_parts_add_up_to_the_whole(loss, batch: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = batch
    whole = [float(part) for part in loss(truth, logits)]
    first, second = loss(truth[:1], logits[:1]), loss(truth[1:], logits[1:])
    for index in range(2):
        assert float(first[index]) + float(second[index]) == pytest.approx(whole[index], rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_all_ignored_gives_zero_and_no_nan(loss) -> None:
    total, weight = loss(np.full((2, 4, 4), 255, np.uint8), np.full((2, 4, 4, 3), 50.0, np.float32))
    assert (float(total), float(weight), float(divide(total, weight))) == (0.0, 0.0, 0.0)
