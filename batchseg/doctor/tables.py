"""Lines of dataset.yaml that describe a class table."""

from collections.abc import Sequence
from typing import Any

from batchseg.classes import ClassTable, default_color


def rewrite_classes(
    classes: ClassTable,
    *,
    values: Sequence[Sequence[int | str]] | None = None,
    keep: Sequence[int] | None = None,
    added: Sequence[tuple[str, Sequence[int | str]]] = (),
) -> dict[str, Any]:
    """The key `classes` for this table with a change: other raw values, only the classes `keep`, or some more."""
    entries: list[Any] = []
    for index in range(len(classes)) if keep is None else keep:
        info = classes.classes[index]
        numbers: Sequence[int | str] = [*info.values, *info.raw_colors] if values is None else values[index]
        entries.append(describe_class(info.name, info.color, numbers, len(entries)))
    for name, numbers in added:
        color = next((value for value in numbers if isinstance(value, str)), default_color(len(entries)))
        entries.append(describe_class(name, color, numbers, len(entries)))
    return {"classes": entries}


def add_ignored(classes: ClassTable, values: Sequence[int]) -> dict[str, Any]:
    """The key `ignore` with some raw values more."""
    return {"ignore": [*sorted({*classes.ignore, *values}), *classes.ignore_colors]}


def describe_class(name: str, color: str, values: Sequence[int | str], class_id: int) -> Any:
    """One entry under `classes`, without what goes without saying."""
    entry: dict[str, Any] = {"name": name}
    if color != default_color(class_id):
        entry["color"] = color
    if list(values) != [class_id]:
        entry["values"] = list(values)
    return entry if len(entry) > 1 else name
