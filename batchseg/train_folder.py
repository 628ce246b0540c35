"""What lies under `out` of a training run: whether it is ours, finished, and made by the same config and data."""

import json
from typing import Any

from batchseg import storage
from batchseg.bundle import CARD_FILE, BundleCard, read_card
from batchseg.config import DRAWN_DATA, RESOLVED_HEADER, TrainConfig, parse_config, read_yaml
from batchseg.datasets import Dataset
from batchseg.errors import UserError
from batchseg.model_knobs import ARCHITECTURES

CONFIG_FILE = "config.yaml"
SCORES_FILE = "scores.json"
CHECKPOINT_FOLDER = "checkpoints"
BUNDLE_FOLDER = "bundle"
_PROGRESS_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's own
# What may differ when a run is taken up again: where it runs, and how long it goes on.
_MAY_CHANGE = ("cluster.", "training.epochs", "out")


def check_out(config: TrainConfig) -> BundleCard | None:
    """The bundle of a finished run of this config, None if there is something to do.

    Raises UserError when `out` belongs to another config.
    """
    page = storage.join(config.out, CONFIG_FILE)
    if not storage.exists(page):
        if storage.file_type(config.out) == "folder" and storage.exists(storage.join(config.out, "run.json")):
            raise UserError(f"out {config.out} holds the output of `segment`; give training another folder")
        return None
    if not has_checkpoints(config.out):
        if not storage.read_text(page).startswith(RESOLVED_HEADER):
            raise UserError(f"out {config.out} holds a {CONFIG_FILE} that `train` did not write; give another --out")
        return None  # it stopped before its first checkpoint: nothing to mix up
    before = parse_config(read_yaml(page), page)
    differing = _list_differences(before, config)
    if differing:
        raise UserError(
            f"out {config.out} was made with another config; differing: {', '.join(differing)}. "
            f"Give another --out, or delete that folder."
        )
    if config.training.epochs < before.training.epochs:
        raise UserError(
            f"out {config.out} was made for {before.training.epochs} epochs; {config.training.epochs} is fewer"
        )
    # The scores come last; a bundle that somebody took away is made again.
    is_whole = all(
        storage.exists(storage.join(config.out, name)) for name in (SCORES_FILE, f"{BUNDLE_FOLDER}/{CARD_FILE}")
    )
    if config.training.epochs > before.training.epochs or not is_whole:
        return None
    return read_card(storage.join(config.out, BUNDLE_FOLDER))


def has_checkpoints(out: str) -> bool:
    """True if Ray Train knows of checkpoints there. Raises UserError when its list of them is damaged."""
    location = storage.join(out, CHECKPOINT_FOLDER, _PROGRESS_FILE)
    if not storage.exists(location):
        return False
    try:
        json.loads(storage.read_bytes(location))
    except ValueError as error:
        # Ray writes it in place, so a kill can cut it off; without it Ray would begin anew, without a word.
        raise UserError(
            f"{location}, Ray's list of checkpoints, is damaged: {error}. "
            f"To begin anew, delete {out}/{CHECKPOINT_FOLDER}."
        ) from None
    return True


def check_same_data(out: str, dataset: Dataset) -> None:
    """Raises UserError when the checkpoints in `out` come from other data. Before anything there is replaced."""
    page = storage.join(out, CONFIG_FILE)
    if not storage.exists(page) or not has_checkpoints(out):
        return
    header = storage.read_text(page).partition("\n")[0]
    if header.startswith(RESOLVED_HEADER) and header != RESOLVED_HEADER + dataset.fingerprint():
        raise UserError(
            f"out {out} was begun on other data: classes, splits or files of {dataset.location} have changed since. "
            f"Give another --out, or delete that folder."
        )


def _list_differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    old, new = _flatten_config(before), _flatten_config(now)
    return [f"{key} ({old[key]!r} there, {new[key]!r} now)" for key in old if old[key] != new[key]]


def _flatten_config(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value, without what may change in a run that is taken up again; paths made absolute."""
    flat: dict[str, Any] = {}
    for section, values in config.model_dump().items():
        entries = (
            {f"{section}.{key}": value for key, value in values.items()}
            if isinstance(values, dict)
            else {section: values}
        )
        flat |= {key: value for key, value in entries.items() if not key.startswith(_MAY_CHANGE)}
    words = {
        "data": (DRAWN_DATA,),
        "model.encoder_weights": ("imagenet", "none"),
        "model.architecture": ARCHITECTURES,
        "model.start_from": (None,),
    }
    for key, allowed in words.items():
        if flat[key] not in allowed:
            flat[key] = storage.to_absolute(flat[key])
    return flat
