"""The options of `segment`, checked where they come in. No Ray and no Keras, so that every stage can carry them."""

import math
from dataclasses import dataclass, field
from typing import Any

from batchseg.errors import UserError
from batchseg.images import DEFAULT_MAX_MEGAPIXELS
from batchseg.listing import ListOptions
from batchseg.quality import InferenceOptions

WRITES = ("parquet", "png")
OVERLAYS = ("png", "jpg", "none")


@dataclass(frozen=True)
class SegmentOptions:
    """Which images are taken, what a mask is made of, what goes where, and when to stop.

    overlay_size: longest side in pixels; 0 is the image's own. max_failed_share: 1 is never. overwrite: begin OUT anew.
    prune: drop rows and pictures of images that are listed no more. Raises UserError for a value that is not allowed.
    """

    listing: ListOptions = field(default_factory=ListOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    write: tuple[str, ...] = WRITES
    overlays: str = "png"
    overlay_size: int = 512
    rle: bool = False
    batch_size: int = 8
    actors: int | None = None
    gpus_per_actor: float | None = None
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    max_failed_share: float = 0.9
    sanity_check: bool = True
    overwrite: bool = False
    prune: bool = False

    def __post_init__(self) -> None:
        if not self.write or set(self.write) - set(WRITES):
            raise UserError(f"--write is {','.join(self.write)!r}; allowed are parquet, png or parquet,png")
        if self.overlays not in OVERLAYS:
            raise UserError(f"--overlays is {self.overlays!r}; allowed are {', '.join(OVERLAYS)}")
        self._check_numbers()
        if not 0 < self.max_failed_share <= 1:
            raise UserError(f"--max-failed-share is {self.max_failed_share:g}; a share above 0 up to 1 is allowed")
        if self.prune and self.listing != ListOptions():
            raise UserError("--prune would drop what --include, --exclude or --limit leave out; give it without them")

    def _check_numbers(self) -> None:
        for name, least in (("batch_size", 1), ("actors", 1), ("overlay_size", 0)):
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (value is None and name == "actors") and not (is_whole and value >= least):
                raise UserError(f"{_flag(name)} is {value!r}; a whole number of at least {least} is allowed")
        if not 0 < self.max_megapixels < math.inf:
            raise UserError(f"--max-megapixels is {self.max_megapixels:g}; a number above 0 is allowed")
        if self.gpus_per_actor is not None and not 0 <= self.gpus_per_actor < math.inf:
            raise UserError(f"--gpus-per-actor is {self.gpus_per_actor:g}; 0 or more is allowed")

    @classmethod
    def from_flags(cls, **flags: Any) -> "SegmentOptions":
        """From the command line, where `write` and `scales` are lists with commas."""
        listing = ListOptions(include=flags.pop("include"), exclude=flags.pop("exclude"), limit=flags.pop("limit"))
        inference = InferenceOptions(
            flip=flags.pop("flip"),
            scales=_split_numbers(flags.pop("scales")),
            min_confidence=flags.pop("min_confidence"),
            score_map=flags.pop("score_map"),
            min_region=flags.pop("min_region"),
        )
        write = tuple(sorted({part.strip() for part in flags.pop("write").split(",") if part.strip()}))
        return cls(listing=listing, inference=inference, write=write, **flags)

    @property
    def overlay_suffix(self) -> str | None:
        """`.png` or `.jpg`; None where no overlay is made."""
        return None if self.overlays == "none" else f".{self.overlays}"

    def list_parameters(self) -> dict[str, Any]:
        """What one OUT has one of: another value would mix rows that cannot be told apart."""
        inference = self.inference
        return {
            "write": sorted(self.write),
            "overlays": self.overlays,
            "overlay_size": self.overlay_size,
            "rle": self.rle,
            "flip": inference.flip,
            "scales": list(inference.scales),
            "min_confidence": inference.min_confidence,
            "score_map": inference.score_map,
            "min_region": inference.min_region,
        }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _split_numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--scales is {text!r}; numbers with commas are allowed, such as 0.75,1,1.25") from None
