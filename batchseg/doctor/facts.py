"""What is known of each sample, as arrays: some 130 bytes for an image, so that 100,000 pairs need little."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg.classes import ClassTable
from batchseg.datasets import Sample
from batchseg.doctor.near import THUMB_HW

MAX_NOTES = 5
"""So many files of one trouble are kept with their note; the others are flags."""

_MAX_VALUES = 2**16


class Trouble(IntFlag):
    """What can be wrong with one sample. Those of BAD keep it from counting, and training from starting."""

    IMAGE_MISSING = 1
    IMAGE_UNREADABLE = 2
    MASK_MISSING = 4
    MASK_UNREADABLE = 8
    MASK_JPEG = 16
    SIZE_DIFFERS = 32
    UNKNOWN_VALUE = 64
    UNKNOWN_COLOR = 128
    NOT_TURNED = 256
    KILLS_DECODER = 512
    MAYBE_NOT_TURNED = 1024
    ALL_IGNORED = 2048
    SINGLE_CLASS = 4096
    ONLY_0_AND_255 = 8192
    IMAGE_RESIZED = 16384


BAD = Trouble(0x3FF)
NO_IMAGE = Trouble.IMAGE_MISSING | Trouble.IMAGE_UNREADABLE | Trouble.KILLS_DECODER


@dataclass
class Tally:
    """Raw mask values (or colours 0xRRGGBB): pixels of each, and masks that hold it. At most 65536 are told apart."""

    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)

    def count(self, values: Sequence[int], pixels: Sequence[int]) -> None:
        """One more mask. values: each once."""
        for value, number in zip(values, pixels, strict=True):
            if value in self.pixels or len(self.pixels) < _MAX_VALUES:
                self.pixels[value] += number
                self.masks[value] += 1

    def add(self, other: "Tally") -> None:
        """Those of another."""
        for value, number in other.pixels.items():
            if value in self.pixels or len(self.pixels) < _MAX_VALUES:
                self.pixels[value] += number
                self.masks[value] += other.masks[value]


@dataclass
class SampleFacts:
    """Of N samples in a row, as arrays. All but `thumbs` are 0 where unknown.

    troubles: uint32. size_hw: int32 Nx2, of the image as seen. mask_hw: of the mask. thumbs: uint8 Nx8x9. digests: the
    same for equal files. brightness: mean grey, 0-255. present: packed bits, class by class.
    """

    troubles: npt.NDArray[np.uint32]
    size_hw: npt.NDArray[np.int32]
    thumbs: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint64]
    brightness: npt.NDArray[np.float32]
    present: npt.NDArray[np.uint8]

    @classmethod
    def make_empty(cls, count: int, num_classes: int) -> "SampleFacts":
        """For `count` samples, nothing known yet."""
        return cls(
            np.zeros(count, np.uint32),
            np.zeros((count, 2), np.int32),
            np.zeros((count, *THUMB_HW), np.uint8),
            np.zeros(count, np.uint64),
            np.zeros(count, np.float32),
            np.zeros((count, -(-num_classes // 8)), np.uint8),
        )

    def fill(self, start: int, other: "SampleFacts") -> None:
        """Takes over those of a part that begins at `start`."""
        stop = start + len(other.troubles)
        for name in vars(self):
            getattr(self, name)[start:stop] = getattr(other, name)


@dataclass
class ChunkFacts:
    """What a worker sends back. start: index of its first sample among all.

    class_pixels: int64 per class, of the good masks; notes: by trouble, (index in the chunk, what is wrong).
    """

    start: int
    split: str
    samples: SampleFacts
    class_pixels: npt.NDArray[np.int64]
    ignored_pixels: int = 0
    values: Tally = field(default_factory=Tally)
    colors: Tally = field(default_factory=Tally)
    notes: dict[Trouble, list[tuple[int, str]]] = field(default_factory=dict)


@dataclass
class DatasetFacts:
    """All that was found out. The samples of the splits stand one after the other; `starts` says where each begins."""

    splits: Mapping[str, Sequence[Sample]]
    classes: ClassTable
    samples: SampleFacts
    starts: dict[str, int]
    class_pixels: dict[str, npt.NDArray[np.int64]]
    ignored_pixels: Counter[str] = field(default_factory=Counter)
    values: Tally = field(default_factory=Tally)
    colors: Tally = field(default_factory=Tally)
    notes: dict[Trouble, list[tuple[int, str]]] = field(default_factory=dict)

    @classmethod
    def make_empty(cls, splits: Mapping[str, Sequence[Sample]], classes: ClassTable) -> "DatasetFacts":
        """Nothing looked at yet."""
        counts = [len(samples) for samples in splits.values()]
        starts = dict(zip(splits, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        pixels = {split: np.zeros(len(classes), np.int64) for split in splits}
        return cls(splits, classes, SampleFacts.make_empty(sum(counts), len(classes)), starts, pixels)

    def __len__(self) -> int:
        return len(self.samples.troubles)

    def add(self, chunk: ChunkFacts) -> None:
        """Takes over what a worker found."""
        self.samples.fill(chunk.start, chunk.samples)
        self.class_pixels[chunk.split] += chunk.class_pixels
        self.ignored_pixels[chunk.split] += chunk.ignored_pixels
        self.values.add(chunk.values)
        self.colors.add(chunk.colors)
        for trouble, notes in chunk.notes.items():
            # Chunks end in any order; the notes kept are those of the first files all the same.
            known = self.notes.get(trouble, []) + [(chunk.start + index, text) for index, text in notes]
            self.notes[trouble] = sorted(known)[:MAX_NOTES]

    def sample(self, index: int) -> Sample:
        """By its index among all."""
        split = self.split_of(index)
        return self.splits[split][index - self.starts[split]]

    def split_of(self, index: int) -> str:
        """The split that holds the sample."""
        return next(split for split, start in reversed(self.starts.items()) if index >= start and self.splits[split])

    def number_splits(self) -> npt.NDArray[np.uint8]:
        """uint8 N: which split each sample is of."""
        counts = [len(samples) for samples in self.splits.values()]
        return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)

    def slice_of(self, split: str) -> slice:
        """Where the samples of a split stand."""
        return slice(self.starts[split], self.starts[split] + len(self.splits[split]))

    def find(self, trouble: Trouble) -> npt.NDArray[np.int64]:
        """Indices of the samples that have one of the troubles."""
        return np.flatnonzero(self.samples.troubles & np.uint32(trouble))

    def find_readable(self) -> npt.NDArray[np.int64]:
        """Indices of the samples whose image can be read."""
        return np.flatnonzero((self.samples.troubles & np.uint32(NO_IMAGE)) == 0)

    def find_good(self, split: str) -> npt.NDArray[np.int64]:
        """Indices of the samples of a split that were counted."""
        part = self.slice_of(split)
        return part.start + np.flatnonzero((self.samples.troubles[part] & np.uint32(BAD)) == 0)

    def count_present(self, split: str) -> npt.NDArray[np.int64]:
        """In how many good masks of a split each class is; int64 per class."""
        counts = np.zeros(len(self.classes), np.int64)
        for rows in _cut(self.find_good(split), 8192):
            counts += self.unpack_present(rows).sum(axis=0, dtype=np.int64)
        return counts

    def unpack_present(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """0 or 1, sample by class."""
        return np.unpackbits(self.samples.present[indices], axis=1, count=len(self.classes))


def _cut(indices: npt.NDArray[np.int64], length: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(indices), length):
        yield indices[start : start + length]
