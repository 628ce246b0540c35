"""Whatever breaks, every image ends with one row: poison, kills, a second job, hopeless runs."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray
from deadly import make_deadly_decoder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchseg import stream
from batchseg.datasets.drawn import draw_scene
from batchseg.digest import digest_output
from batchseg.errors import StoppedError, UserError
from batchseg.images import ImageHeader, RgbArray, decode_image
from batchseg.lease import Lease
from batchseg.listing import ListOptions
from batchseg.options import SegmentOptions
from batchseg.segment import segment_images
from batchseg.verify import verify_output

PLAIN = SegmentOptions(write=("png",), overlays="none")


def draw_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        scene, _ = draw_scene(np.random.default_rng(number % 8), (120, 160))
        cv2.imwrite(str(folder / f"{number:03d}.png"), cv2.resize(scene, (80, 60))[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("photos") / "images", 120)


def assert_whole(out: Path) -> None:
    found = verify_output(str(out))
    assert found.is_clean, found.findings
    assert found.is_complete


@pytest.mark.slow
def test_a_poisoned_image_costs_itself_only(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source = draw_images(tmp_path / "images", 200)
    info = PngInfo()
    info.add_text("comment", "poison")
    Image.new("RGB", (80, 60)).save(source / "100.png", pnginfo=info)
    result = segment_images(
        str(source), str(bundle), str(tmp_path / "out"), options=PLAIN, decode=make_deadly_decoder()
    )
    assert (result.ok, result.failed) == (199, 1)
    (row,) = [row for row in read_rows(tmp_path / "out") if row["error_kind"]]
    assert (row["image_id"], row["error_kind"]) == ("100.png", "crash")
    assert row["error"] == "decoding killed its process 3 times (signal SIGKILL)"
    assert_whole(tmp_path / "out")


def read_rows(out: Path) -> list[dict]:
    import pyarrow.dataset

    return pyarrow.dataset.dataset(out / "rows", partitioning="hive").to_table().to_pylist()


def start_segment(source: Path, bundle: Path, out: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "batchseg", "segment", str(source), "--model", str(bundle), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )


def wait_for_masks(out: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("masks/*"))) < count and process.poll() is None:
        assert time.monotonic() < deadline, "no masks"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_started_again_at_once(photos: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    """A second job is refused, a worker and then the driver are killed, and the end is that of a quiet run."""
    out = tmp_path / "out"
    process = start_segment(photos, bundle, out)
    wait_for_masks(out, 20, process)
    with pytest.raises(UserError, match=rf"OUT .* is in use by another job \(.*pid {process.pid}"):
        segment_images(str(photos), str(bundle), str(out))
    os.kill(next(pid for pid in find_children(process.pid) if is_at_work(pid)), signal.SIGKILL)
    wait_for_masks(out, 50, process)
    process.kill()
    process.communicate()
    result = segment_images(str(photos), str(bundle), str(out))
    assert (result.ok, result.failed) == (120, 0)
    assert_whole(out)
    segment_images(str(photos), str(bundle), str(tmp_path / "quiet"))
    assert digest_output(str(out)) == digest_output(str(tmp_path / "quiet"))


def find_children(ancestor: int) -> list[int]:
    """All that a process has started, directly or not."""
    folder = Path(f"/proc/{ancestor}/task/{ancestor}/children")
    found = [int(pid) for pid in folder.read_text().split()] if folder.exists() else []
    return found + [pid for child in found for pid in find_children(child)]


def is_at_work(pid: int) -> bool:
    """A stage or the model, with something in hand."""
    title = Path(f"/proc/{pid}/cmdline").read_bytes()
    return title.startswith(b"ray::") and b"MapBatches" in title


@pytest.mark.slow
def test_changed_images_after_a_kill_are_the_new_ones(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source, out = draw_images(tmp_path / "images", 60), tmp_path / "out"
    segment_images(str(source), str(bundle), str(out))
    before = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    for number in range(40):
        scene, _ = draw_scene(np.random.default_rng(100 + number), (120, 160))
        cv2.imwrite(str(source / f"{number:03d}.png"), scene[..., ::-1])
    process = start_segment(source, bundle, out)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        now = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
        if sum(now[name] != before.get(name) for name in now) >= 10:
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert segment_images(str(source), str(bundle), str(out)).ok == 60
    assert_whole(out)
    segment_images(str(source), str(bundle), str(tmp_path / "anew"))
    assert digest_output(str(out)) == digest_output(str(tmp_path / "anew"))


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_goes_on(photos: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_segment(photos, bundle, out)
    wait_for_masks(out, 20, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "interrupted; the same command goes on from here" in printed
    assert "Traceback" not in printed
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert not (out / "lease.json").exists()
    found = verify_output(str(out))
    assert {finding.kind for finding in found.findings} <= {"stray"}, "pictures may wait for their rows"
    result = segment_images(str(photos), str(bundle), str(out))
    assert result.ok == 120
    assert result.reasons["done"] == found.ok, "what had a row was not done again"
    assert_whole(out)


def wait_for_all_cpus() -> None:
    """Until no actor of a stream that has ended holds a CPU."""
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the actors of the stopped run live on"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_job_that_lost_its_lease_stops(photos: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def take_over() -> Callable[..., RgbArray]:
        place = str(out)

        def decode(data: bytes, header: ImageHeader, reduction: int = 1) -> RgbArray:
            # As another job on another machine would, which thinks that this one has ended.
            path = os.path.join(place, "lease.json")
            lease = json.loads(Path(path).read_text())
            Path(path).write_text(json.dumps({**lease, "token": "another"}))
            return decode_image(data, header, reduction)

        return decode

    gc.disable()  # by accident it may free the actors, too
    try:
        with pytest.raises(StoppedError, match="another job has taken OUT") as told:
            segment_images(str(photos), str(bundle), str(out), options=PLAIN, decode=take_over())
        wait_for_all_cpus()
    finally:
        gc.enable()
    assert told.tb is not None, "held until here, with the frames of the run"
    assert not list(out.glob("rows/*/*")), "it has written rows without the lease"
    assert json.loads((out / "run.json").read_text())["state"] == "running", "run.json is the other job's now"


@pytest.mark.slow
def test_a_hopeless_run_stops(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for number in range(260):
        (source / f"{number:03d}.png").write_text("no picture")
    with pytest.raises(StoppedError, match=r"of the first \d+ images failed \(100%\); --max-failed-share allows 90%"):
        segment_images(str(source), str(bundle), str(tmp_path / "out"), options=PLAIN)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_what_has_failed_before_stops_no_run(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    """Else an OUT with a few hundred files that are broken for good could never be completed again."""
    source = draw_images(tmp_path / "images", 30)
    for number in range(220):
        (source / f"broken {number:03d}.png").write_text("no picture")
    patient = SegmentOptions(write=("png",), overlays="none", max_failed_share=1.0)
    segment_images(str(source), str(bundle), str(tmp_path / "out"), options=patient)
    again = segment_images(str(source), str(bundle), str(tmp_path / "out"), options=PLAIN)
    assert (again.ok, again.failed, again.reasons["failed before"]) == (30, 220, 220)
    assert_whole(tmp_path / "out")


@pytest.mark.slow
def test_a_full_disk_stops_and_the_same_line_goes_on(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=160k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        source = draw_images(tmp_path / "images", 100)
        with pytest.raises(StoppedError, match="no space left") as caught:
            segment_images(str(source), str(bundle), str(disk / "out"), options=PLAIN)
        assert caught.value.exit_code == 4
        subprocess.run([*mount, "remount,size=64m", str(disk)], check=True)
        assert segment_images(str(source), str(bundle), str(disk / "out"), options=PLAIN).ok == 100
        assert_whole(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_images_of_another_world_stop_the_run(bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    black = cv2.imencode(".png", np.zeros((60, 80, 3), np.uint8))[1].tobytes()
    for number in range(260):
        (source / f"{number:03d}.png").write_bytes(black)
    with pytest.raises(StoppedError, match="Is this the right bundle for these images"):
        segment_images(str(source), str(bundle), str(tmp_path / "out"), options=PLAIN)
    relaxed = SegmentOptions(write=("png",), overlays="none", sanity_check=False)
    assert segment_images(str(source), str(bundle), str(tmp_path / "out"), options=relaxed).ok == 260


@pytest.mark.slow
def test_rows_are_committed_while_the_stream_runs(
    photos: Path, bundle: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_images(str(photos), str(bundle), str(tmp_path / "calm"), options=PLAIN)
    assert len(list(tmp_path.glob("calm/rows/*/*"))) == 1, "120 rows of a few seconds are one part"
    monkeypatch.setattr(stream, "COMMIT_SECONDS", 0.0)
    segment_images(str(photos), str(bundle), str(tmp_path / "hasty"), options=PLAIN)
    assert len(list(tmp_path.glob("hasty/rows/*/*"))) > 3
    assert digest_output(str(tmp_path / "hasty")) == digest_output(str(tmp_path / "calm"))


@pytest.mark.slow
def test_limit_prune_and_overwrite(photos: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source, out = draw_images(tmp_path / "images", 6), tmp_path / "out"
    few = SegmentOptions(write=("png",), overlays="none", listing=ListOptions(limit=2))
    assert segment_images(str(source), str(bundle), str(out), options=few).ok == 2
    assert segment_images(str(source), str(bundle), str(out), options=PLAIN).reasons["done"] == 2
    (source / "001.png").unlink()
    kept = segment_images(str(source), str(bundle), str(out), options=PLAIN)
    assert (kept.ok, kept.gone, kept.seconds) == (5, 1, 0)
    assert (out / "masks" / "001.png.png").exists()
    pruned = segment_images(
        str(source), str(bundle), str(out), options=SegmentOptions(write=("png",), overlays="none", prune=True)
    )
    assert (pruned.ok, pruned.gone, pruned.pruned) == (5, 0, 1)
    assert not (out / "masks" / "001.png.png").exists()
    assert_whole(out)
    (out / "mine.txt").write_text("a note")
    anew = SegmentOptions(overlays="jpg", overwrite=True)
    assert segment_images(str(source), str(bundle), str(out), options=anew).reasons["new"] == 5
    assert (out / "mine.txt").exists()
    assert_whole(out)
    with Lease.acquire(str(out), say=print), pytest.raises(UserError, match="is in use by another job"):
        segment_images(str(source), str(bundle), str(out), options=anew)
