"""What is known of each image by itself: how sure the mean is, and where the model does worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg.boundary import CountArray, compute_boundary_f1, count_boundaries
from batchseg.classes import MaskArray
from batchseg.metrics import ConfusionMatrix

_RESAMPLES = 1000
_WORST = 10
_CELLS_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class ImageScore:
    """sums: int64 3xC, pixels hit, of the truth, predicted. boundaries: int64 4xC, see count_boundaries."""

    name: str
    sums: CountArray
    boundaries: CountArray

    @classmethod
    def from_masks(
        cls, name: str, truth: MaskArray, predicted: MaskArray, num_classes: int
    ) -> tuple["ImageScore", ConfusionMatrix]:
        """The score of one image, and the matrix it was taken from."""
        matrix = ConfusionMatrix.from_masks(truth, predicted, num_classes)
        sums = np.stack([np.diag(matrix.counts), matrix.counts.sum(1), matrix.counts.sum(0)])
        return cls(name, sums, count_boundaries(truth, predicted, num_classes)), matrix

    @property
    def miou(self) -> float:
        """Over the classes of its own truth; NaN where all is ignored."""
        return float(average_iou(self.sums))

    def to_row(self) -> dict[str, Any]:
        """Plain data, for a table."""
        return {"name": self.name, "counts": np.concatenate([self.sums, self.boundaries]).ravel().tolist()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ImageScore":
        counts = np.asarray(row["counts"], np.int64).reshape(7, -1)
        return cls(row["name"], counts[:3], counts[3:])


def average_iou(sums: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mIoU from (hits, truth, predicted) in the last but one axis; classes absent from the truth are left out."""
    hits, truth, predicted = (sums[..., index, :].astype(np.float64) for index in range(3))
    union = truth + predicted - hits
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    present = truth > 0
    number = present.sum(-1)
    return np.divide((iou * present).sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)


def describe_images(scores: Sequence[ImageScore], class_names: Sequence[str]) -> dict[str, Any]:
    """What `evaluate` adds to scores.json: boundary_f1, by class too, miou_interval_95, worst_images.

    Equal for any order of the images.
    """
    ordered = sorted(scores, key=lambda score: score.name)
    boundary = compute_boundary_f1(np.sum([score.boundaries for score in ordered], axis=0))
    ranked = sorted((score.miou, score.name) for score in ordered if np.isfinite(score.miou))
    return {
        "boundary_f1": float(np.nanmean(boundary)) if np.isfinite(boundary).any() else None,
        "boundary_f1_by_class": {name: _to_plain(value) for name, value in zip(class_names, boundary, strict=True)},
        "miou_interval_95": [_to_plain(end) for end in bootstrap_miou(np.stack([score.sums for score in ordered]))],
        "worst_images": [{"name": name, "miou": miou} for miou, name in ranked[:_WORST]],
    }


def bootstrap_miou(sums: CountArray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mIoU over 1,000 resamples of the images (Efron 1979). sums: int64 Nx3xC.

    It says how the mean would move with other images of this kind, not with another training.
    """
    count, rng, found = len(sums), np.random.default_rng(seed), []
    flat = sums.reshape(count, -1).astype(np.float64)
    at_once = max(1, min(_RESAMPLES, _CELLS_AT_ONCE // count))
    for start in range(0, _RESAMPLES, at_once):
        # How often each image is drawn, instead of which: the totals are then one product.
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, _RESAMPLES - start))
        found.append(average_iou((times @ flat).reshape(-1, *sums.shape[1:])))
    mious = np.concatenate(found)
    if not np.isfinite(mious).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(mious, [2.5, 97.5])
    return float(low), float(high)


def _to_plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
