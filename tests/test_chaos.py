"""The script that kills drivers, workers and nodes, on few images. `benchmarks/README.md` has its figures on many."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_is_killed_every_image_ends_with_one_row(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(bundle), "--images", "300", "--kills", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in done.stdout.splitlines() if "digest" in line]
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in lines] == ["driver", "worker", "node"], done.stdout
    assert all(line.endswith("0 findings, 0 pending, 0 other statuses, digest equal: ok") for line in lines), (
        done.stdout
    )
