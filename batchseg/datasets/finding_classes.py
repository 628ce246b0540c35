"""Classes of a recognised folder that nobody has named: a list of names beside the data, or the values in its masks."""

from collections.abc import Sequence

import numpy as np

from batchseg import storage
from batchseg.classes import IGNORE_ID, pack_colors
from batchseg.datasets.lists import read_lines
from batchseg.datasets.page import DATASET_FILE, EXAMPLE, ClassEntry
from batchseg.datasets.sample import Sample, read_raw_mask
from batchseg.errors import UserError

_NAME_FILES = ("classes.txt", "class_names.txt", "labels.txt")
_MAX_MASKS = 200
_MAX_COLORS = 64
_BLACK, _WHITE = 0x000000, 0xFFFFFF


def find_classes(root: str, samples: Sequence[Sample]) -> tuple[list[ClassEntry], str]:
    """The classes, and how they were found. Reads at most 200 masks, evenly spread.

    Raises UserError where the values cannot be classes.
    """
    for name in _NAME_FILES:
        location = storage.join(root, name)
        if storage.exists(location):
            return [ClassEntry(name=line) for _, line in read_lines(location)], f"class names from {name}"
    chosen = samples[:: max(1, -(-len(samples) // _MAX_MASKS))]
    values: set[int] = set()
    colors: set[int] = set()
    for sample in chosen:
        try:
            raw = read_raw_mask(sample)
        except UserError:
            continue  # said by the check of the data, which reads it again
        if raw.ndim == 3:
            colors.update(np.unique(pack_colors(raw)).tolist())
        else:
            values.update(np.unique(raw).tolist())
    entries = _name_colors(colors) if colors and not values else _name_values(values) if not colors else []
    if not 2 <= len(entries) <= IGNORE_ID:
        raise UserError(
            f"data {root}: its {len(chosen)} masks looked at hold {len(values)} values and {len(colors)} colors, which "
            f"do not tell the classes. Write {root}/{DATASET_FILE}:\n{EXAMPLE}"
        )
    return entries, f"classes from the values in {len(chosen)} masks, to be named in a {DATASET_FILE}"


def _name_values(values: set[int]) -> list[ClassEntry]:
    if values <= {0, IGNORE_ID}:
        return [ClassEntry(name="background", values=[0]), ClassEntry(name="foreground", values=[IGNORE_ID])]
    return [
        ClassEntry(name=f"class_{value}", values=None if value == class_id else [value])
        for class_id, value in enumerate(sorted(values - {IGNORE_ID}))
    ]


def _name_colors(colors: set[int]) -> list[ClassEntry]:
    if colors <= {_BLACK, _WHITE}:
        return [ClassEntry(name="background", color="#000000"), ClassEntry(name="foreground", color="#ffffff")]
    known = sorted(colors - {_WHITE})
    if len(known) > _MAX_COLORS:
        return []
    return [ClassEntry(name=f"color_{code:06x}", color=f"#{code:06x}") for code in known]
