"""The table of classes: names, colours, and what a raw mask value means."""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg.errors import UserError

IGNORE_ID = 255
"""The class id that counts nowhere, in every mask in memory."""

MAX_CLASSES = 255

_WHITE = 0xFFFFFF

# The 20 distinct colours of Sasha Trubetskoy's list, least alike first, without white and black.
_DISTINCT_COLORS = [
    "#4363d8", "#e6194b", "#3cb44b", "#ffe119", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4",
    "#469990", "#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#a9a9a9",
]  # fmt: skip

UintArray = npt.NDArray[np.unsignedinteger[Any]]
MaskArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassInfo:
    """One class. `color` is what it is drawn in. `values` are the raw mask values that mean it; in masks coded in RGB
    `raw_colors` are, where given, else `color`.
    """

    name: str
    color: str
    values: tuple[int, ...]
    raw_colors: tuple[str, ...] = ()

    @property
    def color_rgb(self) -> tuple[int, int, int]:
        return parse_color(self.color)


@dataclass(frozen=True)
class ClassTable:
    """Classes in id order, and the raw values and colours that are ignored. 255 is one of them unless a class has it.

    lookup: raw value -> class id, with 255 for what is ignored. color_lookup: the same by colour 0xRRGGBB.
    """

    classes: tuple[ClassInfo, ...]
    ignore: tuple[int, ...] = ()
    ignore_colors: tuple[str, ...] = ()
    lookup: dict[int, int] = field(init=False, repr=False, compare=False)
    color_lookup: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise UserError(f"classes: {len(self.classes)} given; between 2 and {MAX_CLASSES} are allowed")
        names = [info.name for info in self.classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"classes: the name {twice[0]!r} is given twice")
        numbers = [value for info in self.classes for value in info.values] + list(self.ignore)
        wrong = [value for value in numbers if not 0 <= value <= 0xFFFF]
        if wrong:
            raise UserError(f"classes: the raw value {wrong[0]} is given; whole numbers from 0 to 65535 are allowed")
        lookup = {value: class_id for class_id, info in enumerate(self.classes) for value in info.values}
        if len(lookup) != sum(len(info.values) for info in self.classes):
            raise UserError("classes: one raw value belongs to two classes; each may stand under one class only")
        lookup.setdefault(IGNORE_ID, IGNORE_ID)
        lookup.update(dict.fromkeys(self.ignore, IGNORE_ID))
        object.__setattr__(self, "lookup", lookup)
        object.__setattr__(self, "color_lookup", self._make_color_lookup())

    def _make_color_lookup(self) -> dict[int, int]:
        """White is ignored unless a class has it. A colour of two classes is -1: it can mean neither."""
        lookup = {_WHITE: IGNORE_ID}
        taken: set[int] = set()
        for class_id, info in enumerate(self.classes):
            for code in {int(color[1:], 16) for color in info.raw_colors or (info.color,)}:
                lookup[code] = -1 if code in taken else class_id
                taken.add(code)
        lookup.update({int(color[1:], 16): IGNORE_ID for color in self.ignore_colors})
        return lookup

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.classes]

    @property
    def palette(self) -> MaskArray:
        """uint8 256x3, RGB: row = class id; 255 (ignored) is white, unused rows black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = [info.color_rgb for info in self.classes]
        palette[IGNORE_ID] = 255
        return palette

    def to_class_ids(self, raw: UintArray, source: str) -> MaskArray:
        """Raw mask -> class ids, uint8 HxW with 255 where ignored.

        raw: HxW of values, or HxWx3 of RGB colours that are looked up in the table. `source` names the mask in errors.
        Raises UserError for a value that is neither in the table nor ignored.
        """
        if raw.ndim == 3:
            return self._from_colors(raw, source)
        size = max(256, int(raw.max(initial=0)) + 1)
        table = np.full(size, -1, np.int16)
        for value, class_id in self.lookup.items():
            if value < size:
                table[value] = class_id
        ids = table[raw]
        if ids.min(initial=0) < 0:
            raise UserError(f"mask {source} {self.describe_unknown(np.unique(raw[ids < 0]).tolist())}")
        return ids.astype(np.uint8)

    def _from_colors(self, raw: UintArray, source: str) -> MaskArray:
        codes = pack_colors(raw)
        if -1 in self.color_lookup.values():
            raise UserError(f"mask {source} is an RGB picture, but two classes have the same color: which is meant?")
        ids = np.full(codes.shape, -1, np.int16)
        for code, class_id in self.color_lookup.items():
            ids[codes == code] = class_id
        if ids.min(initial=0) < 0:
            raise UserError(f"mask {source} {self.describe_unknown_colors(np.unique(codes[ids < 0]).tolist())}")
        return ids.astype(np.uint8)

    @property
    def ignored_values(self) -> list[int]:
        """Raw values that count nowhere, sorted."""
        return sorted(value for value, class_id in self.lookup.items() if class_id == IGNORE_ID)

    def describe_unknown(self, values: list[int]) -> str:
        """What to say of a mask that holds raw values which are not in the table; begins with `holds`."""
        shown = ", ".join(map(str, values[:8])) + (" …" if len(values) > 8 else "")
        ignored = self.ignored_values
        known = _as_ranges(value for value in self.lookup if value not in ignored)
        return (
            f"holds class id {shown}, but the class table has {len(self)} classes ({known}) and ignores "
            f"{', '.join(map(str, ignored)) or 'nothing'}. "
            f"Add the class, map the value to one with `values`, or put it under `ignore`."
        )

    def describe_unknown_colors(self, codes: list[int]) -> str:
        """What to say of an RGB-coded mask that holds colours 0xRRGGBB which are not in the table."""
        shown = ", ".join(f"#{code:06x}" for code in codes[:5]) + (" …" if len(codes) > 5 else "")
        return (
            f"is an RGB picture and holds {shown}, which is no color of the class table "
            f"(white is ignored unless a class has it). Give each class its color, put the color under `ignore`, "
            f"or store masks as class ids."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for bundle.json and classes.json."""
        entries = []
        for class_id, info in enumerate(self.classes):
            values = [*info.values, *info.raw_colors]
            entries.append({"id": class_id, "name": info.name, "color": info.color, "values": values})
        return {"classes": entries, "ignore": [*self.ignored_values, *self.ignore_colors]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClassTable":
        return parse_classes(data["classes"], data["ignore"])


def parse_classes(entries: Sequence[str | Mapping[str, Any]], ignore: Iterable[int | str] = ()) -> ClassTable:
    """A table from names in id order, or mappings with `name` and, if wanted, `color` and `values`.

    `values` and `ignore` hold whole numbers and, for masks coded in RGB, colours as `#rrggbb`.
    """
    if not isinstance(entries, (list, tuple)):
        raise UserError(f"classes: {entries!r} is given; a list of names in id order is allowed")
    classes = []
    for class_id, entry in enumerate(entries):
        given: Mapping[str, Any] = {"name": entry} if isinstance(entry, str) else entry
        unknown = set(given) - {"name", "color", "values", "id"}
        if unknown or "name" not in given:
            raise UserError(f"classes: entry {class_id} is {dict(given)!r}; allowed are name, color, values")
        values, raw_colors = _split_values(given.get("values", [class_id]))
        # Drawn as its masks draw it, where they have colours.
        color = str(given.get("color") or next(iter(raw_colors), default_color(class_id)))
        parse_color(color)
        classes.append(ClassInfo(str(given["name"]), color.lower(), values, raw_colors))
    ignored, ignored_colors = _split_values(ignore)
    return ClassTable(tuple(classes), tuple(sorted(set(ignored))), tuple(sorted(set(ignored_colors))))


def _split_values(given: Iterable[int | str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Raw values, and raw colours."""
    values, colors = [], []
    for value in given:
        if isinstance(value, str) and value.startswith("#"):
            parse_color(value)
            colors.append(value.lower())
        else:
            values.append(int(value))
    return tuple(values), tuple(colors)


def pack_colors(rgb: UintArray) -> npt.NDArray[np.uint32]:
    """HxWx3 -> HxW codes 0xRRGGBB."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    codes: npt.NDArray[np.uint32] = (red << np.uint32(16)) | (green << np.uint32(8)) | blue
    return codes


def parse_color(color: str) -> tuple[int, int, int]:
    """`#rrggbb` -> (red, green, blue)."""
    try:
        if len(color) != 7 or color[0] != "#":
            raise ValueError
        return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
    except ValueError:
        raise UserError(f"color {color!r} is not of the form #rrggbb (quote it in YAML: # starts a comment)") from None


def default_color(class_id: int) -> str:
    """A colour for a class that names none: twenty distinct ones, then hues a golden angle apart."""
    if class_id < len(_DISTINCT_COLORS):
        return _DISTINCT_COLORS[class_id]
    rgb = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.55 + 0.4 * (class_id % 2), 0.95 - 0.3 * (class_id % 3 == 0))
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _as_ranges(values: Iterable[int]) -> str:
    ordered = sorted(values)
    ranges: list[list[int]] = []
    for value in ordered:
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in ranges)
