"""Findings about raw mask values and colours that the class table does not know."""

from collections.abc import Iterator, Sequence
from typing import Any

from batchseg.doctor.facts import DatasetFacts, Trouble
from batchseg.doctor.finding import Finding
from batchseg.doctor.samples import report_samples
from batchseg.doctor.tables import add_ignored, rewrite_classes

_STRAY_SHARE = 0.01
_BACKGROUND_SHARE = 0.2
_BACKGROUND_NAMES = frozenset({"background", "bg", "ground", "none", "other"})
_MAX_ADDED = 64
_SHOWN = 8
_GREY = 0x010101


def find_value_troubles(facts: DatasetFacts) -> Iterator[Finding]:
    """All findings of this file."""
    yield from _find_unknown_values(facts)
    yield from _find_unknown_colors(facts)


def _find_unknown_values(facts: DatasetFacts) -> Iterator[Finding]:
    unknown = sorted(value for value in facts.values.pixels if value not in facts.classes.lookup)
    shift = detect_shift(facts) if unknown else 0
    if shift:
        word = "high" if shift > 0 else "low"
        yield from report_samples(
            facts, Trouble.UNKNOWN_VALUE, "error",
            f"masks off by one: no class has {_list_values(unknown)}, and all values fit when taken as one too {word}",
            "Count the classes from where the masks do; or put under `ignore` what means nothing.", kind="off_by_one",
            lines=_shift_classes(facts, shift),
        )  # fmt: skip
        return
    share = sum(facts.values.pixels[value] for value in unknown) / max(1, facts.values.pixels.total())
    fix, lines = _mend_unknown(facts, unknown, share)
    yield from report_samples(
        facts, Trouble.UNKNOWN_VALUE, "error",
        f"masks with values that no class has: {_list_values(unknown)} ({share:.2%} of all pixels)", fix, lines=lines,
    )  # fmt: skip


def _mend_unknown(facts: DatasetFacts, unknown: list[int], share: float) -> tuple[str, dict[str, Any]]:
    if len(unknown) > _MAX_ADDED:
        return "So many values come from masks that were smoothed when resized, or from depths and instances.", {}
    if share < _STRAY_SHARE:
        return (
            "Add the class, map the value to one with `values`, or ignore it.",
            add_ignored(facts.classes, unknown),
        )
    added = [(f"class_{value}", [value]) for value in unknown]
    return "Name the classes that are missing, or put the values under `ignore`.", rewrite_classes(
        facts.classes, added=added
    )


def detect_shift(facts: DatasetFacts) -> int:
    """+1 when all raw values fit the table taken as one too high, -1 as one too low, 0 for neither.

    A 0 beside values counted from 1 is taken for unlabelled if it is neither the bulk nor a class named background.
    """
    lookup, ignored = facts.classes.lookup, facts.classes.ignored_values
    allowed = set(lookup) - set(ignored)
    seen = set(facts.values.pixels) - set(ignored)
    if {value + 1 for value in seen} <= allowed:
        return -1
    pixels = sum(facts.values.pixels[value] for value in seen)
    is_unlabelled = (
        facts.values.pixels[0] < _BACKGROUND_SHARE * pixels
        and facts.classes.names[lookup.get(0, 0)].lower() not in _BACKGROUND_NAMES
    )
    counted = seen - {0} if is_unlabelled else seen
    return 1 if counted and {value - 1 for value in counted} <= allowed else 0


def _shift_classes(facts: DatasetFacts, shift: int) -> dict[str, Any]:
    values = [[value + shift for value in info.values] for info in facts.classes.classes]
    lines = rewrite_classes(facts.classes, values=values)
    if shift > 0 and 0 in facts.values.pixels:
        lines |= add_ignored(facts.classes, [0])
    return lines


def _find_unknown_colors(facts: DatasetFacts) -> Iterator[Finding]:
    unknown = [code for code, _ in facts.colors.pixels.most_common() if facts.classes.color_lookup.get(code, -1) < 0]
    fix, lines = _mend_colors(facts, unknown)
    yield from report_samples(
        facts, Trouble.UNKNOWN_COLOR, "error",
        f"masks coded in RGB, with colours that no class has: {_list_colors(unknown)}", fix, lines=lines,
    )  # fmt: skip


def _mend_colors(facts: DatasetFacts, unknown: list[int]) -> tuple[str, dict[str, Any]]:
    classes, lookup = facts.classes, facts.classes.lookup
    greys = [code >> 16 if code == (code >> 16) * _GREY else -1 for code in facts.colors.pixels]
    if len(greys) <= 256 and all(lookup.get(grey, -1) >= 0 for grey in greys):
        values: list[list[int | str]] = [
            [*info.values, *(f"#{value * _GREY:06x}" for value in info.values)] for info in classes.classes
        ]
        return "They are grey, and their grey values are class ids: say so.", rewrite_classes(classes, values=values)
    if len(unknown) > _MAX_ADDED:
        return "So many colours come from JPEG or from smoothing: make the masks anew, by nearest, as PNG.", {}
    held = {classes.color_lookup.get(code, -1) for code in facts.colors.pixels}
    known = [class_id for class_id in range(len(classes)) if class_id in held]
    added = [(f"color_{code:06x}", [f"#{code:06x}"]) for code in unknown]
    # Classes whose colour is in no mask were never meant for these masks.
    return "Give each class its color; the names here are for you to replace.", rewrite_classes(
        classes, keep=known, added=added
    )


def _list_values(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (" …" if len(values) > _SHOWN else "")


def _list_colors(colors: Sequence[int]) -> str:
    return ", ".join(f"#{color:06x}" for color in colors[:_SHOWN]) + (" …" if len(colors) > _SHOWN else "")
