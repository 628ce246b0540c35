"""Findings about pictures side by side: the same one in two splits, some of odd sizes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg.doctor.facts import DatasetFacts
from batchseg.doctor.finding import MAX_FILES, Finding
from batchseg.doctor.near import Pairs, find_near_pairs
from batchseg.doctor.videos import Series

_SIZE_FACTOR = 4

Indices = npt.NDArray[np.int64]


def find_picture_troubles(facts: DatasetFacts, videos: Series) -> Iterator[Finding]:
    """All findings of this file. videos: series of which another finding tells."""
    readable = facts.find_readable()
    yield from _find_copies(facts, readable, videos)
    yield from _find_odd_sizes(facts, readable)


def _find_copies(facts: DatasetFacts, readable: Indices, videos: Series) -> Iterator[Finding]:
    splits, digests = facts.number_splits(), facts.samples.digests
    copies = _find_same(digests[readable], readable)
    is_across = splits[copies[:, 0]] != splits[copies[:, 1]]
    shared, equal = _tell_shared(facts, copies[is_across])
    if len(shared):
        yield _report_pairs(
            facts, shared, "shared_image", "stand in two splits: scores will flatter",
            "Take each out of one of the lists.", excludes=False,
        )  # fmt: skip
    if len(equal):
        yield _report_pairs(
            facts, equal, "same_image", "are copies of an image in another split: scores will flatter",
            "Keep one of each.", excludes=True,
        )  # fmt: skip
    pairs = find_near_pairs(facts.samples.thumbs[readable], splits[readable])
    near = readable[pairs]
    near = near[digests[near[:, 0]] != digests[near[:, 1]]]
    near = near[~_are_of_one_series(near, videos, len(facts))]
    if len(near):
        yield _report_pairs(
            facts, near, "near_image", "look like an image in another split: scores will flatter",
            "Keep one of each, or keep what belongs together in one split.", excludes=True,
        )  # fmt: skip
    if len(within := copies[~is_across]):
        yield _report_pairs(
            facts, within, "copy_in_split", "are copies of another image of their split and count twice",
            "Keep one of each, unless it is meant.", excludes=True, severity="remark",
        )  # fmt: skip


def _find_same(digests: npt.NDArray[np.uint64], indices: Indices) -> Pairs:
    """Byte for byte equal images, each with the first like it."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(digests)))
    return np.stack([indices[first[inverse[copies]]], indices[copies]], axis=1)


def _are_of_one_series(pairs: Pairs, videos: Series, count: int) -> npt.NDArray[np.bool_]:
    series_of = np.full(count, -1, np.int64)
    for number, frames in enumerate(videos.values()):
        series_of[frames] = number
    return np.asarray((series_of[pairs[:, 0]] == series_of[pairs[:, 1]]) & (series_of[pairs[:, 0]] >= 0))


def _tell_shared(facts: DatasetFacts, pairs: Pairs) -> tuple[Pairs, Pairs]:
    """(pairs that are one file, pairs of two files)."""
    is_shared = np.array([facts.sample(i).image == facts.sample(j).image for i, j in pairs], np.bool_)
    return pairs[is_shared], pairs[~is_shared]


def _report_pairs(
    facts: DatasetFacts, pairs: Pairs, kind: str, what: str, fix: str, *, excludes: bool, severity: Any = "warning"
) -> Finding:
    sizes = {split: len(samples) for split, samples in facts.splits.items()}
    # The one in the larger split is the one to spare, in one split the later.
    moved = [sorted(map(int, pair), key=lambda index: (-sizes[facts.split_of(index)], -index)) for pair in pairs]
    spare: dict[int, int] = {}
    for first, second in moved:
        spare.setdefault(first, second)
    files = [facts.sample(index).image for index in list(spare)[:MAX_FILES]]
    notes = [
        f"({facts.split_of(index)}) is like {facts.sample(twin).image} ({facts.split_of(twin)})"
        for index, twin in list(spare.items())[:MAX_FILES]
    ]
    names = sorted({facts.sample(index).name for index in spare})
    return Finding(
        kind, severity, f"images that {what}", len(spare), fix, tuple(files), tuple(notes),
        {"exclude": names} if excludes else {},
    )  # fmt: skip


def _find_odd_sizes(facts: DatasetFacts, readable: Indices) -> Iterator[Finding]:
    sides = np.sqrt(facts.samples.size_hw[readable].astype(np.float64).prod(axis=1))
    usual = float(np.median(sides)) if len(sides) else 0.0
    for kind, word, odd in [
        ("small_image", "smaller", sides * _SIZE_FACTOR < usual),
        ("large_image", "larger", sides > usual * _SIZE_FACTOR),
    ]:
        found = readable[odd]
        if len(found):
            yield Finding(
                kind, "remark",
                f"images {_SIZE_FACTOR} times {word} than the others (whose side is {usual:.0f} in the median)",
                len(found), "Thumbnails or scans among photos? Leave them out unless they are meant.",
                tuple(facts.sample(int(index)).image for index in found[:MAX_FILES]),
                tuple("is {1}x{0}".format(*facts.samples.size_hw[index]) for index in found[:MAX_FILES]),
                {"exclude": [facts.sample(int(index)).name for index in found]},
            )  # fmt: skip
