"""Splits that are a part of another one: a seeded share, by group, by pattern, or by list; and writing splits out."""

import re
from collections.abc import Sequence

import numpy as np

from batchseg import storage
from batchseg.classes import ClassTable
from batchseg.datasets.lists import choose_by_list
from batchseg.datasets.page import DATASET_FILE, SplitEntry
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import Dataset, Sample
from batchseg.datasets.stratify import choose_units, find_presence
from batchseg.errors import UserError

Splits = dict[str, list[Sample]]

DEFAULT_FRACTION = 0.1
SPLITS_FOLDER = "splits"
"""Under `out` of a training run."""


def split_off(
    location: str, root: str, splits: Splits, name: str, entry: SplitEntry, classes: ClassTable, log: ProblemLog
) -> None:
    """Moves samples of the split that `from` names into a new one. Raises UserError for an entry that cannot be."""
    source = str(entry.source)
    if source not in splits:
        raise UserError(
            f"data {location}: split {name} is taken from {source!r}; `from` must be one of "
            f"{', '.join(splits)}, declared before it or with files of its own"
        )
    whole = sorted(splits[source], key=lambda sample: sample.name)
    if entry.list is not None:
        taken = {sample.name for sample in choose_by_list(whole, root, entry.list, log)}
    elif entry.match is not None:
        regex = _compile(location, name, "match", entry.match)
        taken = {sample.name for sample in whole if regex.search(sample.name)}
        if not taken:
            raise UserError(f"data {location}: split {name}: match {entry.match!r} is found in no name of {source}")
    else:
        taken = _take_share(location, name, whole, entry, classes)
    splits[name] = [sample for sample in whole if sample.name in taken]
    splits[source] = [sample for sample in whole if sample.name not in taken]


def _take_share(location: str, name: str, whole: Sequence[Sample], entry: SplitEntry, classes: ClassTable) -> set[str]:
    """A seeded share, whole groups at a time where there are groups."""
    names = [sample.name for sample in whole]
    keys = names if entry.group is None else _find_groups(location, name, names, entry.group)
    units = {key: number for number, key in enumerate(sorted(set(keys)))}
    unit_of = np.array([units[key] for key in keys], np.int64)
    stratifies = entry.stratify is not False
    presence = find_presence(whole, classes) if stratifies else np.zeros((len(whole), 0), np.bool_)
    by_unit = np.zeros((len(units), presence.shape[1]), np.int64)
    np.add.at(by_unit, unit_of, presence)
    fraction = DEFAULT_FRACTION if entry.fraction is None else entry.fraction
    chosen = choose_units(np.bincount(unit_of, minlength=len(units)), by_unit, fraction, entry.seed or 0)
    return {sample_name for sample_name, unit in zip(names, unit_of.tolist(), strict=True) if chosen[unit]}


def _find_groups(location: str, split: str, names: Sequence[str], pattern: str) -> list[str]:
    """The group of each name: what the first parentheses match, or else the whole pattern."""
    regex = _compile(location, split, "group", pattern)
    keys = []
    for name in names:
        found = regex.search(name)
        if found is None:
            raise UserError(f"data {location}: split {split}: group {pattern!r} is not found in the name {name}")
        keys.append(found[1] or "" if regex.groups else found[0])
    if len(set(keys)) < 2:
        raise UserError(
            f"data {location}: split {split}: group {pattern!r} puts all {len(names)} images into one group "
            f"({keys[0] if keys else 'there are none'!r}); at least two are needed"
        )
    return keys


def _compile(location: str, split: str, key: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"data {location}: split {split}: {key} {pattern!r} is no regular expression: {error}"
        ) from None


def write_splits(dataset: Dataset, folder: str) -> None:
    """Writes folder/<split>.txt, the names in each split, one a line; and folder/dataset.yaml, which repeats them: a
    split that was taken from another one is taken by its list there.
    """
    for split, samples in dataset.splits.items():
        text = "".join(f"{sample.name}\n" for sample in samples)
        storage.write_atomic(storage.join(folder, f"{split}.txt"), text)
    fixed = {
        name: SplitEntry(source=entry.source, list=storage.join(storage.to_absolute(folder), f"{name}.txt"))
        if isinstance(entry, SplitEntry) and entry.source is not None
        else entry
        for name, entry in dataset.page.splits.items()
    }
    page = dataset.page.model_copy(update={"splits": fixed})
    storage.write_atomic(storage.join(folder, DATASET_FILE), page.to_yaml())
