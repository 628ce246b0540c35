"""Which units of a set go into a part of it, so that every class is in both in the same proportion."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from batchseg.classes import IGNORE_ID, ClassTable
from batchseg.datasets.masks import PanopticFile
from batchseg.datasets.sample import Sample, read_raw_mask
from batchseg.datasets.shapes import CocoShapes
from batchseg.errors import UserError

_THREADS = 8

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def find_presence(samples: Sequence[Sample], classes: ClassTable) -> BoolArray:
    """bool NxC: which classes each mask holds. Reads every mask file; one that cannot be used holds none. Of COCO's
    annotations it asks what is annotated, not what is seen.
    """
    present = np.zeros((len(samples), len(classes)), np.bool_)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="presence") as pool:
        for index, found in enumerate(pool.map(lambda sample: _list_classes(sample, classes), samples)):
            present[index, found] = True
    return present


def _list_classes(sample: Sample, classes: ClassTable) -> list[int]:
    if isinstance(sample.mask, CocoShapes):
        return sorted({*sample.mask.class_ids, sample.mask.rest} - {IGNORE_ID})
    if isinstance(sample.mask, PanopticFile):
        return sorted({*sample.mask.class_ids} - {IGNORE_ID})
    try:
        ids = classes.to_class_ids(read_raw_mask(sample), str(sample.mask))
    except UserError:
        return []  # said by the check of the data, which reads it again
    counts = np.bincount(ids.ravel(), minlength=IGNORE_ID + 1)
    return np.flatnonzero(counts[: len(classes)]).tolist()


def choose_units(
    sizes: npt.NDArray[np.int64], presence: npt.NDArray[np.int64], fraction: float, seed: int
) -> BoolArray:
    """bool U: True for the units of a part that holds about `fraction` of all images.

    sizes: images of each unit (1, or those of a group). presence: int UxC, images of the unit that hold the class.
    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): the class with the fewest images left first, each
    of its units to the side that lacks it most; ties by lacking images, then by chance. Beyond it: of the units of a
    class the last goes to a side that has none yet, and no side stays empty.
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    sizes, presence = sizes[order], presence[order].astype(np.float64)
    share = np.array([1 - fraction, fraction])
    lacking, left = share * sizes.sum(), presence.sum(axis=0)
    wanted, held = share[:, None] * left, np.zeros((2, presence.shape[1]))
    side = np.full(len(sizes), -1)
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.inf)))
        units = np.flatnonzero((side < 0) & (presence[:, rarest] > 0))
        for unit in units:
            is_last = unit == units[-1]
            side[unit] = _pick_side(wanted[:, rarest], lacking, held[:, rarest], is_last)
            wanted[side[unit]] -= presence[unit]
            held[side[unit]] += presence[unit]
            lacking[side[unit]] -= sizes[unit]
            left -= presence[unit]
        left[rarest] = 0
    for unit in np.flatnonzero(side < 0):
        side[unit] = int(lacking[1] > lacking[0] * fraction / (1 - fraction))
        lacking[side[unit]] -= sizes[unit]
    _leave_none_empty(side)
    chosen = np.zeros(len(sizes), np.bool_)
    chosen[order] = side == 1
    return chosen


def _pick_side(wanted: FloatArray, lacking: FloatArray, held: FloatArray, is_last: bool) -> int:
    """All but is_last: two numbers, one for each side."""
    if is_last and (held > 0).sum() == 1:
        return int(held[1] == 0)
    if wanted[0] != wanted[1]:
        return int(wanted[1] > wanted[0])
    return int(lacking[1] > lacking[0])


def _leave_none_empty(side: npt.NDArray[np.int64]) -> None:
    """Moves one unit where all went to the same side. Units are in random order, so any will do."""
    for empty in (0, 1):
        if len(side) > 1 and not (side == empty).any():
            side[0] = empty
