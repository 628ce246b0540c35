"""Boundary scores against a literal computation, the bootstrap against a loop, the worst images."""

import json
import math
import random

import numpy as np
import pytest

from batchseg.boundary import compute_boundary_f1, count_boundaries, find_boundaries
from batchseg.image_scores import ImageScore, bootstrap_miou, describe_images
from batchseg.metrics import ConfusionMatrix

NAMES = ["a", "b", "c"]


def draw_masks(seed: int, shape: tuple[int, int] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, a prediction that is shifted, some ignored pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (3, 4)).astype(np.uint8)
    truth = np.kron(coarse, np.ones((5, 5), np.uint8))[: shape[0], : shape[1]]
    predicted = np.roll(truth, (int(rng.integers(0, 3)), int(rng.integers(0, 3))), (0, 1)).copy()
    predicted[rng.uniform(size=shape) < 0.02] = 0
    truth[rng.uniform(size=shape) < 0.05] = 255
    return truth, predicted


def is_outline(ids: np.ndarray, y: int, x: int) -> bool:
    """The definition, pixel by pixel."""
    if ids[y, x] == 255:
        return False
    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
        inside = 0 <= v < ids.shape[0] and 0 <= u < ids.shape[1]
        if inside and ids[v, u] != 255 and ids[v, u] != ids[y, x]:
            return True
    return False


def count_slowly(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    predicted = np.where(truth == 255, 255, predicted)
    tolerance = 0.0075 * math.hypot(*truth.shape)
    counts = np.zeros((4, 3), int)
    for class_id in range(3):
        places = [
            [(y, x) for y, x in np.argwhere(ids == class_id) if is_outline(ids, y, x)] for ids in (predicted, truth)
        ]
        for row, (ours, others) in ((0, places), (2, places[::-1])):
            near = [p for p in ours if any(math.dist(p, q) <= tolerance for q in others)]
            counts[row, class_id], counts[row + 1, class_id] = len(near), len(ours)
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_against_the_definition(seed: int) -> None:
    truth, predicted = draw_masks(seed)
    assert np.array_equal(count_boundaries(truth, predicted, 3), count_slowly(truth, predicted))


def test_tolerance_is_a_share_of_the_diagonal() -> None:
    """At 480x360 4.5 pixels: an outline moved by four counts as met, moved by five it does not."""
    truth = np.zeros((360, 480), np.uint8)
    truth[:, 200:] = 1
    for shift, score in ((4, 1.0), (5, 0.0), (0, 1.0)):
        predicted = np.zeros_like(truth)
        predicted[:, 200 + shift :] = 1
        f1 = compute_boundary_f1(count_boundaries(truth, predicted, 3))
        assert f1[:2].tolist() == pytest.approx([score] * 2)
        assert np.isnan(f1[2])


def test_ignored_pixels_make_no_boundary() -> None:
    truth = np.zeros((6, 6), np.uint8)
    truth[2:4] = 255
    assert not find_boundaries(truth).any()
    assert not count_boundaries(truth, np.random.default_rng(0).integers(0, 3, (6, 6)).astype(np.uint8) * 0, 3).any()


def score_images(count: int) -> tuple[list[ImageScore], ConfusionMatrix]:
    scores, total = [], ConfusionMatrix.empty(3)
    for seed in range(count):
        truth, predicted = draw_masks(seed)
        score, matrix = ImageScore.from_masks(f"{seed:03d}.png", truth, predicted, 3)
        assert score.miou == pytest.approx(matrix.miou)
        scores.append(ImageScore.from_row(json.loads(json.dumps(score.to_row()))))
        total += matrix
    return scores, total


def test_the_bootstrap_is_resampling() -> None:
    scores, total = score_images(30)
    low, high = bootstrap_miou(np.stack([score.sums for score in scores]))
    rng, found = random.Random(0), []
    for _ in range(1000):
        hits, truth, predicted = np.sum([rng.choice(scores).sums for _ in scores], axis=0)
        iou = [h / (t + p - h) for h, t, p in zip(hits, truth, predicted, strict=True) if t]
        found.append(np.mean(iou))
    assert (low, high) == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=0.012)
    assert low < total.miou < high
    one = np.stack([scores[0].sums])
    assert bootstrap_miou(one) == pytest.approx((scores[0].miou, scores[0].miou))


def test_any_order_gives_the_same_and_the_worst_come_first() -> None:
    scores, _ = score_images(30)
    ignored, _ = ImageScore.from_masks("void.png", np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3)
    described = describe_images([*scores, ignored], NAMES)
    shuffled = [ignored, *scores]
    random.Random(1).shuffle(shuffled)
    assert describe_images(shuffled, NAMES) == described
    mious = [item["miou"] for item in described["worst_images"]]
    assert mious == sorted(score.miou for score in scores)[:10]
    assert "void.png" not in json.dumps(described, allow_nan=False)
    assert described["boundary_f1"] == pytest.approx(np.mean(list(described["boundary_f1_by_class"].values())))


def test_nothing_but_ignored_is_no_number() -> None:
    ignored, _ = ImageScore.from_masks("void.png", np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3)
    described = describe_images([ignored], NAMES)
    assert described["miou_interval_95"] == [None, None]
    assert described["worst_images"] == []
    assert described["boundary_f1"] is None
