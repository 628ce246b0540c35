"""What `plan` says: the work by reason, a measured sample, and estimates that follow from it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from batchseg.cluster import StreamPlan
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.listing import ListOptions
from batchseg.options import SegmentOptions
from batchseg.plan import JobPlan, SampleCost, estimate_bytes, estimate_requests, plan_job, show_plan
from batchseg.segment import segment_images

COST = SampleCost(
    images=10, failed=0, fit_seconds=0.02, model_seconds=0.1, write_seconds=0.02, input_bytes=1000.0, mask_bytes=200.0,
    overlay_bytes=800.0, peak_memory_bytes=10**9,
)  # fmt: skip
PLAN = JobPlan("/in", "/out", {"new": 990, "failed before": 10, "done": 5}, StreamPlan(1, 1.0, 0.0, 2, 0.5), 2.0, COST)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((40 + number, 50, 3), 90, np.uint8))
    (folder / "bad.jpg").write_text("no picture")
    return folder


def test_a_plan_is_measured_and_writes_nothing(
    photos: Path, bundle: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan = plan_job(str(photos), str(bundle), str(out))
    assert plan.reasons == {"new": 6, "changed": 0, "failed before": 0, "done": 0}
    assert plan.cost is not None
    assert (plan.cost.images, plan.cost.failed) == (6, 1)
    assert min(plan.cost.fit_seconds, plan.cost.model_seconds, plan.cost.write_seconds, plan.cost.mask_bytes) > 0
    assert plan.cost.input_bytes == pytest.approx(np.mean([path.stat().st_size for path in photos.iterdir()]))
    assert not out.exists()
    show_plan(Console(), plan, SegmentOptions(), price_per_hour=3.0)
    printed = capsys.readouterr().out
    for word in ("failed before", "measured on 6 images, of which 1 failed", "peak memory of a model process", "cost"):
        assert word in printed

    segment_images(str(photos), str(bundle), str(out))
    again = plan_job(str(photos), str(bundle), str(out))
    assert again.reasons == {"new": 0, "changed": 0, "failed before": 1, "done": 5}
    (photos / "bad.jpg").unlink()
    assert plan_job(str(photos), str(bundle), str(out)).cost is None
    with pytest.raises(UserError, match="made with other parameters"):
        plan_job(str(photos), str(bundle), str(out), options=SegmentOptions(overlays="none"))
    with pytest.raises(UserError, match=r"--include '\*\.tif' leaves none of the 5 images"):
        plan_job(str(photos), str(bundle), str(out), options=SegmentOptions(listing=ListOptions(include=("*.tif",))))


def test_on_cpus_model_and_stages_share_the_cores() -> None:
    assert PLAN.todo == 1000
    # 40 ms of stages and 2 x 100 ms of threads, on 2 cores.
    assert PLAN.seconds - 20 == pytest.approx(1000 * (0.04 + 0.2) / 2)


def test_on_gpus_the_slower_decides() -> None:
    gpus = replace(PLAN, stream=StreamPlan(4, 0.0, 1.0, 2, 0.5), cpus=16.0)
    assert gpus.seconds - 20 == pytest.approx(1000 * 0.1 / 4)
    assert replace(gpus, cpus=1.0).seconds - 20 == pytest.approx(1000 * 0.04)


def test_bytes_and_requests() -> None:
    both, files = SegmentOptions(), SegmentOptions(write=("png",), overlays="none")
    assert estimate_bytes(PLAN, both)["bytes in"] == 1e6
    assert estimate_bytes(PLAN, both)["bytes out"] == 1000 * (2 * 1000 + 300)
    assert estimate_requests(PLAN, both) == {}
    remote = replace(PLAN, root="s3://b/in", out="s3://b/out")
    assert estimate_requests(remote, both)["GET and HEAD requests"] == 2000
    assert 2000 < estimate_requests(remote, both)["PUT requests"] < 2020
    assert 1000 < estimate_requests(remote, files)["PUT requests"] < 1020
