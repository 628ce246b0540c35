"""What `batchseg check` leaves: a table and findings on the terminal, check.json, a contact sheet."""

import json
from collections import Counter
from typing import Any

import numpy as np

from batchseg import __version__, images, storage
from batchseg.console import Console
from batchseg.datasets import Dataset
from batchseg.datasets.page import DATASET_FILE, write_keys
from batchseg.doctor.diagnosis import Diagnosis
from batchseg.doctor.finding import SEVERITIES, Finding
from batchseg.doctor.sheet import draw_samples

JSON_FILE = "check.json"
SHEET_FILE = "contact_sheet.png"

_SHOWN_LINES = 24
_LINE_LENGTH = 200
_COLUMNS = ("pixels", "share", "images")
_LABELS = {"error": "ERROR", "warning": "warning", "remark": "remark"}


def show_diagnosis(console: Console, dataset: Dataset, diagnosis: Diagnosis) -> None:
    """Prints the set in a table, then each finding with its files and its fix, the worst first."""
    console.say(f"{dataset.location}: format {dataset.format} ({dataset.reason})")
    header = ["class", *(f"{split}\n{column}" for split in diagnosis.facts.splits for column in _COLUMNS)]
    console.show_table("", header, _make_rows(diagnosis))
    sizes = count_sizes(diagnosis).most_common(5)
    shown = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sizes[:4])
    console.say(f"sizes: {shown}" + (" …" if len(sizes) > 4 else ""))
    for finding in diagnosis.findings:
        console.say(describe_finding(finding))
    counts = Counter(finding.severity for finding in diagnosis.findings)
    console.say("\n" + ", ".join(f"{severity}s: {counts[severity]}" for severity in SEVERITIES))


def _make_rows(diagnosis: Diagnosis) -> list[list[str]]:
    """One row per class, then what is ignored, then the images; for each split pixels, share, images that hold it."""
    facts = diagnosis.facts
    columns = []
    for split in facts.splits:
        pixels, ignored = facts.class_pixels[split].tolist(), facts.ignored_pixels[split]
        total, present = max(1, sum(pixels)), facts.count_present(split).tolist()
        cells = [
            (shorten(count), f"{count / total:.2%}", f"{held:,}") for count, held in zip(pixels, present, strict=True)
        ]
        good = len(facts.find_good(split))
        columns.append([*cells, (shorten(ignored), "", ""), (shorten(sum(pixels)), "", f"{good:,}")])
    names = [*facts.classes.names, "ignored", "all valid"]
    return [[name, *(cell for column in columns for cell in column[row])] for row, name in enumerate(names)]


def shorten(number: int) -> str:
    """Three digits: 950, 61.2k, 1.33M."""
    for unit, name in [(10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")]:
        if number >= 0.9995 * unit:
            return f"{number / unit:#.3g}".rstrip(".") + name
    return str(number)


def describe_finding(finding: Finding) -> str:
    """Severity, count and title; the files with their notes; the fix, and the lines to paste."""
    text = f"\n{_LABELS[finding.severity]} ({finding.count:,}): {finding.title}\n"
    for file, note in zip(finding.files, finding.notes, strict=True):
        text += f"    {file} {note}\n"
    if finding.files and finding.count > len(finding.files):
        text += f"    and {finding.count - len(finding.files):,} more\n"
    text += f"  fix: {finding.fix}"
    if not finding.lines:
        return text
    lines = write_keys(finding.lines).splitlines()
    text += " In dataset.yaml:\n" + "".join(f"    {line[:_LINE_LENGTH]}\n" for line in lines[:_SHOWN_LINES])
    if len(lines) > _SHOWN_LINES:
        text += f"    … {len(lines) - _SHOWN_LINES} lines more in {JSON_FILE}\n"
    return text.removesuffix("\n")


def count_sizes(diagnosis: Diagnosis) -> Counter[tuple[int, int]]:
    """How many images have which (height, width)."""
    sizes, counts = np.unique(diagnosis.facts.samples.size_hw, axis=0, return_counts=True)
    pairs = zip(sizes.tolist(), counts.tolist(), strict=True)
    return Counter({(height, width): count for (height, width), count in pairs if height})


def name_report(dataset: Dataset) -> str:
    """What a report on the set is called: its page, or the folder of a dataset.yaml."""
    name = storage.name_of(dataset.location)
    return (
        storage.name_of(storage.folder_of(dataset.location))
        if name == DATASET_FILE
        else name.rpartition(".yaml")[0] or name
    )


def write_report(out: str, dataset: Dataset, diagnosis: Diagnosis) -> list[str]:
    """Writes check.json and, if any sample is good, the contact sheet into `out`; returns their locations."""
    storage.make_folder(out)
    written = [storage.join(out, JSON_FILE)]
    storage.write_atomic(written[0], json.dumps(to_json(dataset, diagnosis), indent=1) + "\n")
    sheet = draw_samples(diagnosis.facts)
    if sheet is not None:
        written.append(storage.join(out, SHEET_FILE))
        storage.write_atomic(written[1], images.encode_image(sheet, ".png"))
    return written


def to_json(dataset: Dataset, diagnosis: Diagnosis) -> dict[str, Any]:
    """The content of check.json."""
    counts = Counter(finding.severity for finding in diagnosis.findings)
    return {
        "batchseg": __version__,
        "data": dataset.location,
        "format": dataset.format,
        "reason": dataset.reason,
        **dataset.classes.to_json(),
        "splits": {split: _describe_split(split, diagnosis) for split in diagnosis.facts.splits},
        "brightness": diagnosis.brightness,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "findings": [finding.to_json() for finding in diagnosis.findings],
    }


def _describe_split(split: str, diagnosis: Diagnosis) -> dict[str, Any]:
    facts = diagnosis.facts
    pixels = facts.class_pixels[split].tolist()
    total = max(1, sum(pixels))
    present = facts.count_present(split).tolist()
    return {
        "images": len(facts.splits[split]),
        "good": len(facts.find_good(split)),
        "ignored_pixels": facts.ignored_pixels[split],
        "classes": [
            {"name": name, "pixels": count, "share": count / total, "images": held}
            for name, count, held in zip(facts.classes.names, pixels, present, strict=True)
        ],
    }
