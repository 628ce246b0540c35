"""Frames of one video that stand in several splits: scores on frames whose neighbours were trained on flatter."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg import storage
from batchseg.datasets.page import DatasetPage
from batchseg.doctor.facts import DatasetFacts
from batchseg.doctor.finding import MAX_FILES, Finding
from batchseg.doctor.near import count_different_bits, hash_thumbs

_VIDEO_RATIO = 0.7
"""Of a video the next frame differs from this one by less than so much of what any two images differ by: 0.45 in
CamVid at one frame a second, 1.0 among photos with numbered names."""

_MIN_FRAMES = 4
_RANDOM_PAIRS = 2000
_FRAME = re.compile(r"(.*?)(\d+)\D*")
_BY_NAME = r"([^/]*?)\d+[^\d/]*$"
_BY_FOLDER = r"([^/]+)/[^/]*$"
_BY_NAME_IF_NUMBERED = r"([^/\d]+$|[^/]*?(?=\d+[^/\d]*$))"

Series = dict[str, npt.NDArray[np.int64]]


def find_videos(facts: DatasetFacts) -> Series:
    """The series of frames that several splits share: by name, the indices in the order of their numbers."""
    hashes = hash_thumbs(facts.samples.thumbs)
    readable = facts.find_readable()
    series = _group_by_series(facts, readable)
    if not series:
        return {}
    left, right = readable[np.random.default_rng(0).integers(0, len(readable), (2, _RANDOM_PAIRS))]
    usual = float(np.median(count_different_bits(hashes[left], hashes[right])[left != right]))
    return {
        name: frames
        for name, frames in series.items()
        if np.median(count_different_bits(hashes[frames[1:]], hashes[frames[:-1]])) <= _VIDEO_RATIO * usual
    }


def _group_by_series(facts: DatasetFacts, readable: npt.NDArray[np.int64]) -> Series:
    """By what comes before the number in the name (or by folder): the images in the order of their numbers.

    Only series that stand in several splits and have some frames.
    """
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index in readable.tolist():
        name = facts.sample(index).name
        match = _FRAME.fullmatch(storage.name_of(name).rpartition(".")[0])
        if match:
            found[match[1] or storage.name_of(storage.folder_of(name))].append((int(match[2]), index))
    splits = facts.number_splits()
    series = {name: np.array([index for _, index in sorted(frames)]) for name, frames in found.items()}
    return {
        name: frames for name, frames in series.items() if len(frames) >= _MIN_FRAMES and np.ptp(splits[frames]) > 0
    }


def report_videos(facts: DatasetFacts, page: DatasetPage, videos: Series) -> Iterator[Finding]:
    """One finding on all of them, if there are any."""
    if not videos:
        return
    frames = np.concatenate(list(videos.values()))
    counts = np.bincount(facts.number_splits()[frames], minlength=len(facts.splits)).tolist()
    held = {name: count for name, count in zip(facts.splits, counts, strict=True) if count}
    said = ", ".join(f"{count} in {name}" for name, count in held.items())
    shown = list(videos.items())[:MAX_FILES]
    source, target = sorted(held, key=lambda name: -len(facts.splits[name]))[:2]
    lines = _split_by_group(facts, page, source, target)
    fix = "Keep each series in one split"
    if lines and not _is_derived(page, target):
        fix += f", such as by taking {target} out of {source}; the files of its own are not used then"
    title = f"frames of {len(videos)} series that stand in several splits ({said}): scores will flatter"
    yield Finding(
        "video_across_splits", "warning", title, len(frames), f"{fix}.",
        tuple(facts.sample(int(members[0])).image for _, members in shown),
        tuple(f"begins the {len(members)} of series {name!r}" for name, members in shown), lines,
    )  # fmt: skip


def _is_derived(page: DatasetPage, split: str) -> bool:
    entry = page.splits.get(split)
    return entry is not None and not isinstance(entry, str) and entry.source is not None


def _split_by_group(facts: DatasetFacts, page: DatasetPage, source: str, target: str) -> dict[str, Any]:
    """The key `splits`, with `target` taken out of `source` by whole series; nothing if there is one series only."""
    names = [sample.name for sample in facts.splits[source]]
    pattern = next((text for text in (_BY_NAME, _BY_NAME_IF_NUMBERED, _BY_FOLDER) if _makes_groups(text, names)), None)
    if pattern is None or source not in page.splits:
        return {}
    splits: dict[str, Any] = page.model_dump(mode="json", by_alias=True, exclude_none=True)["splits"]
    small, large = len(facts.splits[target]), len(facts.splits[source])
    before = splits[target] if _is_derived(page, target) else {}
    splits[target] = {"from": source, "fraction": round(small / (small + large), 2), **before, "group": pattern}
    return {"splits": splits}


def _makes_groups(pattern: str, names: list[str]) -> bool:
    found = [re.search(pattern, name) for name in names]
    return all(found) and 1 < len({match[1] for match in found if match}) < len(names)
