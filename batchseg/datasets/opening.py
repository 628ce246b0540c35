"""Finds out what DATA is, and reads its splits."""

from typing import Any

import numpy as np

from batchseg import storage
from batchseg.classes import ClassTable, parse_classes
from batchseg.config import read_yaml, suggest_name
from batchseg.datasets import pairs, voc
from batchseg.datasets.sample import Dataset, Sample
from batchseg.errors import UserError

FORMATS = ("pairs", "voc")
DATASET_FILE = "dataset.yaml"

_KEYS = ["format", "root", "splits", "classes", "ignore"]
_EXAMPLE = """format: pairs
root: .
splits:
  train: {images: train/images, masks: train/masks}
  val:   {images: val/images, masks: val/masks}
classes: [background, thing]   # names in id order
ignore: []                     # raw mask values that count nowhere; 255 always does"""


def open_dataset(location: str) -> Dataset:
    """Opens DATA: a dataset.yaml, a folder that holds one, or a PASCAL VOC folder.

    Raises UserError when it is missing, empty, of no known format, or has a split without masks.
    """
    location = storage.to_absolute(location)
    kind = storage.file_type(location)
    if kind == "missing":
        raise UserError(f"data {location} does not exist")
    if kind == "file":
        return _open_yaml(location, "the file given")
    page = storage.join(location, DATASET_FILE)
    if storage.exists(page):
        return _open_yaml(page, f"the folder holds a {DATASET_FILE}")
    if voc.is_voc(location):
        return _open_voc(location, location, {}, "the folder holds JPEGImages and ImageSets/Segmentation")
    if next(iter(storage.list_files(location)), None) is None:
        raise UserError(f"data {location} is empty")
    raise UserError(
        f"data {location} is of no known format: it holds neither a {DATASET_FILE} nor the folders of PASCAL VOC. "
        f"For a folder of images and one of masks, write {page}:\n{_EXAMPLE}"
    )


def _open_yaml(page: str, reason: str) -> Dataset:
    values = read_yaml(page, "data")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"data {page}: unknown key {key!r}; {suggest_name(str(key), _KEYS)}")
    declared = values.get("format", "pairs")
    if declared not in FORMATS:
        raise UserError(f"data {page}: format is {declared!r}; allowed are {', '.join(FORMATS)}")
    root = str(values.get("root", "."))
    if not storage.is_remote(root) and not root.startswith("/"):
        folder = storage.folder_of(page)
        root = f"{folder}/{root}" if storage.is_remote(folder) else storage.to_absolute(f"{folder}/{root}")
    if not storage.exists(root):
        raise UserError(f"data {page}: root {root} does not exist")
    reason = f"{reason}; format: {declared}"
    if declared == "voc":
        return _open_voc(page, root, values, reason)
    if "classes" not in values or "splits" not in values:
        raise UserError(f"data {page} must name its classes and splits, for example:\n{_EXAMPLE}")
    return Dataset(page, "pairs", reason, _read_classes(page, values), _read_splits(page, root, values["splits"]))


def _open_voc(location: str, root: str, values: dict[str, Any], reason: str) -> Dataset:
    classes = _read_classes(location, {"classes": voc.default_classes(), **values})
    names = values.get("splits") or voc.list_splits(root)
    if not isinstance(names, list):
        raise UserError(
            f"data {location}: splits is {names!r}; for voc a list of names is allowed, such as [train, val]"
        )
    splits = {str(split): voc.read_split(root, str(split)) for split in names}
    return Dataset(location, "voc", reason, classes, splits)


def _read_classes(page: str, values: dict[str, Any]) -> ClassTable:
    try:
        return parse_classes(values["classes"], values.get("ignore") or ())
    except UserError as error:
        raise UserError(f"data {page}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"data {page}: classes or ignore cannot be read: {error}") from None


def _read_splits(page: str, root: str, declared: Any) -> dict[str, list[Sample]]:
    if not isinstance(declared, dict) or not declared:
        raise UserError(f"data {page}: splits is {declared!r}; it must name at least one split")
    splits: dict[str, list[Sample]] = {}
    derived: dict[str, dict[str, Any]] = {}
    for name, entry in declared.items():
        if isinstance(entry, str):
            splits[name] = pairs.read_list(root, entry)
        elif isinstance(entry, dict) and set(entry) == {"images", "masks"}:
            splits[name] = pairs.pair_folders(root, str(entry["images"]), str(entry["masks"]))
        elif isinstance(entry, dict) and "from" in entry and set(entry) <= {"from", "fraction", "seed"}:
            derived[name] = entry
        else:
            raise UserError(
                f"data {page}: split {name} is {entry!r}; allowed are {{images:, masks:}}, "
                f"a list file, or {{from:, fraction:, seed:}}"
            )
    for name, entry in derived.items():
        _split_off(page, splits, name, entry)
    return splits


def _split_off(page: str, splits: dict[str, list[Sample]], name: str, entry: dict[str, Any]) -> None:
    """Moves a seeded share of one split into a new one."""
    source, fraction, seed = entry["from"], entry.get("fraction", 0.1), entry.get("seed", 0)
    is_valid = isinstance(source, str) and source in splits and isinstance(seed, int) and seed >= 0
    if not is_valid or not isinstance(fraction, float) or not 0 < fraction < 1:
        raise UserError(
            f"data {page}: split {name} is {entry!r}; `from` must be one of {', '.join(splits)}, "
            f"`fraction` a share between 0 and 1, `seed` a whole number"
        )
    whole = sorted(splits[source], key=lambda sample: sample.name)
    order = np.random.default_rng(seed).permutation(len(whole))
    taken = set(order[: max(1, round(fraction * len(whole)))].tolist())
    splits[name] = [sample for index, sample in enumerate(whole) if index in taken]
    splits[source] = [sample for index, sample in enumerate(whole) if index not in taken]
