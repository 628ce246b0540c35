"""The dataset.yaml that `batchseg check` would use: the declaration as read, with all fixes that are keys of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from batchseg import storage
from batchseg.datasets import Dataset
from batchseg.datasets.page import DatasetPage, parse_page
from batchseg.doctor.diagnosis import Diagnosis
from batchseg.doctor.finding import Finding

_ADDS_UP = ("exclude", "ignore")


def merge_lines(findings: Iterable[Finding], page: DatasetPage) -> dict[str, Any]:
    """The lines of errors and warnings, one value for each key: what is left out or ignored adds up, and of other keys
    the worst finding has the word. A class that no mask holds yet stays.
    """
    merged: dict[str, Any] = {}
    for finding in findings:
        if finding.severity == "remark" or finding.kind == "class_absent":
            continue
        for key, value in finding.lines.items():
            if key in _ADDS_UP:
                before = merged.get(key, getattr(page, key))
                merged[key] = [*before, *(entry for entry in value if entry not in before)]
            else:
                merged.setdefault(key, value)
    return merged


def draft_page(dataset: Dataset, diagnosis: Diagnosis) -> DatasetPage:
    """The page of a set with the fixes in it."""
    values: Mapping[str, Any] = dataset.page.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return parse_page({**values, **merge_lines(diagnosis.findings, dataset.page)}, dataset.location)


def write_draft(location: str, dataset: Dataset, diagnosis: Diagnosis) -> str:
    """Writes the page of a set with the fixes in it; returns its location."""
    header = f"# Drafted by `batchseg check {dataset.location}`; fixes that are no keys of this page are not in it.\n"
    storage.write_atomic(location, header + draft_page(dataset, diagnosis).to_yaml())
    return location
