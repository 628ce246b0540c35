"""What a training worker is told, and what a checkpoint holds. No Keras, so that the driver can read both."""

import json
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

STATE_FILE = "state.json"
ARRAYS_FILE = "arrays.npz"


@dataclass(frozen=True)
class TrainTask:
    """All that a worker is told. `class_weights` is None where classes weigh the same."""

    config: TrainConfig
    classes: ClassTable
    train: list[Sample]
    val: list[Sample]
    class_weights: list[float] | None
    threads: int
    board: Any
    fingerprint: str

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """state: at least the keys of `to_json`."""
        return cls(state["history"], state["losses"], state["seconds"])


def choose_class_weights(
    wanted: str | tuple[float, ...], counts: list[int], class_names: Sequence[str]
) -> list[float] | None:
    """`training.class_weights` as numbers; None where classes weigh the same. counts: pixels of the train split.

    Median frequency balancing (Eigen and Fergus 2015), median share / share, or its square root, which rare classes
    bear better; at most 10, and 1 for classes that do not occur. Raises UserError for a wrong number of them.
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
    return [min(10.0, (median / count) ** power) if count > 0 else 1.0 for count in counts]


def list_variables(model: Any, optimizer: Any, average: Any) -> dict[str, list[Any]]:
    """What a checkpoint holds: weights, their average, random layers' state, the optimizer; each in its own order."""
    weights = list(model.weights)
    known = {id(variable) for variable in weights}
    randomness = [variable for variable in model.variables if id(variable) not in known]
    return {
        "weights": weights,
        "average": list(average.variables),
        "randomness": randomness,
        "optimizer": list(optimizer.variables),
    }


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
    groups: dict[str, list[Any]] = {"weights": [], "average": [], "randomness": [], "optimizer": []}
    with np.load(os.path.join(folder, ARRAYS_FILE), allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            groups[name.partition(".")[0]].append(arrays[name])
    return state, groups


def is_stalled(history: Sequence[dict[str, Any]], stop_after: int) -> bool:
    """True if the last `stop_after` scorings of val were no better than one before them; 0 never is."""
    scored = [row["val_miou"] for row in history if row["val_miou"] is not None]
    return 0 < stop_after < len(scored) and max(scored[-stop_after:]) <= max(scored[:-stop_after])
