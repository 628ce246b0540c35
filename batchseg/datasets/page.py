"""dataset.yaml as a typed page: read, checked, and written back out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from batchseg import storage
from batchseg.config import read_yaml, suggest_name
from batchseg.errors import UserError

DATASET_FILE = "dataset.yaml"
_LINE_WIDTH = 120

Format = Literal["pairs", "voc", "coco", "panoptic", "instance_masks"]
FORMATS: tuple[str, ...] = get_args(Format)

EXAMPLE = """format: pairs
root: .
splits:
  train: {images: train/images, masks: train/masks}
  val:   {images: val/images, masks: val/masks}
classes: [background, thing]   # names in id order
ignore: []                     # raw mask values that count nowhere; 255 always does, unless a class has it"""

_SPLIT_HELP = (
    "allowed are {images:, masks:}, a list file, {images:, annotations:}, {split:}, or "
    "{from:, fraction:, seed:, stratify:, group:}, {from:, match:}, {from:, list:}"
)
_SOURCE_KEYS = {"images", "masks", "annotations", "split", "list"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SplitEntry(_Strict):
    """Where the samples of a split come from: files of its own, or a part of another split (`from`)."""

    images: str | None = None
    masks: str | None = None
    annotations: str | None = None
    split: str | None = None
    list: str | None = None
    source: str | None = Field(None, alias="from")
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, strict=True)] | None = None
    stratify: Annotated[bool, Field(strict=True)] | None = None
    group: str | None = None
    match: str | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> "SplitEntry":
        given = {key for key, value in self if value is not None}
        if "source" not in given:
            allowed, is_whole = _SOURCE_KEYS, bool(given)
        else:
            allowed = {"source", "fraction", "seed", "stratify", "group"}
            if given & {"match", "list"}:
                allowed = {"source", "match"} if "match" in given else {"source", "list"}
            is_whole = True
        if not is_whole or given - allowed:
            raise ValueError(_SPLIT_HELP)
        return self


class ClassEntry(_Strict):
    """One class. values: raw mask values or `#rrggbb`. categories: of COCO, by name or id."""

    name: str
    color: str | None = None
    values: list[int | str] | None = None
    categories: list[str | int] | None = None


class DatasetPage(_Strict):
    """Every key of dataset.yaml.

    images, masks, annotations: patterns with {split} for all splits. exclude: patterns of image names. unpaired: what
    to do with images that have no mask.
    """

    format: Format = "pairs"
    root: str = "."
    images: str | None = None
    masks: str | None = None
    annotations: str | None = None
    splits: dict[str, str | SplitEntry] = Field(default_factory=dict)
    classes: list[str | ClassEntry] | None = None
    ignore: list[int | str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    unpaired: Literal["refuse", "skip"] = "refuse"
    resize_masks: Literal["refuse", "nearest"] = "refuse"
    mask_orientation: Literal["mask", "image"] = "mask"

    @model_validator(mode="before")
    @classmethod
    def _name_splits(cls, values: Any) -> Any:
        """`splits: [train, val]` means a split for each name, with nothing of its own."""
        if isinstance(values, dict) and isinstance(values.get("splits"), list):
            names = [str(name) for name in values["splits"]]
            return {**values, "splits": {name: {"split": name} for name in names}}
        return values

    def entry(self, split: str) -> SplitEntry:
        """What is declared of a split that is not a plain list file, with the patterns that hold for all filled in."""
        entry = self.splits[split]
        assert isinstance(entry, SplitEntry)
        folder = entry.split or split
        filled = {
            key: given.replace("{split}", folder)
            for key in ("images", "masks", "annotations")
            if (given := getattr(entry, key) or getattr(self, key)) is not None
        }
        return entry.model_copy(update=filled)

    def to_yaml(self) -> str:
        """The page that would be read as this one; keys at their defaults are left out, but for format and root."""
        values = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        names = {name: {"split": name} for name in values.get("splits", {})}
        if names and values["splits"] == names:
            values["splits"] = list(names)
        values = {"format": self.format, "root": self.root, **values}
        return write_keys(values)


def read_page(location: str) -> DatasetPage:
    """Reads a dataset.yaml. Its root is made absolute. Raises UserError naming page and key, and what is allowed."""
    page = parse_page(read_yaml(location, "data"), location)
    root = page.root
    if not storage.is_remote(root) and not root.startswith("/"):
        folder = storage.folder_of(location)
        root = f"{folder}/{root}" if storage.is_remote(folder) else storage.to_absolute(f"{folder}/{root}")
        root = root.removesuffix("/.")
    if not storage.exists(root):
        raise UserError(f"data {location}: root {root} does not exist")
    return page.model_copy(update={"root": root})


def parse_page(values: Mapping[str, Any], source: str) -> DatasetPage:
    """Plain data -> page. `source` names it in errors."""
    if "splits" in values and (not isinstance(values["splits"], (dict, list)) or not values["splits"]):
        raise UserError(f"data {source}: splits is {values['splits']!r}; it must name at least one split")
    if "classes" in values and not isinstance(values["classes"], list):
        given = values["classes"]
        raise UserError(f"data {source}: classes: {given!r} is given; a list of names in id order is allowed")
    try:
        return DatasetPage.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"data {source}: {_describe(error, values)}") from None


def _describe(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first problem, by the key that holds it."""
    problem = error.errors()[0]
    key, *inner = [part for part in problem["loc"] if isinstance(part, (str, int))]
    given = values.get(str(key))
    if problem["type"] == "extra_forbidden" and not inner:
        return f"unknown key {str(key)!r}; {suggest_name(str(key), list(DatasetPage.model_fields))}"
    if key == "format":
        return f"format is {given!r}; allowed are {', '.join(FORMATS)}"
    if key == "splits" and isinstance(given, dict) and inner:
        entry = given.get(inner[0])
        return f"split {inner[0]} is {entry!r}; {_describe_split(entry)}"
    if key == "classes" and isinstance(given, list) and inner:
        return f"classes: entry {inner[0]} is {given[int(inner[0])]!r}; allowed are name, color, values, categories"
    where = ".".join(str(part) for part in (key, *inner[:1]))
    return f"{where} is {given!r}: {problem['msg'].removeprefix('Value error, ')}"


def _describe_split(entry: Any) -> str:
    if isinstance(entry, dict) and "from" in entry and set(entry) <= {"from", "fraction", "seed", "stratify", "group"}:
        return "`from` names a split, `fraction` is a share between 0 and 1, `seed` a whole number, `group` a pattern"
    return _SPLIT_HELP


def write_keys(values: Mapping[str, Any]) -> str:
    """Keys of a page as YAML: one line each, and a line for each entry of what is too long or holds others."""
    return "".join(_write_key(key, value) for key, value in values.items())


def _write_key(key: str, value: Any) -> str:
    """`key: value` in one line, or one line for each entry of a long list, or of what holds lists and mappings."""
    line = f"{_write_flow({key: value})[1:-1]}\n"
    nested = (dict, list)
    if isinstance(value, dict) and any(isinstance(entry, nested) for entry in value.values()):
        lines = [f"  {_write_flow({name: entry})[1:-1]}\n" for name, entry in value.items()]
        return f"{key}:\n" + "".join(lines)
    if isinstance(value, list) and (len(line) > _LINE_WIDTH or any(isinstance(entry, nested) for entry in value)):
        return f"{key}:\n" + "".join(f"  - {_write_flow(entry)}\n" for entry in value)
    return line


def _write_flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
