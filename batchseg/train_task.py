"""What a training worker is told, and what a checkpoint holds. No Keras, so that the driver can read both."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchseg import geometry as geo
from batchseg.classes import ClassTable
from batchseg.config import TrainConfig
from batchseg.datasets import Sample

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


def class_weights_from_counts(counts: list[int]) -> list[float]:
    """sqrt(median share / share) per class, at most 10, for the classes that occur; 1 for the others.

    Median frequency balancing (Eigen and Fergus 2015) with a square root, which rare classes bear better.
    """
    present = sorted(count for count in counts if count > 0)
    median = present[len(present) // 2] if present else 1
    return [min(10.0, math.sqrt(median / count)) if count > 0 else 1.0 for count in counts]


def list_variables(model: Any, optimizer: Any) -> dict[str, list[Any]]:
    """What a checkpoint holds: weights, the state of random layers, the optimizer; each in its own order."""
    weights = list(model.weights)
    known = {id(variable) for variable in weights}
    randomness = [variable for variable in model.variables if id(variable) not in known]
    return {"weights": weights, "randomness": randomness, "optimizer": list(optimizer.variables)}


def write_checkpoint(folder: str, model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Arrays of model and optimizer, and plain state. No pickle."""
    arrays = {
        f"{group}.{index:05d}": np.asarray(variable)
        for group, variables in list_variables(model, optimizer).items()
        for index, variable in enumerate(variables)
    }
    np.savez(os.path.join(folder, ARRAYS_FILE), allow_pickle=False, **arrays)
    with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as stream:
        json.dump(state, stream)


def read_checkpoint(folder: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(state, arrays by group) of `write_checkpoint`."""
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as stream:
        state = json.load(stream)
    groups: dict[str, list[Any]] = {"weights": [], "randomness": [], "optimizer": []}
    with np.load(os.path.join(folder, ARRAYS_FILE), allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            groups[name.partition(".")[0]].append(arrays[name])
    return state, groups
