"""Pictures that look alike, found without comparing all with all.

A picture is known by its thumbnail, 8x9 grey values. Its difference hash (dHash: Krawetz, "Kind of Like That", 2013)
has a bit for each pair of neighbours in a row: is the right one brighter? Re-encoding, scaling and a little light leave
nearly all bits alone.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

THUMB_HW = (8, 9)

MAX_BITS = 6
"""Hashes that differ in more of their 64 bits are of different pictures. Of 15,000 pairs of photos none came under 9;
re-encoded, halved or lightened copies differ in 0 to 5."""

MAX_GREY = 8.0
"""... and so are thumbnails whose grey values, less their mean, differ by more. Of those photos none came under 9."""

_BLOCKS = 8
_BUCKET_NEIGHBORS = 32
_FLAT_RANGE = 12

Thumbs = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]


def hash_thumbs(thumbs: Thumbs) -> Hashes:
    """uint8 Nx8x9 grey -> uint64 N."""
    bits = thumbs[:, :, 1:] > thumbs[:, :, :-1]
    return np.packbits(bits.reshape(len(thumbs), 64), axis=1).view(np.uint64)[:, 0]


def count_different_bits(left: Hashes, right: Hashes) -> npt.NDArray[np.uint8]:
    """Bits in which the hashes differ, pair by pair."""
    return np.bitwise_count(left ^ right)


def find_near_pairs(thumbs: Thumbs, groups: npt.NDArray[Any]) -> Pairs:
    """Pairs (i, j), i < j, of pictures that look alike and are of different groups: at least one for each picture that
    has such a twin. int64 Px2, sorted.

    A hash is cut into 8 blocks. Hashes that differ in at most 6 bits agree in 2 blocks or more, so for each of the 28
    ways to choose two, the pictures are sorted by these and compared with those next to them in the same bucket: with
    at most 32, so the work grows with N log N whatever the pictures are. Flat pictures, whose hash is noise, are left
    out.
    """
    usable = np.flatnonzero(np.ptp(thumbs, axis=(1, 2)) >= _FLAT_RANGE)
    found = [np.zeros((0, 2), np.int64)]
    hashes = hash_thumbs(thumbs[usable])
    blocks = hashes.view(np.uint8).reshape(-1, _BLOCKS)
    has_twin = np.zeros(len(thumbs), np.bool_)
    for first, second in combinations(range(_BLOCKS), 2):
        bucket = blocks[:, first].astype(np.uint16) << np.uint16(8) | blocks[:, second]
        for pairs in _compare_buckets(bucket, hashes):
            pairs = usable[pairs]
            is_new = (groups[pairs[:, 0]] != groups[pairs[:, 1]]) & ~has_twin[pairs].all(axis=1)
            pairs = pairs[is_new]
            pairs = pairs[_are_alike(thumbs, pairs)]
            has_twin[pairs] = True
            found.append(pairs)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _compare_buckets(bucket: npt.NDArray[np.uint16], hashes: Hashes) -> Iterator[Pairs]:
    """Yields int64 Px2 of those in one bucket whose hashes differ in at most MAX_BITS."""
    # Inside a bucket by the whole hash, so that equal ones are neighbours however full it is.
    order = np.lexsort((hashes, bucket))
    sorted_bucket, sorted_hash = bucket[order], hashes[order]
    for step in range(1, min(_BUCKET_NEIGHBORS + 1, len(order))):
        together = sorted_bucket[step:] == sorted_bucket[:-step]
        if not together.any():
            return
        near = np.flatnonzero(together & (count_different_bits(sorted_hash[step:], sorted_hash[:-step]) <= MAX_BITS))
        yield np.stack([order[near], order[near + step]], axis=1)


def _are_alike(thumbs: Thumbs, pairs: Pairs) -> npt.NDArray[np.bool_]:
    """Are the grey values the same, each picture's mean taken off?"""
    difference = thumbs[pairs[:, 0]].astype(np.float32) - thumbs[pairs[:, 1]]
    difference -= difference.mean(axis=(1, 2), keepdims=True)
    return np.asarray(np.abs(difference).mean(axis=(1, 2)) <= MAX_GREY)
