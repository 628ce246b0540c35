"""Connected regions of a mask: small ones are given to the class around them."""

import cv2
import numpy as np
import numpy.typing as npt

from batchseg.classes import IGNORE_ID, MaskArray

IntArray = npt.NDArray[np.int64]


def drop_small_regions(class_ids: MaskArray, min_pixels: int) -> MaskArray:
    """uint8 HxW -> uint8 HxW where connected regions of fewer than `min_pixels` take the class around them.

    Neighbours are up, down, left and right. A small region takes the class that most of its outline touches, of equal
    ones the lower id; only regions that are large enough count, then those that were given a class, and so on inwards.
    Where there is none (all around is abstained or equally small), it stays. Abstained pixels (255) neither change nor
    count. The same array comes back when there is nothing to do. Takes 4 to 8 bytes per pixel meanwhile.
    """
    if min_pixels <= 1:
        return class_ids
    labels, areas, classes = _label_regions(class_ids)
    is_settled = (areas >= min_pixels) & (classes != IGNORE_ID)
    is_small = (areas < min_pixels) & (classes != IGNORE_ID)
    if not is_small.any():
        return class_ids
    new_classes = _settle(_list_borders(labels, is_small), classes.copy(), is_settled)
    if np.array_equal(new_classes, classes):
        return class_ids
    return new_classes.astype(np.uint8)[labels]


def _label_regions(class_ids: MaskArray) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
    """(region number of each pixel, pixels of each region, class of each region). All that is 255 is region 0."""
    labels = np.zeros(class_ids.shape, np.int32)
    areas, classes = [np.zeros(1, np.int64)], [np.full(1, IGNORE_ID)]
    count = 1
    for class_id in np.flatnonzero(cv2.calcHist([class_ids], [0], None, [256], [0, 256]).ravel()).tolist():
        if class_id == IGNORE_ID:
            continue
        is_class = class_ids == class_id
        left, top, width, height = cv2.boundingRect(is_class.view(np.uint8))
        window = np.s_[top : top + height, left : left + width]
        found, own, stats, _ = cv2.connectedComponentsWithStats(is_class[window].view(np.uint8), connectivity=4)
        # Region 0 of OpenCV is the background, which keeps the number it has.
        own += count - 1
        np.copyto(labels[window], own, where=is_class[window])
        areas.append(stats[1:, cv2.CC_STAT_AREA].astype(np.int64))
        classes.append(np.full(found - 1, class_id))
        count += found - 1
    return labels, np.concatenate(areas), np.concatenate(classes).astype(np.int64)


def _list_borders(labels: npt.NDArray[np.int32], is_small: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """(pairs, lengths): each row of `pairs` is a small region and another one; lengths are in pixel edges."""
    found = []
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differs = one != other
        ends = np.stack([one[differs], other[differs]], 1)
        for pairs in (ends, ends[:, ::-1]):
            found.append(pairs[is_small[pairs[:, 0]]].astype(np.int64))
    keys, lengths = np.unique(np.concatenate(found) @ np.array([len(is_small), 1]), return_counts=True)
    return np.stack(np.divmod(keys, len(is_small)), 1), lengths.astype(np.int64)


def _settle(borders: tuple[IntArray, IntArray], classes: IntArray, is_settled: npt.NDArray[np.bool_]) -> IntArray:
    """Gives small regions a class, from those beside settled ones inwards. Changes and returns `classes`."""
    pairs, lengths = borders
    while True:
        is_open = ~is_settled[pairs[:, 0]] & is_settled[pairs[:, 1]]
        if not is_open.any():
            return classes
        small, beside = pairs[is_open].T
        keys, places = np.unique(small * 256 + classes[beside], return_inverse=True)
        votes = np.bincount(places, weights=lengths[is_open])
        # Sorted by region, then by most votes, then by class: the first row of each region wins.
        order = np.lexsort((keys, -votes, keys // 256))
        regions, first = np.unique(keys[order] // 256, return_index=True)
        classes[regions] = keys[order][first] % 256
        is_settled[regions] = True
