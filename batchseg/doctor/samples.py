"""Findings about single files: what is missing, damaged, of another size, or turned."""

from collections.abc import Iterator, Mapping
from typing import Any

from batchseg.doctor.facts import DatasetFacts, Trouble
from batchseg.doctor.finding import Finding, Severity

_OF_IMAGE = Trouble.IMAGE_MISSING | Trouble.IMAGE_UNREADABLE | Trouble.KILLS_DECODER


def report_samples(
    facts: DatasetFacts,
    trouble: Trouble,
    severity: Severity,
    title: str,
    fix: str,
    *,
    kind: str = "",
    lines: Mapping[str, Any] | None = None,
    excludes: bool = False,
) -> Iterator[Finding]:
    """One finding on all samples with a trouble, if there are any. excludes: the fix is to leave them out."""
    found = facts.find(trouble)
    if not len(found):
        return
    known = facts.notes.get(trouble, [])
    samples = [facts.sample(index) for index, _ in known]
    files = tuple(sample.image if trouble & _OF_IMAGE else str(sample.mask) for sample in samples)
    notes = tuple(note for _, note in known)
    if excludes:
        lines = {"exclude": [facts.sample(int(index)).name for index in found]}
    yield Finding(kind or str(trouble.name).lower(), severity, title, len(found), fix, files, notes, lines or {})


def find_file_troubles(facts: DatasetFacts) -> Iterator[Finding]:
    """All findings of this file."""
    for trouble, title, fix in [
        (Trouble.IMAGE_MISSING, "images that are listed and not there", "Add them, or leave them out."),
        (Trouble.IMAGE_UNREADABLE, "images that cannot be read", "Repair them, or leave them out."),
        (Trouble.KILLS_DECODER, "files that kill the process which decodes them", "Repair them, or leave them out."),
        (Trouble.MASK_MISSING, "images whose mask is not there", "Add the masks, or leave the images out."),
        (Trouble.MASK_UNREADABLE, "masks that cannot be read", "Repair them, or leave the images out."),
        (Trouble.MASK_JPEG, "masks stored as JPEG, whose values are not exact", "Make them anew, as PNG."),
    ]:  # fmt: skip
        yield from report_samples(facts, trouble, "error", title, fix, excludes=True)
    yield from report_samples(
        facts, Trouble.NOT_TURNED, "error", "masks drawn on the image before its EXIF orientation turned it",
        "Say that they follow the image.", lines={"mask_orientation": "image"},
    )  # fmt: skip
    yield from report_samples(
        facts, Trouble.MAYBE_NOT_TURNED, "remark",
        "masks whose image is turned by EXIF to the same size: were they drawn before or after?",
        "Look at the first rows of the contact sheet. If they were drawn on the stored pixels, say so.",
        lines={"mask_orientation": "image"},
    )  # fmt: skip
    yield from report_samples(
        facts, Trouble.SIZE_DIFFERS, "error", "masks of another size than their image",
        "Make them anew, or let them be resized.", lines={"resize_masks": "nearest"},
    )  # fmt: skip
