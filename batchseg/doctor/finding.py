"""What the doctor says: how bad, how often, which files, what to do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchseg.datasets.page import write_keys

Severity = Literal["error", "warning", "remark"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "remark")
MAX_FILES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of trouble. An `error` stops training, a `warning` will cost quality, a `remark` may be meant.

    title: what the `count` cases are, in the plural. files: at most five of them. notes: what is wrong with each, to be
    read behind its name. fix: what to do. lines: top-level keys of dataset.yaml that mend it, if any do.
    """

    kind: str
    severity: Severity
    title: str
    count: int
    fix: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lines: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The first case in one line, with the fix: for a command that stops over it."""
        first = f"{self.files[0]} {self.notes[0]}" if self.files else self.title
        return f"{first}. {self.fix}" + (f" ({self.count:,} {self.title})" if self.count > 1 and self.files else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data, for check.json."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "title": self.title,
            "files": list(self.files),
            "notes": list(self.notes),
            "fix": self.fix,
            "yaml": write_keys(self.lines) if self.lines else None,
        }


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, and of one severity the most frequent."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count))
