"""Scores from one integer confusion matrix over a whole split: exact under any batch size, order and sharding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg.classes import MaskArray

CountArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ConfusionMatrix:
    """counts: int64 CxC, rows truth, columns prediction. Adds up with +."""

    counts: CountArray

    @classmethod
    def empty(cls, num_classes: int) -> "ConfusionMatrix":
        return cls(np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def from_masks(cls, truth: MaskArray, predicted: MaskArray, num_classes: int) -> "ConfusionMatrix":
        """Counts the pixels whose truth is a class; ignored ones (255) count nowhere.

        truth, predicted: uint8 of equal shape. Raises ValueError when shapes differ or a prediction is no class.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth is {truth.shape}, prediction is {predicted.shape}")
        valid = truth < num_classes
        pairs = truth[valid].astype(np.int64) * num_classes + predicted[valid]
        if predicted[valid].max(initial=0) >= num_classes:
            raise ValueError(f"prediction holds {predicted[valid].max()}, classes are 0-{num_classes - 1}")
        return cls(np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Per class, NaN for a class that stands in neither truth nor prediction."""
        hits = np.diag(self.counts)
        return _divide(hits, self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def dice(self) -> npt.NDArray[np.float64]:
        return _divide(2 * np.diag(self.counts), self.counts.sum(0) + self.counts.sum(1))

    @property
    def miou(self) -> float:
        """Mean over the classes that the truth holds; absent ones are left out. NaN without any valid pixel."""
        return self._average(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        return float(_divide(np.trace(self.counts), self.counts.sum()))

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Per class, the share of its predicted pixels that are right; NaN where it is never predicted."""
        return _divide(np.diag(self.counts), self.counts.sum(0))

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Per class, the share of its true pixels that are found; NaN where it is absent."""
        return _divide(np.diag(self.counts), self.counts.sum(1))

    @property
    def mean_dice(self) -> float:
        """Over the classes that the truth holds, as miou."""
        return self._average(self.dice)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU weighed by each class's share of the true pixels (Long et al. 2015)."""
        return self._average(self.iou, weights=self.counts.sum(1))

    def _average(self, by_class: npt.NDArray[np.float64], weights: CountArray | None = None) -> float:
        """The mean over the classes that the truth holds; NaN where it holds none."""
        present = self.counts.sum(1) > 0
        if not present.any():
            return float("nan")
        return float(np.average(by_class[present], weights=None if weights is None else weights[present]))

    def to_scores(self, class_names: Sequence[str], images: int) -> dict[str, Any]:
        """The content of scores.json. Shares, not percent.

        A class that the truth does not hold is left out of every mean and its scores are None, whatever was predicted;
        its wrong pixels count against the classes that they truly are. Precision is None where nothing was predicted.
        """
        pixels = self.counts.sum(1)
        by_class = {name: getattr(self, name) for name in ("iou", "dice", "precision", "recall")}
        classes = [
            {
                "name": name,
                **{key: float(values[i]) if pixels[i] and np.isfinite(values[i]) else None
                   for key, values in by_class.items()},
                "pixels": int(pixels[i]),
            }
            for i, name in enumerate(class_names)
        ]  # fmt: skip
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_dice": self.mean_dice,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "images": images,
            "classes": classes,
            "confusion": self.counts.tolist(),
        }


def _divide(numerator: Any, denominator: Any) -> Any:
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
