"""What must be true of one row and its mask: the checks of `verify`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from batchseg import clearing, storage

# As in images.py: masks may be as large as --max-megapixels allowed, and these are our own.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Finding:
    """kind: part, twice, row, mask, overlay, score map, stray, leftover, manifest. subject: an image id or a path."""

    kind: str
    subject: str
    message: str


@dataclass(frozen=True)
class RowCheck:
    """Checks rows against what run.json says that a run writes. Reads mask files; changes nothing."""

    out: str
    bundle_digest: str | None
    to_parquet: bool
    to_png: bool
    overlay_suffix: str | None
    has_score_maps: bool
    has_rle: bool

    @classmethod
    def of_run(cls, out: str, run: dict[str, Any]) -> "RowCheck":
        """From the parameters in run.json."""
        parameters = run.get("parameters", {})
        write, overlays = parameters.get("write", ["parquet", "png"]), parameters.get("overlays", "none")
        return cls(
            out,
            parameters.get("bundle_digest"),
            "parquet" in write,
            "png" in write,
            None if overlays == "none" else f".{overlays}",
            bool(parameters.get("score_map")),
            bool(parameters.get("rle")),
        )

    def check(self, row: dict[str, Any], status: str) -> list[Finding]:
        """What is wrong with one row."""
        name, kind = row["image_id"], row["error_kind"]
        if status == "error":
            return [] if kind else [Finding("row", name, "lies among the failed ones, but has no error_kind")]
        found = []
        if kind:
            found.append(Finding("row", name, f"lies among the ok ones, but has the error_kind {kind}"))
        if self.bundle_digest and row["bundle"] != self.bundle_digest:
            found.append(Finding("row", name, f"was made with bundle {row['bundle']}, OUT with {self.bundle_digest}"))
        if message := self._check_mask(row):
            found.append(Finding("mask", name, message))
        suffix = self.overlay_suffix
        if suffix and (message := self._check_stored(row["overlay"], name, "overlays", suffix)):
            found.append(Finding("overlay", name, message))
        if self.has_score_maps and (message := self._check_stored(row["score_map"], name, "scores")):
            found.append(Finding("score map", name, message))
        if self.has_rle and row["rle"] is None:
            found.append(Finding("row", name, "has no run-length codes, which --rle asks for"))
        return found

    def _check_stored(self, picture: dict[str, Any] | None, image_id: str, folder: str, suffix: str = ".png") -> str:
        """What is wrong with where a row says that its picture is; whether files are there shows in the listing."""
        if picture is None:
            return "the row has none"
        if self.to_parquet and not picture["bytes"]:
            return "the row does not hold its bytes"
        allowed = clearing.name_picture(folder, image_id, suffix)
        if self.to_png and picture["path"] != allowed:
            return f"the row names {picture['path']!r}; its name is {allowed!r}"
        return ""

    def _check_mask(self, row: dict[str, Any]) -> str:
        if message := self._check_stored(row["mask"], row["image_id"], "masks"):
            return message
        data, path = row["mask"]["bytes"], row["mask"]["path"]
        if self.to_png:
            try:
                written = storage.read_bytes(storage.join(self.out, path))
            except FileNotFoundError:
                return f"{path} is missing"
            if self.to_parquet and data != written:
                return f"{path} is not the mask that the row holds"
            data = written
        return compare_mask(data, (row["height"], row["width"]), row["class_pixels"] or [])


def compare_mask(data: bytes, size_hw: tuple[int | None, int | None], class_pixels: Sequence[int]) -> str:
    """What is wrong with an encoded mask: its size, or pixels per class other than those given. 255 may occur.

    Counted by Pillow on its own buffer, so that a mask of 400 megapixels is held once.
    """
    try:
        with Image.open(io.BytesIO(data)) as mask:
            found_hw, mode = (mask.height, mask.width), mask.mode
            counts = mask.histogram() if mode in ("P", "L") else []
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types on bad bytes: SyntaxError, struct.error, OSError, ...
        return f"the mask of {len(data)} bytes cannot be decoded: {type(error).__name__}: {error}"
    if not counts:
        return f"the mask is a picture of mode {mode}, not one of class ids"
    if found_hw != size_hw:
        return f"the mask is {found_hw[1]}x{found_hw[0]}, its image {size_hw[1]}x{size_hw[0]}"
    classes = len(class_pixels)
    if counts[:classes] != list(class_pixels) or any(counts[classes:255]):
        wrong = [i for i, count in enumerate(counts[:255]) if count != (class_pixels[i] if i < classes else 0)]
        return f"pixels of class {', '.join(map(str, wrong[:8]))} are not as many as the row counts"
    return ""
