"""The demo as its user runs it: quiet, quick, good; and again, where it has nothing left to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run_demo(out: Path) -> list[str]:
    """The lines that stay; in a terminal the others are one line that moves."""
    done = subprocess.run(
        [sys.executable, "-m", "batchseg", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=700,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    moving = re.compile(
        r"starting the|looked at|segmented \d|scored \d|epoch \d+/\d+ |.* start, or wait for another job"
    )
    return [line for line in done.stdout.splitlines() if not moving.match(line)]


def test_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    lines = run_demo(out)
    assert len(lines) <= 35
    scores = json.loads((out / "scores.json").read_text())
    # A nearest-colour classifier stays under 0.5 on this set: tests/datasets/test_drawn.py.
    assert scores["miou"] >= 0.85
    assert scores["split"] == "test"
    assert len(list((out / "segmented" / "masks").iterdir())) == 40
    assert len(list((out / "segmented" / "overlays").iterdir())) == 40
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 900
    assert str(out / "contact_sheet.png") in "\n".join(lines)

    again = "\n".join(run_demo(out))
    assert "is finished already" in again
    assert "(40 done)" in again
