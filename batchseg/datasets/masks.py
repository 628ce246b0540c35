"""Where the mask of a sample comes from, when it is not simply one file: several instance files, or panoptic PNG."""

from dataclasses import dataclass

import numpy as np

from batchseg import images, storage
from batchseg.classes import IGNORE_ID, MaskArray, UintArray, pack_colors
from batchseg.errors import UserError

_MAX_SHOWN = 5


def read_mask_file(location: str) -> UintArray:
    """The raw values of one mask file. Raises UserError naming it."""
    try:
        data = storage.read_bytes(location)
    except OSError as error:
        raise UserError(f"mask {location} cannot be read: {error}") from error
    return images.decode_mask(data, location)


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """One file for each instance, all of one class: what is not 0 in one of them is 1, the rest 0."""

    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    def read(self) -> MaskArray:
        """Raises UserError naming a file that cannot be read or differs in size from the first."""
        merged: MaskArray | None = None
        for location in self.files:
            raw = read_mask_file(location)
            inside = (raw != 0) if raw.ndim == 2 else (raw != 0).any(axis=2)
            if merged is None:
                merged = np.zeros(inside.shape, np.uint8)
            if inside.shape != merged.shape:
                raise UserError(
                    f"mask {location} is {inside.shape[1]}x{inside.shape[0]}, {self.files[0]} of the same image is "
                    f"{merged.shape[1]}x{merged.shape[0]} (width x height). They must be equal."
                )
            merged[inside] = 1
        assert merged is not None  # the reader makes no sample without files
        return merged


@dataclass(frozen=True, slots=True)
class PanopticFile:
    """A COCO panoptic PNG, whose pixels are segment ids R + 256 G + 65536 B, and what each segment is.

    segment_ids: uint32, ascending. class_ids: uint8 of each; 255 is ignored. Id 0 is unlabelled and ignored.
    """

    location: str
    segment_ids: bytes
    class_ids: bytes

    def __str__(self) -> str:
        return self.location

    @property
    def files(self) -> tuple[str, ...]:
        return (self.location,)

    def read(self) -> MaskArray:
        """Class ids. Raises UserError naming the file for a segment id that its JSON does not list."""
        raw = read_mask_file(self.location)
        if raw.ndim != 3:
            raise UserError(f"mask {self.location} is no panoptic PNG: it must be RGB, it has one channel")
        codes = pack_colors(raw[..., ::-1])
        known = np.frombuffer(self.segment_ids, np.uint32)
        classes = np.frombuffer(self.class_ids, np.uint8)
        # Neighbours are mostly alike: only where a run of equal ids begins is one looked up.
        flat = codes.ravel()
        begins = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        found = flat[begins]
        at = np.searchsorted(known, found)
        is_known = (at < len(known)) & (np.append(known, 0)[at] == found)
        unlisted = np.unique(found[~is_known & (found != 0)])
        if len(unlisted):
            shown = ", ".join(map(str, unlisted[:_MAX_SHOWN].tolist()))
            raise UserError(f"mask {self.location} holds the segment id {shown}, which its JSON does not list")
        meaning = np.where(is_known, np.append(classes, IGNORE_ID)[at], IGNORE_ID).astype(np.uint8)
        return np.repeat(meaning, np.diff(np.append(begins, flat.size))).reshape(codes.shape)
