"""What lets a run go on: the order of samples within an epoch, its progress as plain data, when it ends early."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from batchseg.bundle import read_card
from batchseg.config import AugmentConfig
from batchseg.datasets import open_dataset
from batchseg.feed import MemoryBudget, SampleCache, Shard, TrainFeed
from batchseg.geometry import Geometry
from batchseg.metrics import ConfusionMatrix
from batchseg.train_loop import describe_val
from batchseg.train_task import Progress, is_stalled


def test_an_epoch_goes_on_from_a_step(drawn_data: Path) -> None:
    dataset = open_dataset(str(drawn_data))
    geometry = Geometry((64, 64), "resize", 32)
    cache = SampleCache(dataset.samples("train"), dataset.classes, geometry, MemoryBudget(0), fits_masks=True)
    feed = TrainFeed(cache, Shard(0, 1), 8, 0, AugmentConfig(), (64, 64), threads=2)
    whole, rest = list(feed.iterate_epoch(3)), list(feed.iterate_epoch(3, first_step=4))
    assert (len(whole), len(rest)) == (6, 2)
    for (images, masks), (others, their_masks) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(images, others)
        assert np.array_equal(masks, their_masks)


def test_progress_survives_json() -> None:
    progress = Progress([{"epoch": 1, "val_miou": None}], [0.5, 0.25], 3.5)
    assert Progress.from_json(json.loads(json.dumps({**progress.to_json(), "scores": None}))) == progress


@pytest.mark.parametrize(
    ("epochs", "steps", "said"),
    [
        (0, 0, "from the start"),
        (0, 2, "after 2 steps of epoch 1"),
        (3, 0, "after epoch 3"),
        (3, 2, "after epoch 3 and 2 steps of epoch 4"),
    ],
)
def test_progress_is_said(epochs: int, steps: int, said: str) -> None:
    assert Progress([{}] * epochs, [0.5] * steps).describe() == said


@pytest.mark.parametrize(
    ("scores", "stop_after", "stalled"),
    [
        ([0.1, 0.5, 0.4, 0.5], 2, True),
        ([0.1, 0.5, 0.4, 0.6], 2, False),
        ([0.5, None, 0.4, None, 0.3], 2, True),
        ([0.5, None, 0.4, None], 2, False),
        ([0.5, 0.4, 0.3], 0, False),
        ([], 1, False),
    ],
)
def test_a_run_stalls_without_a_better_score(scores: list[float | None], stop_after: int, stalled: bool) -> None:
    assert is_stalled([{"val_miou": score} for score in scores], stop_after) is stalled


def test_a_class_that_val_does_not_hold_has_no_score() -> None:
    """Though it was predicted."""
    confusion = ConfusionMatrix(np.array([[6, 0, 2], [1, 3, 0], [0, 0, 0]]))
    row = describe_val(confusion, ["road", "sky", "boat"])
    assert row["val_iou/boat"] is None
    assert row["val_iou/road"] == pytest.approx(6 / 9)
    assert row["val_miou"] == pytest.approx((6 / 9 + 3 / 4) / 2)


@pytest.mark.slow
def test_out_on_s3_and_more_epochs(tiny_overrides: dict[str, str], s3_bucket: str) -> None:
    """As commands, each with a Ray of its own that knows the server. Checkpoints within epochs, val in every other."""
    from batchseg import storage

    job = {
        **tiny_overrides,
        "out": f"{s3_bucket}/run",
        "cluster.workers": "1",
        "training.checkpoint_steps": "2",
        "training.val_every": "2",
    }
    for epochs in ("2", "3"):
        options = [word for name, value in {**job, "training.epochs": epochs}.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "batchseg", "train", *options, "--address", "local"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{s3_bucket}/run/bundle" in done.stdout
    lines = storage.read_text(f"{s3_bucket}/run/metrics.csv").splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2", "3"]
    assert read_card(f"{s3_bucket}/run/bundle").scores["epoch"] in (2, 3)
