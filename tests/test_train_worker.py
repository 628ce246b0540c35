"""One training worker by itself, without Ray: what it checkpoints, and when it draws."""

import itertools
import re
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train

from batchseg.config import load_config
from batchseg.datasets import open_dataset
from batchseg.errors import UserError
from batchseg.feed import Shard
from batchseg.train_task import Progress, TrainTask, list_variables, write_checkpoint
from batchseg.train_worker import Worker


def make_worker(overrides: dict[str, str], **knobs: str) -> Worker:
    """Of one, with a board that nobody reads."""
    config = load_config(None, {**overrides, **{f"training.{name}": value for name, value in knobs.items()}})
    dataset = open_dataset(config.data)
    board = SimpleNamespace(put=SimpleNamespace(remote=lambda **values: None))
    samples = (dataset.samples("train"), dataset.samples("val"))
    task = TrainTask(config, dataset.classes, *samples, None, 1, board, dataset.fingerprint())
    return Worker(task, Shard(0, 1))


@pytest.mark.parametrize("poisoned", ["model", "average", "optimizer"])
def test_what_is_no_number_is_never_checkpointed(
    tiny_overrides: dict[str, str], monkeypatch: pytest.MonkeyPatch, poisoned: str
) -> None:
    """The loss of every step is finite; the gradients of the fourth were not. Checkpoints after two, four, six."""
    worker = make_worker(tiny_overrides, checkpoint_steps="2")
    reported: list[int] = []
    monkeypatch.setattr(worker, "_report", lambda progress, scores: reported.append(len(progress.losses)))

    def step(images: Any, masks: Any) -> Any:
        if len(progress.losses) == 3:
            variable = getattr(worker, poisoned).variables[-1]
            variable.assign(np.full(variable.shape, np.inf, np.float32))
        return SimpleNamespace(numpy=lambda: 0.5)

    progress = Progress([])
    worker.step = step
    with pytest.raises(UserError, match=r"a weight or its gradient is not a number in epoch 2, step 4\.") as caught:
        worker.train_epoch(1, progress)
    assert reported == [2]
    named = re.search(r"files of that batch: (.*)\. The last checkpoint is kept", str(caught.value))
    assert named is not None
    batch = worker.feed.batch_indices(1, 3)
    assert named[1].split(", ") == [worker.task.train[index].name for index in batch]


@pytest.mark.parametrize(("looks", "kept"), [(1, [10]), (2, [20]), (3, [24]), (9, [])])
def test_a_notice_makes_one_checkpoint(
    tiny_overrides: dict[str, str], monkeypatch: pytest.MonkeyPatch, looks: int, kept: list[int]
) -> None:
    """looks: how many it takes to find the notice; they are after steps 10, 20 and the last of 24."""
    worker = make_worker(tiny_overrides, batch_size="2")
    reported: list[int] = []
    answers = iter([None] * (looks - 1) + ["a notice"])
    monkeypatch.setattr(worker, "_report", lambda progress, scores: reported.append(len(progress.losses)))
    monkeypatch.setattr(worker, "say", lambda text: None)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(answers))

    def step(images: Any, masks: Any) -> Any:
        time.sleep(0.01)
        return SimpleNamespace(numpy=lambda: 0.5)

    worker.step = step
    progress, started = Progress([]), time.monotonic()
    worker.train_epoch(0, progress)
    assert (reported, len(progress.losses)) == (kept, 24)
    assert 0.24 < progress.seconds <= time.monotonic() - started, "counted once"
    worker.train_epoch(0, progress)
    assert len(progress.losses) == 24, "a whole epoch has no steps left"


@pytest.mark.parametrize(
    ("picture_every", "val_every", "pictured"),
    [
        (5, 1, [5, 10, 15, 20, 22]),
        (5, 4, [8, 16, 22]),
        (4, 4, [4, 8, 12, 16, 20, 22]),
        (1, 3, [3, 6, 9, 12, 15, 18, 21, 22]),
        (0, 1, []),
    ],
)
def test_a_picture_is_drawn_in_the_first_scored_epoch_after_so_many(
    picture_every: int, val_every: int, pictured: list[int]
) -> None:
    training = load_config(
        None,
        {
            "training.epochs": "22",
            "training.picture_every": str(picture_every),
            "training.val_every": str(val_every),
        },
    ).training
    worker = Worker.__new__(Worker)
    worker.shard, worker.task = Shard(0, 1), SimpleNamespace(config=SimpleNamespace(training=training))
    assert [epoch + 1 for epoch in range(22) if worker._is_pictured(epoch)] == pictured
    assert all(worker.is_scored(epoch - 1) for epoch in pictured)


@pytest.mark.parametrize(
    ("before", "now"),
    [("float32", "mixed_float16"), ("mixed_float16", "mixed_bfloat16"), ("mixed_float16", "mixed_float16")],
)
def test_a_checkpoint_is_taken_up_in_another_precision(
    tiny_overrides: dict[str, str], tmp_path: Path, before: str, now: str
) -> None:
    """Weights, average and optimizer; the scale of the loss where both have one."""
    overrides = {**tiny_overrides, "out": str(tmp_path / "out")}
    first, second = make_worker(overrides, precision=before), make_worker(overrides, precision=now, seed="7")
    groups = list_variables(first.model, first.optimizer, first.average)
    for number, variable in enumerate(itertools.chain.from_iterable(groups.values())):
        variable.assign(np.full(variable.shape, number, np.asarray(variable).dtype))
    write_checkpoint(str(tmp_path), groups, {**Progress([], [1.0]).to_json(), "fingerprint": first.task.fingerprint})
    second.resume(SimpleNamespace(as_directory=lambda: nullcontext(str(tmp_path))))
    taken = list_variables(second.model, second.optimizer, second.average)
    same = ["weights", "average", "optimizer", *(["loss_scale"] if before == now else [])]
    for name in same:
        assert groups[name], name
        for old, new in zip(groups[name], taken[name], strict=True):
            np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
