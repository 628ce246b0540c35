"""Two workers are one worker: the same batches, losses and gradients, whatever is ignored where."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray

from batchseg import board as boards
from batchseg.config import TrainConfig, TrainingConfig, load_config
from batchseg.datasets import open_dataset
from batchseg.errors import UserError
from batchseg.losses import build_losses
from batchseg.optimizers import WeightAverage, build_optimizer
from batchseg.runtime import load_tensorflow
from batchseg.train import find_trainer
from batchseg.train_step import StepOptions, make_step
from batchseg.train_task import TrainTask

# AdamW turns rounding into steps of full size where a gradient is all but 0; a low rate keeps that small.
EXACT = {"augment.enabled": "false", "model.dropout": "0", "training.learning_rate": "5e-5"}


def run_parts(
    masks: np.ndarray, options: StepOptions, *, norm: bool = False, **knobs: Any
) -> tuple[list[float], np.ndarray]:
    """Losses and last weights of a few steps of a small model, without batch norm unless asked for."""
    tf = load_tensorflow()
    keras.utils.set_random_seed(0)
    config = TrainingConfig(losses={"cross_entropy": 1.0, "dice": 0.5, "hard_pixels": 0.5}, warmup_epochs=0, **knobs)
    keras.config.set_dtype_policy(config.precision)
    inputs = keras.Input((None, None, 3), dtype="uint8")
    features = keras.layers.Conv2D(4, 3, padding="same")(keras.layers.Rescaling(1 / 255, dtype="float32")(inputs))
    features = keras.layers.BatchNormalization()(features) if norm else features
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1, dtype="float32")(features))
    keras.config.set_dtype_policy("float32")
    optimizer = build_optimizer(config, 5, model.trainable_variables)
    step = make_step(
        tf,
        tf.distribute.get_strategy(),
        model,
        optimizer,
        build_losses(config, [1.0, 2.0, 3.0]),
        WeightAverage(model, 3),
        options,
    )
    images = np.random.default_rng(0).integers(0, 256, (*masks.shape, 3), np.uint8)
    losses = [float(step(images, masks)) for _ in range(3)]
    return losses, np.asarray(model.weights[0])


def test_parts_of_a_batch_are_the_whole() -> None:
    """Accumulation, with other ignored pixels in each part, and a part that is ignored as a whole."""
    masks = np.random.default_rng(1).integers(0, 3, (5, 8, 8)).astype(np.uint8)
    masks[0, :6] = 255
    masks[4] = 255
    losses, weights = run_parts(masks, StepOptions())
    assert losses[2] < losses[0]
    for accumulation in (2, 5):
        found, others = run_parts(masks, StepOptions(accumulation))
        assert found == pytest.approx(losses, rel=1e-5)
        np.testing.assert_allclose(others, weights, rtol=1e-4, atol=1e-6)


PRECISIONS = ["float32", "mixed_bfloat16", "mixed_float16"]


def assert_precision_learns(precision: str, *, xla: bool) -> None:
    masks = np.random.default_rng(1).integers(0, 3, (4, 8, 8)).astype(np.uint8)
    plain, _ = run_parts(masks, StepOptions(), norm=True)
    losses, weights = run_parts(masks, StepOptions(xla=xla), norm=True, precision=precision)
    assert losses == pytest.approx(plain, rel=1e-4 if precision == "float32" else 0.03)
    assert losses[-1] < losses[0]
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns(precision: str) -> None:
    assert_precision_learns(precision, xla=False)


@pytest.mark.slow
def test_every_precision_learns_with_xla() -> None:
    """In a process of its own: on one machine XLA has not come back from compiling for a CPU, and nothing stops it."""
    lines = [f"assert_precision_learns({precision!r}, xla=True)" for precision in PRECISIONS]
    source = "; ".join(["from test_train_step import assert_precision_learns", *lines])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("XLA does not come back from compiling for this CPU")
    assert done.returncode == 0, done.stderr


def test_xla_is_refused_where_auto_has_become_two_workers() -> None:
    class TwoWorkers:
        num_replicas_in_sync = 2

    with pytest.raises(UserError, match=r"training\.xla is true, but there are 2 workers; .* cluster\.workers to 1"):
        make_step(None, TwoWorkers(), None, None, [], WeightAverage(keras.Sequential(), 0), StepOptions(xla=True))


def record_losses(loop_config: dict[str, Any]) -> None:
    """The loop of a worker that only steps; rank 0 says what it saw."""
    import ray.train

    from batchseg.feed import Shard
    from batchseg.train_worker import Worker

    task = loop_config["task"]
    context = ray.train.get_context()
    worker = Worker(task, Shard(context.get_world_rank(), context.get_world_size()))
    losses: list[float] = []
    for epoch in range(task.config.training.epochs):
        for images, masks in islice(worker.feed.iterate_epoch(epoch), loop_config["steps"] - len(losses)):
            losses.append(float(worker.step(images, masks).numpy()))
    if worker.shard.rank == 0:
        ray.get(task.board.put.remote(losses=losses))
    ray.train.report({"done": 1})


def run_steps(config: TrainConfig, steps: int, workers: int, storage_path: Path) -> list[float]:
    from ray.train import RunConfig, ScalingConfig

    dataset = open_dataset(config.data)
    board = boards.start_board()
    task = TrainTask(
        config, dataset.classes, dataset.samples("train"), dataset.samples("val"), None, 1, board, dataset.fingerprint()
    )
    find_trainer()(
        record_losses,
        train_loop_config={"task": task, "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.6}),
        run_config=RunConfig(storage_path=str(storage_path), name=f"workers{workers}"),
    ).fit()
    return ray.get(board.read.remote())["losses"]


def assert_losses_agree(
    config: TrainConfig, steps: int, worker_counts: list[int], tmp_path: Path, first: float = 1e-3, later: float = 1e-3
) -> None:
    """first: how far the loss before any update may be apart, as a share of it; later: those after."""
    alone, *others = [run_steps(config, steps, workers, tmp_path) for workers in worker_counts]
    assert len(alone) == steps
    assert alone[-1] < alone[0], "it learns"
    for losses in others:
        print([abs(a - b) / a for a, b in zip(alone, losses, strict=True)])
        assert losses[0] == pytest.approx(alone[0], rel=first)
        assert losses == pytest.approx(alone, rel=later)


@pytest.mark.slow
def test_any_workers_are_one(tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path) -> None:
    """Batches of seven, which neither two nor three workers share evenly."""
    knobs = {**EXACT, "training.batch_size": "7", "training.learning_rate": "2e-5", "out": str(tmp_path / "out")}
    assert_losses_agree(load_config(None, {**tiny_overrides, **knobs}), 10, [1, 2, 3], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "first", "later"),
    [
        # Numbers are rounded by up to 2 ** -8 of themselves in bfloat16, 2 ** -11 in float16, in either run. Means over
        # batch and pixels seldom are that far apart (2e-5 and 3e-4 were measured). Each update adds to it: what is all
        # but 0 in a gradient gets its sign by rounding, and AdamW makes a whole step of it (0.3 % after ten).
        ("mixed_bfloat16", 2**-7, 2**-7),
        ("mixed_float16", 2**-10, 2**-7),
    ],
)
def test_two_workers_are_one_in_half_precision(
    precision: str, first: float, later: float, tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path
) -> None:
    knobs = {**EXACT, "training.batch_size": "7", "training.precision": precision, "out": str(tmp_path / "out")}
    assert_losses_agree(load_config(None, {**tiny_overrides, **knobs}), 10, [1, 2], tmp_path, first, later)


@pytest.mark.slow
@pytest.mark.data
def test_any_workers_are_one_on_camvid(shared_data: Path, ray_session: None, tmp_path: Path) -> None:
    """CamVid with its void pixels, which differ from image to image."""
    import yaml

    page = yaml.safe_load((Path(__file__).parents[1] / "jobs" / "data" / "camvid.yaml").read_text())
    (tmp_path / "camvid.yaml").write_text(yaml.safe_dump({**page, "root": str(shared_data / "camvid")}))
    config = load_config(
        None,
        {
            "data": str(tmp_path / "camvid.yaml"),
            "out": str(tmp_path / "out"),
            "model.encoder": "mobilenet",
            "model.encoder_width": "0.25",
            "model.encoder_weights": str(shared_data / "weights" / "mobilenet_v1_0.25_224_notop.weights.h5"),
            "model.decoder_channels": "64,48,32,16",
            "model.dropout": "0",
            "input.size": "360,480",
            "training.batch_size": "8",
            "augment.enabled": "false",
        },
    )
    assert_losses_agree(config, 20, [1, 2, 3], tmp_path)
