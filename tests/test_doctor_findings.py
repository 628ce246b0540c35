"""Every way to break a data set is found, with the right file, and the lines that check prints mend it when pasted."""

from pathlib import Path

import pytest
import yaml
from broken_data import BREAKS, Break, draw_good

from batchseg.doctor import Diagnosis, Finding, check_dataset
from batchseg.doctor.report import describe_finding


def find(diagnosis: Diagnosis, kind: str) -> Finding:
    found = [finding for finding in diagnosis.findings if finding.kind == kind]
    assert len(found) == 1, [finding.kind for finding in diagnosis.findings]
    return found[0]


def paste(page: Path, finding: Finding) -> None:
    """Takes the lines out of what check prints, and puts them into dataset.yaml in the place of the same keys."""
    text = describe_finding(finding).split("In dataset.yaml:\n")[1]
    lines = yaml.safe_load("\n".join(line[4:] for line in text.splitlines()))
    assert lines
    page.write_text(yaml.safe_dump({**yaml.safe_load(page.read_text()), **lines}, sort_keys=False))


def test_a_good_set_has_no_findings(tmp_path: Path) -> None:
    _, diagnosis = check_dataset(str(draw_good(tmp_path)))
    assert diagnosis.findings == []


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.make.__name__)
def test_found_and_mended(broken: Break, tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    files = broken.make(tmp_path)
    _, diagnosis = check_dataset(str(page))
    finding = find(diagnosis, broken.kind)
    assert finding.severity == broken.severity
    assert [finding.kind for finding in diagnosis.errors] == ([broken.kind] if broken.severity == "error" else [])
    shown = [str(tmp_path / file) for file in finding.files]
    assert shown == [str(file) for file in files[:5]]
    assert finding.count >= len(files)
    if not broken.is_mended:
        return
    paste(page, finding)
    _, mended = check_dataset(str(page))
    assert mended.errors == []
    assert broken.kind not in [finding.kind for finding in mended.findings]
    assert sum(mended.checked.values()) > 0


def test_what_the_mended_values_mean(tmp_path: Path) -> None:
    """A fix does not only silence: the pixels of each class are those of the good set."""
    good, mended = tmp_path / "good", tmp_path / "mended"
    _, expected = check_dataset(str(draw_good(good)))
    for broken in BREAKS:
        if broken.make.__name__ not in ("off_by_one", "off_by_one_below", "grey_rgb_masks", "turned_image"):
            continue
        page = draw_good(mended)
        broken.make(mended)
        if broken.make.__name__ == "off_by_one_below":
            continue
        paste(page, find(check_dataset(str(page))[1], broken.kind))
        assert check_dataset(str(page))[1].class_pixels == expected.class_pixels, broken.make.__name__
