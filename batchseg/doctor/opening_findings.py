"""Findings from opening the set: files without a partner, names that clash, annotations that cannot be."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from batchseg.datasets.problems import Problem
from batchseg.doctor.finding import MAX_FILES, Finding, Severity

_SAID: dict[str, tuple[Severity, str, str]] = {
    "image_without_mask": ("error", "images without a mask", "Add the masks, or leave the images out."),
    "mask_without_image": ("remark", "masks without an image", "They are not used. Add the images if they are meant."),
    "missing_file": ("error", "files that are listed and not there", "Add them, or take them out of the list."),
    "duplicate_stem": ("error", "images of one name but for the suffix: whose is the mask?", "Keep one."),
    "duplicate_name": ("error", "images that stand twice in their split", "Take them out of the list once."),
    "case_collision": (
        "warning", "names that differ in upper and lower case alone: they overwrite each other on other systems",
        "Rename them, or keep one of each.",
    ),
    "bad_annotation": ("error", "annotations that cannot be used", "Mend the JSON."),
}  # fmt: skip


def find_opening_troubles(problems: Iterable[Problem], root: str) -> Iterator[Finding]:
    """One finding for each kind of problem. root: of the set."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        severity, title, fix = _SAID[kind]
        first = found[:MAX_FILES]
        files = tuple(f"{root}/{problem.file}" for problem in first)
        notes = tuple(_to_note(problem) for problem in first)
        yield Finding(kind, severity, title, len(found), fix, files, notes, _make_lines(kind, found))


def _to_note(problem: Problem) -> str:
    """The first sentence, without the name if it begins with it."""
    said = problem.message.partition(". ")[0].removesuffix(".")
    return said.removeprefix(f"{problem.file} ") if said.startswith(f"{problem.file} ") else f"({said})"


def _make_lines(kind: str, problems: Sequence[Problem]) -> dict[str, Any]:
    if kind in ("image_without_mask", "missing_file"):
        return {"unpaired": "skip"}
    if kind in ("duplicate_stem", "case_collision"):
        return {"exclude": sorted({problem.file for problem in problems})}
    return {}
