"""What a training worker is told, and what a checkpoint holds. No Keras, so that the driver can read both."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from batchseg import geometry as geo
from batchseg.classes import ClassTable
from batchseg.config import TrainConfig
from batchseg.datasets import Sample
from batchseg.errors import UserError

STRIDE = 32
"""Of every encoder here: the sides of a model input are multiples of it."""

UNSCORED = -1.0
"""What stands for the mIoU in Ray's list, of a checkpoint without a score on val: it is never among the best."""

_LARGEST_WEIGHT = 10.0

STATE_FILE = "state.json"
ARRAYS_FILE = "arrays.npz"


@dataclass(frozen=True)
class TrainTask:
    """All that a worker is told. `class_weights` is None where classes weigh the same.

    lease: the token of the one on `out`, which must be ours whenever a checkpoint is written; None where none is.
    """

    config: TrainConfig
    classes: ClassTable
    train: list[Sample]
    val: list[Sample]
    class_weights: list[float] | None
    threads: int
    board: Any
    fingerprint: str
    lease: str | None = None

    @property
    def geometry(self) -> geo.Geometry:
        wanted = self.config.input
        return geo.Geometry(wanted.size, wanted.fit, STRIDE, wanted.tile_overlap)

    @property
    def crop_hw(self) -> tuple[int, int]:
        """Size of what a step sees: the crop rounded up to the stride, or the whole canvas (of `fit: tile` a tile)."""
        canvas_hw, crop = self.geometry.canvas_hw, self.config.augment.crop
        if crop is None or not self.config.augment.enabled:
            return canvas_hw
        return -(-crop[0] // STRIDE) * STRIDE, -(-crop[1] // STRIDE) * STRIDE


@dataclass
class Progress:
    """How far a run is. history: a row for each finished epoch. losses: of the steps of the next one that are done,
    in `seconds`.
    """

    history: list[dict[str, Any]]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def describe(self) -> str:
        """Where a run goes on, for a person."""
        done = []
        if self.history:
            done.append(f"epoch {len(self.history)}")
        if self.losses:
            done.append(f"{len(self.losses)} steps of epoch {len(self.history) + 1}")
        return f"after {' and '.join(done)}" if done else "from the start"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """state: at least the keys of `to_json`."""
        return cls(state["history"], state["losses"], state["seconds"])


def choose_class_weights(
    wanted: str | tuple[float, ...], counts: list[int], class_names: Sequence[str], *, is_sample: bool = False
) -> list[float] | None:
    """`training.class_weights` as numbers; None where classes weigh the same.

    counts: pixels of the train split; is_sample: of a part of it, so that a class without any is a rare one.
    Median frequency balancing, median share / share, or its square root, which rare classes bear better; at most 10,
    and 1 for classes that do not occur. Shares are those of the whole split; Eigen and Fergus (2015), whose idea it is,
    take a class's share among the images that hold it. Raises UserError for a wrong number of weights.
    """
    if isinstance(wanted, tuple):
        if len(wanted) != len(class_names):
            raise UserError(
                f"training.class_weights has {len(wanted)} numbers, the data has {len(class_names)} classes: "
                f"{', '.join(class_names)}"
            )
        return list(wanted)
    if wanted == "none":
        return None
    power = 1.0 if wanted == "median_frequency" else 0.5
    present = sorted(count for count in counts if count > 0)
    median = present[len(present) // 2] if present else 1
    unseen = _LARGEST_WEIGHT if is_sample else 1.0
    return [min(_LARGEST_WEIGHT, (median / count) ** power) if count > 0 else unseen for count in counts]


def describe_checkpoint(progress: Progress) -> dict[str, float]:
    """What Ray Train is told with a checkpoint, which says how far it is.

    Ray keeps the three of the highest rank: the best on val and the last two. The n-th best so far has rank n; what
    comes after it lies between n - 1 and n, the later the higher.
    """
    count, best, is_best = 0, -math.inf, False
    for row in progress.history:
        miou = row["val_miou"]
        is_best = miou is not None and miou > best
        best, count = (miou, count + 1) if is_best else (best, count)
    steps = len(progress.losses)
    done = len(progress.history) + steps / (steps + 1)
    is_end = steps == 0 and bool(progress.history)
    miou = progress.history[-1]["val_miou"] if is_end else None
    return {
        "epoch": len(progress.history) + (steps > 0),
        "val_miou": UNSCORED if miou is None else miou,
        "rank": float(count) if is_best and is_end else count - 1 + done / (done + 1),
    }


def list_variables(model: Any, optimizer: Any, average: Any) -> dict[str, list[Any]]:
    """What a checkpoint holds: weights, their average, random layers' state, the optimizer; each in its own order.

    The scale of a loss in float16 is a group of its own: other precisions take up the rest.
    """
    weights = list(model.weights)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    own = optimizer.variables[: len(optimizer.variables) - len(inner.variables)]
    known = {id(variable) for variable in weights}
    randomness = [variable for variable in model.variables if id(variable) not in known]
    return {
        "weights": weights,
        "average": list(average.variables),
        "randomness": randomness,
        "optimizer": list(inner.variables),
        "loss_scale": list(own),
    }


def are_finite(groups: dict[str, list[Any]]) -> bool:
    """False if one number of the weights, their average or the optimizer is infinite or none at all."""
    looked_at = (variable for name in ("weights", "average", "optimizer") for variable in groups[name])
    return all(np.isfinite(np.asarray(variable)).all() for variable in looked_at)


def write_checkpoint(folder: str, groups: dict[str, list[Any]], state: dict[str, Any]) -> None:
    """The groups of `list_variables`, and plain state. No pickle."""
    arrays = {
        f"{group}.{index:05d}": np.asarray(variable)
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }
    np.savez(os.path.join(folder, ARRAYS_FILE), allow_pickle=False, **arrays)
    with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as stream:
        json.dump(state, stream)


def read_checkpoint(folder: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(state, arrays by group) of `write_checkpoint`."""
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as stream:
        state = json.load(stream)
    names = ("weights", "average", "randomness", "optimizer", "loss_scale")
    groups: dict[str, list[Any]] = {name: [] for name in names}
    with np.load(os.path.join(folder, ARRAYS_FILE), allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            groups[name.partition(".")[0]].append(arrays[name])
    return state, groups


def is_stalled(history: Sequence[dict[str, Any]], stop_after: int) -> bool:
    """True if the last `stop_after` scorings of val were no better than one before them; 0 never is."""
    scored = [row["val_miou"] for row in history if row["val_miou"] is not None]
    return 0 < stop_after < len(scored) and max(scored[-stop_after:]) <= max(scored[:-stop_after])
