"""How well the outlines of classes are met: counts of boundary pixels, which add up over images."""

import math

import cv2
import numpy as np
import numpy.typing as npt

from batchseg.classes import IGNORE_ID, MaskArray

CountArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

TOLERANCE = 0.0075
"""Of the image's diagonal, as in Csurka et al. 2013; 4.5 pixels at 480x360."""


def count_boundaries(truth: MaskArray, predicted: MaskArray, num_classes: int) -> CountArray:
    """int64 4xC: predicted boundary pixels near a true one of their class, all predicted, true ones near, all true.

    truth, predicted: uint8 HxW. Where truth is ignored there is no boundary, nor between it and what lies beside it.
    """
    counts = np.zeros((4, num_classes), np.int64)
    predicted = np.where(truth == IGNORE_ID, np.uint8(IGNORE_ID), predicted)
    tolerance = TOLERANCE * math.hypot(*truth.shape)
    outlines = [np.where(find_boundaries(ids), ids, np.uint8(IGNORE_ID)) for ids in (predicted, truth)]
    for class_id in np.flatnonzero(np.bincount(np.concatenate(outlines).ravel(), minlength=256)[:num_classes]):
        ours, theirs = (outline == class_id for outline in outlines)
        near, met = ours & _is_near(theirs, tolerance), theirs & _is_near(ours, tolerance)
        counts[:, class_id] = [part.sum() for part in (near, ours, met, theirs)]
    return counts


def find_boundaries(class_ids: MaskArray) -> BoolArray:
    """True for pixels with a neighbour of another class above, below, left or right; ignored ones are no neighbours."""
    found = np.zeros(class_ids.shape, bool)
    for axis in (0, 1):
        first = np.moveaxis(class_ids, axis, 0)
        differs = (first[1:] != first[:-1]) & (first[1:] != IGNORE_ID) & (first[:-1] != IGNORE_ID)
        marks = np.moveaxis(found, axis, 0)
        marks[1:] |= differs
        marks[:-1] |= differs
    return found


def compute_boundary_f1(counts: CountArray) -> npt.NDArray[np.float64]:
    """Per class, from summed counts 4xC: the harmonic mean of precision and recall; NaN without a true boundary."""
    near, predicted, met, true = counts.astype(np.float64)
    precision = np.divide(near, predicted, out=np.zeros_like(near), where=predicted > 0)
    recall = np.divide(met, true, out=np.zeros_like(met), where=true > 0)
    both = precision + recall
    score = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return np.where(true > 0, score, np.nan)


def _is_near(outline: BoolArray, tolerance: float) -> BoolArray:
    if not outline.any():
        return np.zeros_like(outline)
    away = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(away <= tolerance)
