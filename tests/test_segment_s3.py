"""Input, bundle and output on a real S3 server, through a proxy that spoils a tenth of its answers."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from batchseg import storage
from batchseg.datasets.drawn import draw_scene
from batchseg.digest import digest_output
from batchseg.verify import verify_output

FAULTS = ("slow_down", "reset", "half_body", "after_reset")


def spoil(share: float) -> Callable[[str, str], str | None]:
    """A share of all requests, the same ones in each run as far as threads allow."""
    chance, lock = random.Random(0), threading.Lock()

    def fault(method: str, path: str) -> str | None:
        with lock:
            return chance.choice(FAULTS) if chance.random() < share else None

    return fault


def upload(folder: str, count: int) -> None:
    for number in range(count):
        scene, _ = draw_scene(np.random.default_rng(number % 6), (120, 160))
        data = cv2.imencode(".png", cv2.resize(scene, (80, 60))[..., ::-1])[1].tobytes()
        name = f"süb #{number % 3}/a%20 {number:03d}.png"
        storage.write_atomic(storage.join(folder, name), data[: len(data) // 2] if number == 7 else data)


def copy_bundle(bundle: Path, target: str) -> str:
    for name in ("model.keras", "bundle.json"):
        storage.write_atomic(storage.join(target, name), (bundle / name).read_bytes())
    return target


def segment(source: str, bundle: str, out: str) -> "subprocess.Popen[str]":
    """In a process of its own, so that its Ray and its clients see the environment of the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "batchseg", "segment", source, "--model", bundle, "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "RAY_ADDRESS": "local"},
    )  # fmt: skip


@pytest.mark.slow
def test_nothing_is_lost_over_a_bad_line(bundle: Path, s3_bucket: str, s3_proxy: Any) -> None:
    upload(f"{s3_bucket}/in", 60)
    model = copy_bundle(bundle, f"{s3_bucket}/bundle")
    quiet = segment(f"{s3_bucket}/in", model, f"{s3_bucket}/quiet")
    printed, _ = quiet.communicate(timeout=280)
    assert quiet.returncode == 3, printed

    s3_proxy.fault = spoil(0.1)
    before = len(s3_proxy.requests)
    spoiled = segment(f"{s3_bucket}/in", model, f"{s3_bucket}/spoiled")
    printed, _ = spoiled.communicate(timeout=280)
    s3_proxy.fault = lambda method, path: None
    assert spoiled.returncode == 3, printed
    assert len(s3_proxy.requests) - before > 200, "it went through the proxy"
    for name in ("quiet", "spoiled"):
        found = verify_output(f"{s3_bucket}/{name}")
        assert (found.ok, found.failed, found.pending, found.findings) == (59, 1, 0, [])
    assert digest_output(f"{s3_bucket}/spoiled") == digest_output(f"{s3_bucket}/quiet")

    again = segment(f"{s3_bucket}/in", model, f"{s3_bucket}/quiet")
    printed, _ = again.communicate(timeout=280)
    assert "59 done" in printed
    assert again.returncode == 3, printed
