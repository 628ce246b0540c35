"""One look at an image and its mask: each is decoded once (a JPEG at an eighth), all else comes from that."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from batchseg import images, storage
from batchseg.classes import IGNORE_ID, ClassTable
from batchseg.datasets import Sample
from batchseg.datasets.sample import read_raw_mask
from batchseg.doctor.counting import Values, count_values
from batchseg.doctor.facts import BAD, MAX_NOTES, ChunkFacts, SampleFacts, Trouble
from batchseg.doctor.near import THUMB_HW
from batchseg.errors import ImageError, UserError

_PIECE = 1024
_NO_MEMORY = "it needs more memory than there is"


@dataclass(frozen=True)
class Chunk:
    """Some samples of one split that a worker looks at. start: index of the first among all samples."""

    start: int
    split: str
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice) -> "Chunk":
        return Chunk(self.start + (part.start or 0), self.split, self.samples[part])


@dataclass(frozen=True)
class Looker:
    """Looks at chunks; goes to the workers as it is."""

    classes: ClassTable

    def __call__(self, chunk: Chunk) -> ChunkFacts:
        """All facts on the samples of a chunk."""
        facts = self._make_empty(chunk)
        for index, sample in enumerate(chunk.samples):
            _Look(self, sample, index, facts).run()
        return facts

    def blame(self, chunk: Chunk, reason: str) -> ChunkFacts:
        """The facts on a chunk of one sample that killed the process that looked at it."""
        facts = self._make_empty(chunk)
        facts.samples.troubles[0] = Trouble.KILLS_DECODER
        facts.notes[Trouble.KILLS_DECODER] = [(0, f"kills the process that decodes it ({reason})")]
        return facts

    def _make_empty(self, chunk: Chunk) -> ChunkFacts:
        samples = SampleFacts.make_empty(len(chunk), len(self.classes))
        return ChunkFacts(chunk.start, chunk.split, samples, np.zeros(len(self.classes), np.int64))


@dataclass
class _Look:
    looker: Looker
    sample: Sample
    index: int
    facts: ChunkFacts
    troubles: Trouble = field(default=Trouble(0))

    def run(self) -> None:
        """Looks at the image, then at its mask, and leaves in `facts` what it found."""
        header = self._look_at_image()
        self._look_at_mask(header)
        self.facts.samples.troubles[self.index] = self.troubles

    def _note(self, trouble: Trouble, text: str) -> None:
        self.troubles |= trouble
        notes = self.facts.notes.setdefault(trouble, [])
        if len(notes) < MAX_NOTES:
            notes.append((self.index, text))

    def _look_at_image(self) -> images.ImageHeader | None:
        samples, i = self.facts.samples, self.index
        try:
            data = storage.read_bytes(self.sample.image)
            header = images.probe_image(data)
            # An eighth is enough for brightness and likeness, and damaged pixels show all the same.
            grey = images.decode_grey(data, header, _choose_reduction(header))
        except FileNotFoundError:
            self._note(Trouble.IMAGE_MISSING, "does not exist")
            return None
        except (ImageError, OSError, MemoryError) as error:
            self._note(Trouble.IMAGE_UNREADABLE, f"cannot be used: {str(error) or _NO_MEMORY}")
            return None
        samples.size_hw[i] = header.size_hw
        samples.brightness[i] = cv2.mean(grey)[0]
        samples.thumbs[i] = cv2.resize(grey, THUMB_HW[::-1], interpolation=cv2.INTER_AREA)
        samples.digests[i] = _digest(data, samples.thumbs[i])
        return header

    def _look_at_mask(self, header: images.ImageHeader | None) -> None:
        if header is None and self.sample.options.turns_with_image:
            return None
        try:
            raw = read_raw_mask(self.sample)
        except (UserError, MemoryError) as error:
            return self._note_unreadable(error)
        if header is not None:
            self._compare_sizes(raw.shape[:2], header)
        values, pixels = count_values(raw)
        if raw.ndim == 3:
            self.facts.colors.count(values.tolist(), pixels.tolist())
            ids = self._find_color_ids(values)
        else:
            self.facts.values.count(values.tolist(), pixels.tolist())
            ids = self._find_value_ids(values)
        self._count_classes(ids, pixels)
        return None

    def _note_unreadable(self, error: Exception) -> None:
        if isinstance(error.__cause__, FileNotFoundError):
            return self._note(Trouble.MASK_MISSING, "does not exist")
        text = str(error).removeprefix(f"mask {self.sample.mask} ") or f"cannot be read: {_NO_MEMORY}"
        probed = self._probe_mask()
        is_jpeg = probed is not None and probed.can_reduce
        return self._note(Trouble.MASK_JPEG if is_jpeg else Trouble.MASK_UNREADABLE, text)

    def _probe_mask(self) -> images.ImageHeader | None:
        """The header of a mask that is a file."""
        if not isinstance(self.sample.mask, str):
            return None
        try:
            return images.probe_image(storage.read_bytes(self.sample.mask))
        except (ImageError, OSError):
            return None

    def _compare_sizes(self, mask_hw: tuple[int, int], header: images.ImageHeader) -> None:
        height, width = header.size_hw
        stored_hw = (width, height) if header.orientation >= 5 else (height, width)
        if mask_hw == header.size_hw:
            if header.orientation > 1 and mask_hw == stored_hw:
                self._look_at_orientation(header.orientation)
            return
        said = f"is {mask_hw[1]}x{mask_hw[0]}, its image is {width}x{height} (width x height, EXIF orientation applied)"
        if mask_hw == stored_hw:
            self._note(Trouble.NOT_TURNED, f"{said}, {stored_hw[1]}x{stored_hw[0]} before it is turned")
        elif not self.sample.options.may_resize:
            self._note(Trouble.SIZE_DIFFERS, said)

    def _look_at_orientation(self, orientation: int) -> None:
        """Of a pair whose sizes do not tell whether the mask was drawn before or after turning the image."""
        probed = self._probe_mask()
        if not self.sample.options.turns_with_image and probed is not None and probed.orientation == 1:
            self._note(Trouble.MAYBE_NOT_TURNED, f"carries no orientation, its image has {orientation}")

    def _find_value_ids(self, values: Values) -> list[int]:
        """Class id of each value, -1 for those that no class has."""
        lookup = self.looker.classes.lookup
        ids, unknown = _look_up(values, lookup)
        if unknown:
            self._note(Trouble.UNKNOWN_VALUE, self.looker.classes.describe_unknown(unknown).partition(". ")[0])
        elif (
            values.tolist() in ([0, IGNORE_ID], [IGNORE_ID])
            and lookup[IGNORE_ID] == IGNORE_ID
            and isinstance(self.sample.mask, str)
        ):
            self._note(Trouble.ONLY_0_AND_255, "holds " + " and ".join(map(str, values.tolist())))
        return ids

    def _find_color_ids(self, codes: Values) -> list[int]:
        """The same for colours."""
        ids, unknown = _look_up(codes, self.looker.classes.color_lookup)
        if unknown:
            self._note(Trouble.UNKNOWN_COLOR, self.looker.classes.describe_unknown_colors(unknown).partition(". ")[0])
        return ids

    def _count_classes(self, ids: list[int], pixels: Values) -> None:
        """Adds a good mask to the counts; one with nothing valid, or one class, is noted."""
        valid = {class_id for class_id in ids if 0 <= class_id < IGNORE_ID}
        if -1 not in ids and len(valid) < 2:
            if valid:
                self._note(Trouble.SINGLE_CLASS, f"holds {self.looker.classes.names[valid.pop()]} alone")
            else:
                self._note(Trouble.ALL_IGNORED, "holds nothing that is not ignored")
        if self.troubles & BAD:
            return
        counts = np.bincount(ids, weights=pixels, minlength=IGNORE_ID + 1).astype(np.int64)
        num_classes = len(self.looker.classes)
        self.facts.class_pixels += counts[:num_classes]
        self.facts.ignored_pixels += int(counts[IGNORE_ID])
        self.facts.samples.present[self.index] = np.packbits(counts[:num_classes] > 0)


def _look_up(values: Values, lookup: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """(class id of each value or -1, the values that have none)."""
    ids = [lookup.get(value, -1) for value in values.tolist()]
    return ids, [value for value, class_id in zip(values.tolist(), ids, strict=True) if class_id < 0]


def _digest(data: bytes, thumb: npt.NDArray[np.uint8]) -> int:
    """64 bits that are the same for files of the same bytes. Of a large file its length, some pieces and its thumbnail
    count: files that agree in those are copies, and the whole would take a thirtieth of the time of the look.
    """
    digest = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=8)
    digest.update(thumb.tobytes())
    for start in (0, len(data) // 2, max(0, len(data) - _PIECE)):
        digest.update(data[start : start + _PIECE])
    return int.from_bytes(digest.digest(), "little")


def _choose_reduction(header: images.ImageHeader) -> int:
    """The most that leaves the thumbnail two pixels for each of its own."""
    if not header.can_reduce:
        return 1
    return next((step for step in (8, 4, 2) if min(header.size_hw) >= step * 2 * max(THUMB_HW)), 1)
