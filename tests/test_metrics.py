"""Scores against numbers worked out by hand and against ten lines of numpy."""

import json

import numpy as np
import pytest

from batchseg.metrics import ConfusionMatrix

TRUTH = np.array([[0, 0], [1, 255]], np.uint8)
PREDICTED = np.array([[0, 1], [1, 0]], np.uint8)


def draw_masks(seed: int, classes: int, shape: tuple[int, ...] = (6, 20, 30)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape)).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    return truth, predicted


def score_by_sets(truth: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[float, float]:
    """mIoU and pixel accuracy from the definition, class by class, without any matrix."""
    valid = truth != 255
    ious = []
    for class_id in range(classes):
        is_true, is_predicted = (truth == class_id) & valid, (predicted == class_id) & valid
        if is_true.any():
            ious.append((is_true & is_predicted).sum() / (is_true | is_predicted).sum())
    return float(np.mean(ious)), float((truth == predicted)[valid].mean())


def test_by_hand() -> None:
    matrix = ConfusionMatrix.from_masks(TRUTH, PREDICTED, 2)
    assert matrix.counts.tolist() == [[1, 1], [0, 1]]
    assert matrix.counts.dtype == np.int64
    assert matrix.iou.tolist() == [0.5, 0.5]
    assert matrix.dice == pytest.approx([2 / 3, 2 / 3])
    assert matrix.miou == 0.5
    assert matrix.pixel_accuracy == pytest.approx(2 / 3)


def test_rows_are_truth() -> None:
    matrix = ConfusionMatrix.from_masks(np.zeros((1, 3), np.uint8), np.array([[0, 2, 2]], np.uint8), 3)
    assert matrix.counts.tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_adds_up() -> None:
    one = ConfusionMatrix.from_masks(TRUTH, PREDICTED, 2)
    assert (one + one).counts.tolist() == [[2, 2], [0, 2]]
    assert one + ConfusionMatrix.empty(2) == one
    assert one.counts.tolist() == [[1, 1], [0, 1]]


def test_ignored_pixels_count_nowhere() -> None:
    truth = np.full((4, 4), 255, np.uint8)
    matrix = ConfusionMatrix.from_masks(truth, np.ones((4, 4), np.uint8), 2)
    assert matrix == ConfusionMatrix.empty(2)
    assert np.isnan(matrix.miou)
    assert np.isnan(matrix.pixel_accuracy)
    # A prediction of 255 matters only where the truth counts.
    assert ConfusionMatrix.from_masks(truth, truth, 2) == ConfusionMatrix.empty(2)


def test_absent_class_is_left_out_of_the_mean() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    clean = ConfusionMatrix.from_masks(truth, truth, 3)
    assert np.isnan(clean.iou[2])
    assert clean.miou == 1.0
    # Predicted though absent: its own IoU is 0 and stays out of the mean, but the class it was taken from pays.
    wrong = ConfusionMatrix.from_masks(truth, np.array([[0, 0, 1, 2]], np.uint8), 3)
    assert wrong.iou[2] == 0.0
    assert wrong.miou == pytest.approx((1 + 0.5) / 2)


def test_scores_page() -> None:
    matrix = ConfusionMatrix.from_masks(TRUTH, PREDICTED, 3)
    scores = json.loads(json.dumps(matrix.to_scores(["a", "b", "c"], images=7), allow_nan=False))
    assert scores["miou"] == 0.5
    assert scores["images"] == 7
    assert scores["classes"][0] == {
        "name": "a", "iou": 0.5, "dice": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "pixels": 2,
    }  # fmt: skip
    nothing = dict.fromkeys(("iou", "dice", "precision", "recall"))
    assert scores["classes"][2] == {"name": "c", **nothing, "pixels": 0}
    assert scores["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("classes", [2, 5, 21, 255])
def test_equals_the_definition(classes: int) -> None:
    truth, predicted = draw_masks(classes, classes)
    matrix = ConfusionMatrix.from_masks(truth, predicted, classes)
    miou, accuracy = score_by_sets(truth, predicted, classes)
    assert matrix.miou == pytest.approx(miou, abs=1e-12)
    assert matrix.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert matrix.counts.sum() == (truth != 255).sum()


def test_any_sharding_gives_the_same_matrix() -> None:
    truth, predicted = draw_masks(3, 5)
    whole = ConfusionMatrix.from_masks(truth, predicted, 5)
    for workers in (1, 2, 4, 6):
        total = ConfusionMatrix.empty(5)
        for rank in reversed(range(workers)):
            share = ConfusionMatrix.empty(5)
            for index in range(rank, len(truth), workers):
                share += ConfusionMatrix.from_masks(truth[index], predicted[index], 5)
            total += share
        assert total == whole
        assert total.miou == whole.miou  # exactly: the counts are integers


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"truth is \(2, 2\), prediction is \(2, 3\)"):
        ConfusionMatrix.from_masks(TRUTH, np.zeros((2, 3), np.uint8), 2)
    with pytest.raises(ValueError, match="prediction holds 2, classes are 0-1"):
        ConfusionMatrix.from_masks(TRUTH, np.full((2, 2), 2, np.uint8), 2)


def test_precision_recall_and_means_by_hand() -> None:
    # Rows truth: a is found 6 of 8 times, b 3 of 4; c is absent and predicted once.
    matrix = ConfusionMatrix(np.array([[6, 1, 1], [1, 3, 0], [0, 0, 0]]))
    assert matrix.precision.tolist() == pytest.approx([6 / 7, 3 / 4, 0])
    assert matrix.recall[:2].tolist() == pytest.approx([6 / 8, 3 / 4])
    assert np.isnan(matrix.recall[2])
    assert matrix.mean_dice == pytest.approx((12 / 15 + 6 / 8) / 2)
    assert matrix.frequency_weighted_iou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 5)
    absent = matrix.to_scores(["a", "b", "c"], images=1)["classes"][2]
    assert absent == {"name": "c", "iou": None, "dice": None, "precision": None, "recall": None, "pixels": 0}
