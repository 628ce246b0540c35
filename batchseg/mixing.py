"""What puts something else into a training image and its mask: classes of another image, blank rectangles."""

import numpy as np

from batchseg.classes import IGNORE_ID, MaskArray
from batchseg.images import RgbArray

Pair = tuple[RgbArray, MaskArray]

_MOST_RECTANGLES = 3
_SIDE_SHARES = (0.1, 0.3)
_BLANK = 114  # mid grey, near the mean of photos


def list_classes(class_ids: MaskArray) -> np.ndarray:
    """The class ids in a mask, ascending, without the ignored."""
    return np.flatnonzero(np.bincount(class_ids.ravel(), minlength=256)[:IGNORE_ID])


def mix_classes(pair: Pair, donor: Pair, rng: np.random.Generator) -> Pair:
    """Pastes half of the classes that the donor shows over the pair, image and mask (ClassMix, Olsson et al. 2021).

    Both of one size. What the donor ignores is never pasted.
    """
    classes = list_classes(donor[1])
    chosen = rng.permutation(classes)[: (len(classes) + 1) // 2]
    is_pasted = np.isin(donor[1], chosen)
    return np.where(is_pasted[..., None], donor[0], pair[0]), np.where(is_pasted, donor[1], pair[1])


def cut_out(pair: Pair, rng: np.random.Generator) -> Pair:
    """Blanks one to three rectangles of a tenth to three tenths of each side; their mask is ignored.

    After DeVries and Taylor 2017, who had no masks: what cannot be seen is not to be learned.
    """
    image, mask = pair[0].copy(), pair[1].copy()
    for _ in range(rng.integers(1, _MOST_RECTANGLES, endpoint=True)):
        sides = [max(1, round(rng.uniform(*_SIDE_SHARES) * side)) for side in mask.shape]
        free = [whole - side for whole, side in zip(mask.shape, sides, strict=True)]
        top, left = (int(rng.integers(0, most, endpoint=True)) for most in free)
        window = np.s_[top : top + sides[0], left : left + sides[1]]
        image[window], mask[window] = _BLANK, IGNORE_ID
    return image, mask
