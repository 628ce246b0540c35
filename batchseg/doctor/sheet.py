"""The contact sheet: some samples of each split as image, mask and overlay, chosen so that every class is seen."""

import numpy as np
import numpy.typing as npt

from batchseg import images, render, storage
from batchseg.classes import MaskArray
from batchseg.datasets.sample import Sample, load_mask
from batchseg.doctor.facts import DatasetFacts, Trouble
from batchseg.errors import ImageError, UserError

_ROWS = 10
_DOUBTFUL_ROWS = 2
_CANDIDATES = 5000
_SHOWN_CLASSES = 4


def draw_samples(facts: DatasetFacts) -> images.RgbArray | None:
    """RGB uint8, or None when no sample is good. Reads the chosen files again."""
    splits = [split for split in facts.splits if len(facts.find_good(split))]
    # A finding sends its reader here to look at these.
    chosen = [index for index, _ in facts.notes.get(Trouble.MAYBE_NOT_TURNED, [])[:_DOUBTFUL_ROWS]]
    for split in splits:
        chosen += choose_samples(facts, facts.find_good(split), max(1, _ROWS // len(splits)))
    rows, captions = [], []
    for index in dict.fromkeys(chosen):
        sample = facts.sample(index)
        try:
            picture, ids = _read_pair(sample, facts)
        except (UserError, ImageError, OSError):  # gone or changed since it was looked at
            continue
        rows.append([picture, facts.classes.palette[ids], render.draw_overlay(picture, ids, facts.classes.palette)])
        size = f"{ids.shape[1]}x{ids.shape[0]}"
        captions.append(f"{facts.split_of(index)}: {sample.name}  {size}  {_describe(ids, facts)}")
    if not rows:
        return None
    titles = ["image", "mask (white: ignored)", "overlay"]
    return render.draw_contact_sheet(rows, captions, titles, facts.classes, cell_width=320)


def choose_samples(facts: DatasetFacts, good: npt.NDArray[np.int64], count: int) -> list[int]:
    """Indices of at most `count` samples, each the one that adds the most classes to those before it."""
    candidates = good[:: max(1, -(-len(good) // _CANDIDATES))]
    present = facts.unpack_present(candidates).astype(np.bool_)
    seen = np.zeros(len(facts.classes), np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        gains = (present & ~seen).sum(axis=1)
        gains[chosen] = -1
        if gains.max() == 0 and seen.any():
            seen[:] = False  # all classes are shown: once more from the start
            continue
        chosen.append(int(gains.argmax()))
        seen |= present[chosen[-1]]
    return [int(candidates[index]) for index in chosen]


def _read_pair(sample: Sample, facts: DatasetFacts) -> tuple[images.RgbArray, MaskArray]:
    data = storage.read_bytes(sample.image)
    header = images.probe_image(data)
    reduction = next((step for step in (8, 4, 2) if header.can_reduce and min(header.size_hw) >= 640 * step // 2), 1)
    return images.decode_image(data, header, reduction), load_mask(sample, facts.classes, header.size_hw)


def _describe(ids: MaskArray, facts: DatasetFacts) -> str:
    """The largest classes of a mask with their shares."""
    counts = np.bincount(ids.ravel(), minlength=256)[: len(facts.classes)]
    order = [index for index in np.argsort(-counts, kind="stable")[:_SHOWN_CLASSES] if counts[index]]
    return ", ".join(f"{facts.classes.names[index]} {counts[index] / ids.size:.0%}" for index in order)
