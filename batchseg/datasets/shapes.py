"""The COCO annotations of one image, packed: some 800 bytes, so that 100,000 samples can be sent to workers.

Coordinates are kept exactly: as hundredths in 16 bits where that is what they are (COCO's own), else as float64.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco

from batchseg.classes import MaskArray
from batchseg.errors import UserError

Part = Sequence[float] | bytes
"""A polygon x0, y0, x1, y1, … in pixels, or COCO's compressed run-length code."""

_MIN_NUMBERS = 6  # fewer make no area, and pycocotools takes four for a box


@dataclass(frozen=True, slots=True)
class CocoShapes:
    """Annotations of an image. page: location of their JSON. size_hw: as the JSON says. rest: class id of pixels that
    no annotation covers.

    class_ids: uint8 of each annotation. parts: int32 Nx2, annotation and length of each polygon (numbers) or, negative,
    of each run-length code (bytes). numbers: all polygons one after the other. codes: all run-length codes.
    """

    page: str
    image_id: int | str
    size_hw: tuple[int, int]
    rest: int
    class_ids: bytes
    parts: bytes
    numbers: bytes
    codes: bytes
    in_hundredths: bool

    def __str__(self) -> str:
        return f"{self.page} image id {self.image_id}"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.page,)

    def read(self) -> MaskArray:
        """Class ids HxW, rasterised by pycocotools. Of two annotations that overlap the smaller lies on top.

        Raises UserError naming the image for a run-length code that is damaged.
        """
        mask = np.full(self.size_hw, self.rest, np.uint8, order="F")  # as pycocotools decodes
        try:
            runs = [(coco.area(run), class_id, run) for class_id, run in self._encode()]
            # Sorting is stable: of two equally large ones the later lies on top.
            for _, class_id, run in sorted(runs, key=lambda entry: -int(entry[0])):
                mask[coco.decode(run).astype(bool)] = class_id
        except ValueError as error:
            raise UserError(f"mask {self} has a damaged run-length code: {error}") from None
        return np.ascontiguousarray(mask)

    def _encode(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """Class id and run-length code of each annotation."""
        height, width = self.size_hw
        by_annotation: dict[int, list[dict[str, Any]]] = {}
        for owner, part in self._unpack():
            if isinstance(part, bytes):
                _check_code(part, height * width)
                run = {"size": [height, width], "counts": part}
            else:
                run = coco.frPyObjects([part], height, width)[0]
            by_annotation.setdefault(owner, []).append(run)
        for owner, runs in by_annotation.items():
            yield self.class_ids[owner], coco.merge(runs) if len(runs) > 1 else runs[0]

    def _unpack(self) -> Iterable[tuple[int, Part]]:
        numbers = np.frombuffer(self.numbers, np.uint16) / 100 if self.in_hundredths else np.frombuffer(self.numbers)
        at = at_code = 0
        for owner, length in np.frombuffer(self.parts, np.int32).reshape(-1, 2).tolist():
            if length >= 0:
                yield owner, numbers[at : at + length].tolist()
                at += length
            else:
                yield owner, self.codes[at_code : at_code - length]
                at_code -= length


def _check_code(code: bytes, size: int) -> None:
    """Raises ValueError for counts that do not add up to `size`: pycocotools would leave the rest of the mask as memory
    happens to be. The coding is that of maskApi.c: 5 bits a character, and differences to the count before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift or min(counts, default=0) < 0 or sum(counts) != size:
        raise ValueError(f"its counts do not add up to the {size} pixels of the image")


def pack_shapes(
    page: str, image_id: int | str, size_hw: tuple[int, int], rest: int, annotations: Sequence[tuple[int, list[Part]]]
) -> CocoShapes:
    """annotations: class id and parts of each."""
    parts: list[tuple[int, int]] = []
    polygons: list[Sequence[float]] = []
    codes: list[bytes] = []
    for owner, (_, pieces) in enumerate(annotations):
        for piece in pieces:
            if isinstance(piece, bytes):
                parts.append((owner, -len(piece)))
                codes.append(piece)
            elif len(piece) >= _MIN_NUMBERS:
                parts.append((owner, len(piece)))
                polygons.append(piece)
    numbers = np.fromiter(chain.from_iterable(polygons), np.float64)
    hundredths = np.rint(numbers * 100)
    fits = bool(np.all((hundredths / 100 == numbers) & (hundredths >= 0) & (hundredths <= 0xFFFF)))
    return CocoShapes(
        page,
        image_id,
        size_hw,
        rest,
        bytes(class_id for class_id, _ in annotations),
        np.array(parts, np.int32).tobytes(),
        (hundredths.astype(np.uint16) if fits else numbers).tobytes(),
        b"".join(codes),
        fits,
    )
