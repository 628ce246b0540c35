"""Every way to break a data set is found, with the right file, and the lines that check prints mend it when pasted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from broken_data import (
    BREAKS,
    SIZE_HW,
    Break,
    change_masks,
    draw_good,
    draw_mask,
    grey_rgb_masks,
    off_by_one,
    turned_image,
    write_pair,
)
from PIL import Image

from batchseg.datasets.sample import load_mask
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


@pytest.mark.parametrize("make", [off_by_one, grey_rgb_masks], ids=lambda make: make.__name__)
def test_a_fix_gives_the_pixels_back(make: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    """It does not only silence: each class holds what it held in the good set."""
    page = draw_good(tmp_path)
    good = check_dataset(str(page))[1].class_pixels
    make(tmp_path)
    broken = check_dataset(str(page))[1]
    assert broken.class_pixels != good
    paste(page, broken.errors[0])
    assert check_dataset(str(page))[1].class_pixels == good


def test_masks_of_a_turned_photo_are_turned(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    turned_image(tmp_path)
    paste(page, check_dataset(str(page))[1].errors[0])
    dataset, _ = check_dataset(str(page))
    sample = next(sample for sample in dataset.splits["train"] if "eve" in sample.name)
    ids = load_mask(sample, dataset.classes, SIZE_HW[::-1])
    # Orientation 6: the first row is shown as the last column.
    assert (ids[:, -1] == 2).all()
    assert (ids[:, 0] == np.asarray(Image.open(tmp_path / "train/masks/eve.png"))[-1]).all()


def test_crowds_alone_are_no_masks_of_0_and_255(tmp_path: Path) -> None:
    """In a set of two classes 255 is a border where other masks hold it beside a 1."""
    page = draw_good(tmp_path)
    page.write_text(page.read_text().replace("[ground, thing, sky]", "[ground, thing]"))
    change_masks(tmp_path, lambda mask: np.where(mask == 2, 0, mask).astype(np.uint8))
    write_pair(tmp_path, "train", "ada", 1, suffix=".jpg", mask=np.where(draw_mask(1) == 255, 255, 0).astype(np.uint8))
    _, diagnosis = check_dataset(str(page))
    assert [finding.kind for finding in diagnosis.findings] == ["single_class"]
