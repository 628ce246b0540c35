"""How often each value is in a mask, in one quick pass."""

import cv2
import numpy as np
import numpy.typing as npt

from batchseg.classes import UintArray, pack_colors

_NOISY = 8
_EXACT_FLOAT = 2**24

Values = npt.NDArray[np.int64]


def count_values(raw: UintArray) -> tuple[Values, Values]:
    """(values in ascending order, pixels of each). raw: uint8 or uint16 HxW, or HxWx3 of RGB, counted as 0xRRGGBB.

    Counts runs of equal pixels along the rows: masks hold few, and this is four times as fast as a histogram.
    """
    flat = pack_colors(raw).ravel() if raw.ndim == 3 else raw.ravel()
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    if raw.ndim == 2 and len(ends) > flat.size // _NOISY:
        return _count_noisy(raw)
    ends = np.append(ends, flat.size - 1)
    lengths = np.diff(ends, prepend=-1)
    if raw.ndim == 3:
        codes, inverse = np.unique(flat[ends], return_inverse=True)
        return codes.astype(np.int64), np.bincount(inverse, weights=lengths).astype(np.int64)
    counts = np.bincount(flat[ends], weights=lengths)
    values = np.flatnonzero(counts)
    return values, counts[values].astype(np.int64)


def _count_noisy(raw: UintArray) -> tuple[Values, Values]:
    if raw.size < _EXACT_FLOAT:  # calcHist counts in float32
        size = 2 ** (8 * raw.dtype.itemsize)
        counts = cv2.calcHist([raw], [0], None, [size], [0, size]).ravel().astype(np.int64)
    else:
        counts = np.bincount(raw.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]
