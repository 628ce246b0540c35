"""Findings about what the masks mean: classes that are not there, masks of 0 and 255, masks that teach nothing."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from batchseg.classes import IGNORE_ID, ClassTable
from batchseg.datasets.page import DatasetPage
from batchseg.doctor.facts import DatasetFacts, Trouble
from batchseg.doctor.finding import Finding
from batchseg.doctor.samples import report_samples
from batchseg.doctor.tables import rewrite_classes

RARE_SHARE = 1e-4
"""A class with a smaller share of the pixels of a split is nearly absent."""

_NEEDED_SPLITS = ("train", "val")
_SHOWN = 12


def find_class_troubles(facts: DatasetFacts, page: DatasetPage | None) -> Iterator[Finding]:
    """All findings of this file. page: of the set, where it is known."""
    yield from _find_0_and_255(facts)
    yield from _find_absent(facts, page)
    yield from _find_rare(facts)
    yield from report_samples(
        facts, Trouble.ALL_IGNORED, "warning", "masks without a valid pixel: everything in them is ignored",
        "They teach nothing: leave the images out.", excludes=True,
    )  # fmt: skip
    yield from _find_uniform(facts)


def _find_0_and_255(facts: DatasetFacts) -> Iterator[Finding]:
    """Masks of 0 and 255 that mean two classes, where 255 would be ignored. A 255 beside other classes is a border."""
    count = len(facts.find(Trouble.ONLY_0_AND_255))
    is_whole_set = set(facts.values.pixels) <= {0, IGNORE_ID}
    if not count or count < facts.values.masks[IGNORE_ID] or (not is_whole_set and len(facts.classes) > 2):
        return
    values = [[0], [IGNORE_ID]] if is_whole_set else [[0], [1, IGNORE_ID]]
    yield from report_samples(
        facts, Trouble.ONLY_0_AND_255, "error" if is_whole_set else "warning",
        f"masks of nothing but 0 and 255, where 255 is ignored: {facts.classes.names[1]} is lost",
        f"If 255 means {facts.classes.names[1]}, say so.",
        lines=rewrite_classes(facts.classes, values=values, keep=[0, 1]),
    )  # fmt: skip


def _find_absent(facts: DatasetFacts, page: DatasetPage | None) -> Iterator[Finding]:
    totals = sum(facts.class_pixels.values(), np.zeros(len(facts.classes), np.int64))
    if not totals.any():
        return
    nowhere = np.flatnonzero(totals == 0).tolist()
    if nowhere:
        kept = np.flatnonzero(totals).tolist()
        yield Finding(
            "class_absent", "warning", f"classes that no mask holds: {_list_names(facts.classes, nowhere)}",
            len(nowhere), "Take out what is never labelled.",
            lines=_keep_classes(facts.classes, kept, page) if len(kept) >= 2 else {},
        )  # fmt: skip
    for split in [name for name in _NEEDED_SPLITS if name in facts.splits]:
        absent = np.flatnonzero((facts.class_pixels[split] == 0) & (totals > 0)).tolist()
        if absent:
            yield Finding(
                f"class_not_in_{split}", "warning",
                f"classes that other splits hold and {split} does not: {_list_names(facts.classes, absent)}",
                len(absent), "They cannot be learnt." if split == "train" else "Their scores say nothing.",
            )  # fmt: skip


def _keep_classes(classes: ClassTable, kept: list[int], page: DatasetPage | None) -> dict[str, Any]:
    if page is None or page.classes is None or page.format not in ("coco", "panoptic"):
        return rewrite_classes(classes, keep=kept)
    # Their entries name categories, which the table does not know.
    entries = page.model_dump(mode="json", exclude_none=True)["classes"]
    return {"classes": [entries[index] for index in kept]}


def _find_rare(facts: DatasetFacts) -> Iterator[Finding]:
    for split, pixels in facts.class_pixels.items():
        shares = pixels / max(1, pixels.sum())
        rare = np.flatnonzero((shares > 0) & (shares < RARE_SHARE)).tolist()
        if rare:
            said = ", ".join(f"{facts.classes.names[index]} {shares[index]:.1e}" for index in rare[:_SHOWN])
            yield Finding(
                f"rare_class_in_{split}", "remark", f"classes that are hardly in {split} (share of the pixels: {said})",
                len(rare), "`training.class_weights: sqrt_median_frequency` in the page of `train` gives them weight.",
            )  # fmt: skip


def _find_uniform(facts: DatasetFacts) -> Iterator[Finding]:
    count, good = len(facts.find(Trouble.SINGLE_CLASS)), sum(len(facts.find_good(split)) for split in facts.splits)
    if count == good:
        title, fix = "masks of a single class, and there are no others", "There is no border to learn: are these masks?"
    else:
        title, fix = "masks of a single class", f"{count / max(1, good):.1%} of all: fine, if nothing is there to find."
    yield from report_samples(facts, Trouble.SINGLE_CLASS, "warning" if count == good else "remark", title, fix)


def _list_names(classes: ClassTable, indices: Sequence[int]) -> str:
    shown = ", ".join(classes.names[index] for index in indices[:_SHOWN])
    return shown + (f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else "")
