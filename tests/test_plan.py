"""What `plan` says: the work by reason, a measured sample, and estimates that follow from it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadly import make_deadly_decoder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchseg import storage
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.listing import ListOptions
from batchseg.options import SegmentOptions
from batchseg.plan import (
    JobPlan,
    RemoteCounts,
    estimate_bytes,
    estimate_memory,
    estimate_requests,
    plan_job,
    show_plan,
)
from batchseg.plan_sample import SampleCost
from batchseg.quality import InferenceOptions
from batchseg.segment import segment_images
from batchseg.sizing import StreamPlan

COST = SampleCost(
    images=10, failures={}, left_out=(), fetch_seconds=0.005, decode_seconds=0.015, model_seconds=0.1,
    render_seconds=0.012, write_seconds=0.008, is_remote=False, input_bytes=1000.0, file_bytes=200.0, row_bytes=300.0,
    stage_memory_bytes=10**8, model_memory_bytes=10**9,
)  # fmt: skip
PLAN = JobPlan("/in", "/out", {"new": 990, "failed before": 10, "done": 5}, StreamPlan(1, 1.0, 0.0, 2, 0.5), 2.0, COST)
FULL = SegmentOptions(rle=True, inference=InferenceOptions(score_map=True))


def draw(path: Path, number: int, text: str = "") -> None:
    info = PngInfo()
    info.add_text("comment", text)
    noise = np.random.default_rng(number).integers(0, 255, (40 + number, 50, 3), np.uint8)
    Image.fromarray(noise).save(path, pnginfo=info)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, and before them one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        draw(folder / f"{number}.png", number)
    (folder / "+bad.jpg").write_text("no picture")
    return folder


def list_files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_plan_is_measured_and_writes_nothing(
    photos: Path, bundle: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", list_files(tmp_path)
    plan = plan_job(str(photos), str(bundle), str(out), options=FULL)
    assert list_files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["photos"]
    assert plan.reasons == {"new": 6, "changed": 0, "failed before": 0, "done": 0}
    cost = plan.cost
    assert cost is not None
    assert (cost.images, cost.failures, cost.left_out) == (6, {"decode": 1}, ())
    steps = [cost.fetch_seconds, cost.decode_seconds, cost.model_seconds, cost.render_seconds, cost.write_seconds]
    assert min(steps) > 0
    # The first call takes seconds, and the first image of this sample is a bad one.
    assert cost.model_seconds < 0.3
    assert cost.input_bytes == pytest.approx(np.mean([path.stat().st_size for path in photos.iterdir()]))
    assert 5e7 < cost.stage_memory_bytes < cost.model_memory_bytes
    show_plan(Console(), plan, FULL, price_per_hour=3.0)
    printed = capsys.readouterr().out
    for word in ("failed before", "measured on 6 images, of which some failed: 1 decode", "one model actor", "cost"):
        assert word in printed

    # What was planned is what comes out: masks, overlays and score maps, and rows with all of them and run lengths.
    segment_images(str(photos), str(bundle), str(out), options=FULL)
    pictures = [path for folder in ("masks", "overlays", "scores") for path in (out / folder).rglob("*.png")]
    assert len(pictures) == 15
    assert cost.file_bytes * 6 == sum(path.stat().st_size for path in pictures)
    part = next((out / "rows" / "status=ok").iterdir())
    assert cost.row_bytes * 6 == pytest.approx(part.stat().st_size, rel=0.05)


@pytest.mark.slow
def test_reasons_after_a_run(
    photos: Path, bundle: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    segment_images(str(photos), str(bundle), out)
    before = list_files(tmp_path)
    assert plan_job(str(photos), str(bundle), out).reasons == {"new": 0, "changed": 0, "failed before": 1, "done": 5}
    anew = plan_job(str(photos), str(bundle), out, options=SegmentOptions(overwrite=True, overlays="jpg"))
    assert (anew.reasons["new"], anew.reasons["done"]) == (6, 0)
    assert list_files(tmp_path) == before
    (photos / "+bad.jpg").unlink()
    (photos / "4.png").unlink()
    plan = plan_job(str(photos), str(bundle), out, options=SegmentOptions(prune=True))
    assert (plan.cost, plan.gone) == (None, 2)
    show_plan(Console(), plan, SegmentOptions(prune=True), None)
    assert "2 rows of images that INPUT holds no more are dropped" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with other parameters"):
        plan_job(str(photos), str(bundle), out, options=SegmentOptions(overlays="none"))
    with pytest.raises(UserError, match=r"--include '\*\.tif' leaves none of the 4 images"):
        plan_job(str(photos), str(bundle), out, options=SegmentOptions(listing=ListOptions(include=("*.tif",))))


def test_an_image_that_kills_its_decoder_is_left_out(
    photos: Path, bundle: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(photos / "2.png", 2, "poison")
    plan = plan_job(str(photos), str(bundle), str(tmp_path / "out"), decode=make_deadly_decoder())
    assert plan.cost is not None
    assert (plan.cost.images, plan.cost.failures, plan.cost.left_out) == (5, {"decode": 1}, ("2.png",))
    assert plan.todo == 6
    show_plan(Console(), plan, SegmentOptions(), None)
    assert "left out, because decoding kills its process: 2.png" in capsys.readouterr().out


def test_nothing_but_bad_images(
    bundle: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.jpg").write_text("no picture")
    plan = plan_job(str(tmp_path / "photos"), str(bundle), str(tmp_path / "out"))
    show_plan(Console(), plan, SegmentOptions(), None)
    assert "no image of the sample could be segmented" in capsys.readouterr().out


def test_rows_of_parquet_count_their_own_bytes(photos: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    data = [path.read_bytes() for path in sorted(photos.iterdir())]
    pq.write_table(pa.table({"image": data}), tmp_path / "a.parquet")
    plan = plan_job(str(tmp_path / "a.parquet"), str(bundle), str(tmp_path / "out"))
    assert plan.cost is not None
    assert estimate_bytes(plan)["bytes in"] == pytest.approx(sum(map(len, data)))


def test_nothing_of_a_plan_goes_to_s3(
    photos: Path,
    bundle: Path,
    ray_session: None,
    s3_bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in photos.iterdir():
        storage.write_atomic(f"{s3_bucket}/in/{path.name}", path.read_bytes())
    plan = plan_job(str(photos), str(bundle), f"{s3_bucket}/out")
    assert plan.cost is not None
    assert plan.cost.is_remote
    assert min(plan.cost.write_seconds, plan.cost.file_bytes, plan.cost.row_bytes) > 0
    assert storage.list_names(f"{s3_bucket}/out") == []
    assert plan.remote == RemoteCounts()
    show_plan(Console(), plan, SegmentOptions(), None)
    printed = capsys.readouterr().out
    assert "nothing sent to S3" in printed
    assert "PUT requests" in printed


def test_on_cpus_model_and_stages_share_the_cores() -> None:
    assert PLAN.todo == 1000
    # 40 ms of stages and 2 x 100 ms of threads, on 2 cores.
    assert PLAN.seconds - 20 == pytest.approx(1000 * (0.04 + 0.2) / 2)


def test_on_gpus_the_slower_decides() -> None:
    gpus = replace(PLAN, stream=StreamPlan(4, 0.0, 1.0, 2, 0.5), cpus=16.0)
    assert gpus.seconds - 20 == pytest.approx(1000 * 0.1 / 4)
    assert replace(gpus, cpus=1.0).seconds - 20 == pytest.approx(1000 * 0.04)


def test_bytes_and_memory() -> None:
    assert estimate_bytes(PLAN) == {"bytes in": 1e6, "bytes out, files": 2e5, "bytes out, rows": 3e5}
    # One actor holds one of two CPUs; beside it two tasks of half a CPU.
    assert estimate_memory(PLAN)["together at most (1 x actor + 2 x task)"] == 1.2e9
    gpus = replace(PLAN, stream=StreamPlan(4, 0.0, 1.0, 2, 0.5), cpus=16.0)
    assert estimate_memory(gpus)["together at most (4 x actor + 32 x task)"] == 4e9 + 3.2e9


def test_requests() -> None:
    options = SegmentOptions(overlays="none")
    assert estimate_requests(PLAN, options) == {}
    listed = replace(PLAN, remote=RemoteCounts(todo=1000, listed=4005))
    assert estimate_requests(listed, options) == {"GET and HEAD requests": 2000, "LIST requests": 5}
    named = replace(PLAN, remote=RemoteCounts(todo=1000, listed=4005, named=4005))
    assert estimate_requests(named, options) == {"GET and HEAD requests": 6005, "LIST requests": 0}
    # 140 s: 5 parts, 63 blocks, 28 renewals and 280 looks at the lease; the 7 parts of before are read three times.
    remote = replace(PLAN, out="s3://b/out", remote=RemoteCounts(parts=7))
    reads = 2 * (63 + 5 + 28 + 280) + 3 * (3 * 7 + 5)
    found = estimate_requests(remote, options)
    assert found == {"GET and HEAD requests": reads, "LIST requests": 3, "PUT requests": 1000 + 5 + 28 + 5}
    more = SegmentOptions(inference=InferenceOptions(score_map=True))
    assert estimate_requests(remote, more)["PUT requests"] == found["PUT requests"] + 2000
    assert estimate_requests(remote, replace(more, write=("parquet",)))["PUT requests"] == 5 + 28 + 5
    assert estimate_requests(remote, replace(options, batch_size=1))["GET and HEAD requests"] == reads + 2 * (500 - 63)
