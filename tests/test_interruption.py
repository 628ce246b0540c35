"""Killed workers and killed commands, for real: SIGKILL in the middle of training."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EPOCHS = 4


def start_training(overrides: dict[str, str], out: Path) -> subprocess.Popen[str]:
    options = [part for key, value in {**overrides, "out": str(out)}.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "batchseg", "train", *options, "--training.epochs", str(EPOCHS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


def read_epochs(out: Path) -> list[dict[str, str]]:
    page = out / "metrics.csv"
    return list(csv.DictReader(page.open())) if page.exists() else []


def find_descendants(ancestor: int, title: str) -> list[int]:
    """Processes under `ancestor` whose command line begins with `title`."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_under(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = parents.get(pid, 0)
        return pid == ancestor

    return [pid for pid in found if is_under(pid)]


def assert_whole(out: Path) -> None:
    assert [int(row["epoch"]) for row in read_epochs(out)] == list(range(1, EPOCHS + 1))
    best = max(float(row["val_miou"]) for row in read_epochs(out))
    assert json.loads((out / "scores.json").read_text())["miou"] == pytest.approx(best, abs=1e-5)
    assert (out / "bundle" / "bundle.json").exists()


def test_a_killed_worker_is_replaced(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_training(tiny_overrides, out)
    wait_for(lambda: len(read_epochs(out)) >= 2, process)
    workers = find_descendants(process.pid, "ray::RayTrainWorker")
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert len(re.findall(r"workers have started again, 2 now \(start 2\): after epoch [123]\n", printed)) == 1
    assert_whole(out)


def test_ctrl_c_exits_130_and_says_how_to_go_on(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    process = start_training({**tiny_overrides, "cluster.workers": "1"}, tmp_path / "out")
    wait_for(lambda: len(read_epochs(tmp_path / "out")) >= 1, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "interrupted; the same command goes on from here" in printed


def test_a_killed_command_goes_on(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    out, overrides = tmp_path / "out", {**tiny_overrides, "cluster.workers": "1"}
    process = start_training(overrides, out)
    wait_for(lambda: len(read_epochs(out)) >= 2, process)
    # The checkpoint of the epoch just reported may still be on its way; the one before is there.
    process.kill()
    process.communicate()
    before = read_epochs(out)
    again = start_training(overrides, out)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    assert "going on after epoch" in printed
    resumed_after = int(printed.split("going on after epoch ")[1].split(";")[0])
    assert 1 <= resumed_after <= len(before)
    best = max(float(row["val_miou"]) for row in before[:resumed_after])
    assert f"best val mIoU so far {best:.4f}" in printed
    assert read_epochs(out)[:resumed_after] == before[:resumed_after]
    assert_whole(out)
