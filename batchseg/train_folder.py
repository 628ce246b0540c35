"""What lies under `out` of a training run: whether it is ours, finished, and made by the same config and data."""

import socket
from typing import Any

from batchseg import storage
from batchseg.bundle import CARD_FILE, BundleCard, read_card
from batchseg.checkpoint_list import has_checkpoints
from batchseg.config import DRAWN_DATA, RESOLVED_HEADER, TrainConfig, parse_config, read_yaml
from batchseg.datasets import Dataset
from batchseg.errors import UserError
from batchseg.model_knobs import ARCHITECTURES

CONFIG_FILE = "config.yaml"
SCORES_FILE = "scores.json"
BUNDLE_FOLDER = "bundle"
# What may differ when a run is taken up again: where it runs, how long it goes on, what it keeps and draws.
_MAY_CHANGE = (
    "cluster.",
    "out",
    "training.epochs",
    "training.cache_gb",
    "training.picture_every",
    "training.checkpoint_steps",
)
# These too while it is not finished, for they mend a run whose loss is no number; scores depend on them, so it is said.
_MAY_MEND = ("training.learning_rate", "training.clip_norm", "training.precision")


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
    # The scores come last; a bundle that somebody took away is made again.
    is_whole = all(
        storage.exists(storage.join(config.out, name)) for name in (SCORES_FILE, f"{BUNDLE_FOLDER}/{CARD_FILE}")
    )
    goes_on = config.training.epochs > before.training.epochs or not is_whole
    changes = _find_differences(before, config)
    differing = [
        f"{key} ({old!r} there, {new!r} now)"
        for key, (old, new) in changes.items()
        if not (goes_on and key in _MAY_MEND)
    ]
    if differing:
        raise UserError(
            f"out {config.out} was made with another config; differing: {', '.join(differing)}. "
            f"Give another --out, or delete that folder."
        )
    if config.training.epochs < before.training.epochs:
        raise UserError(
            f"out {config.out} was made for {before.training.epochs} epochs; {config.training.epochs} is fewer"
        )
    return None if goes_on else read_card(storage.join(config.out, BUNDLE_FOLDER))


def describe_changes(config: TrainConfig) -> str:
    """What a run that goes on does otherwise from here, for a person; empty where nothing differs that scores feel."""
    page = storage.join(config.out, CONFIG_FILE)
    if not storage.exists(page) or not has_checkpoints(config.out):
        return ""
    changes = _find_differences(parse_config(read_yaml(page), page), config)
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())


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


def _find_differences(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value now), of what matters."""
    old, new = _flatten_config(before), _flatten_config(now)
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


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


def check_out_is_seen(out: str) -> None:
    """In a worker, whose node may have come after the others were asked. Raises UserError when it has another `out`."""
    if not storage.exists(storage.join(out, CONFIG_FILE)):
        raise UserError(
            f"out {out} is not shared: node {socket.gethostname()} does not see what the driver wrote there. On a "
            f"cluster of several nodes it must be on shared storage or s3://."
        )
