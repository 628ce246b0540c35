"""The JSON of COCO: read once, its keys and ids checked, each message naming file and id."""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batchseg import storage
from batchseg.errors import UserError

Record = Mapping[str, Any]

_LISTS = ("images", "annotations", "categories")
_ID_KEYS = ("id", "image_id", "category_id")


@dataclass(frozen=True)
class CocoJson:
    """images: by id, in the order of the file. categories: id -> name, in the order of the ids."""

    location: str
    images: dict[Any, Record]
    annotations: list[Record]
    categories: dict[int, str]

    def image_name(self, image: Record, folder: str) -> str:
        """Path relative to the data set. Raises UserError for one that leaves it."""
        file_name = str(image["file_name"])
        try:
            return storage.join("" if folder == "." else folder, file_name)
        except UserError as error:
            raise UserError(f"data {self.location}: image id {to_text(image['id'])}: {error}") from None

    def image_size(self, image: Record) -> tuple[int, int]:
        """Height and width. Raises UserError where the JSON has none."""
        height, width = image.get("height"), image.get("width")
        if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
            raise UserError(
                f"data {self.location}: image id {to_text(image['id'])} has height {height!r} and width {width!r}; "
                f"whole numbers of pixels are needed"
            )
        return height, width


@contextmanager
def pause_collector() -> Iterator[None]:
    """Python's garbage collector would walk again and again through millions of new lists that all stay."""
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_collecting:
            gc.enable()


def read_coco_json(location: str, *, is_panoptic: bool) -> CocoJson:
    """Parses and checks a JSON of COCO, of instances or panoptic.

    Raises UserError naming file and line, key or id: what is no JSON, missing keys, ids given twice, unknown ids.
    """
    data = _parse(location)
    images = _index(location, "images", data["images"], ("id", "file_name"))
    categories = _index(location, "categories", data["categories"], ("id", "name"))
    wrong = [key for key in categories if not isinstance(key, int)]
    if wrong:
        raise UserError(f"data {location}: a category has the id {wrong[0]!r}; a whole number is allowed")
    names = [str(category["name"]) for category in categories.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"data {location}: two categories are named {twice[0]!r}")
    keys = ("image_id", "file_name", "segments_info") if is_panoptic else ("image_id", "category_id")
    _check_annotations(location, data["annotations"], keys, images, categories)
    by_id = {key: str(categories[key]["name"]) for key in sorted(categories)}
    return CocoJson(location, images, data["annotations"], by_id)


def to_text(number: Any) -> str:
    """An id as messages show it."""
    return str(number) if isinstance(number, int) else repr(number)


def _parse(location: str) -> dict[str, Any]:
    try:
        data = json.loads(storage.read_bytes(location))
    except OSError as error:
        raise UserError(f"data {location} cannot be read: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"data {location} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"data {location} is no COCO JSON: it holds a {type(data).__name__}, not a mapping")
    for key in _LISTS:
        if not isinstance(data.get(key), list):
            raise UserError(
                f"data {location} is no COCO JSON: it must hold lists {', '.join(_LISTS)}, `{key}` is missing"
            )
    return data


def _index(location: str, key: str, records: list[Any], needed: tuple[str, ...]) -> dict[Any, Record]:
    found: dict[Any, Record] = {}
    for index, record in enumerate(records):
        _check_keys(location, key, index, record, needed)
        if record["id"] in found:
            raise UserError(f"data {location}: the id {to_text(record['id'])} is given twice in `{key}`")
        found[record["id"]] = record
    return found


def _check_annotations(
    location: str,
    annotations: list[Any],
    needed: tuple[str, ...],
    images: Mapping[Any, Record],
    categories: Mapping[Any, Record],
) -> None:
    ids: set[Any] = set()
    for index, record in enumerate(annotations):
        if not _is_sound(record, needed, images, categories, ids):
            _refuse(location, index, record, needed, images, categories)
        if "id" in record:
            ids.add(record["id"])


def _is_sound(
    record: Any, needed: tuple[str, ...], images: Mapping[Any, Record], categories: Mapping[Any, Record], ids: set[Any]
) -> bool:
    """The quick look that nearly all pass."""
    try:
        is_known = record["image_id"] in images and ("category_id" not in needed or record["category_id"] in categories)
        return is_known and record.get("id") not in ids and all(key in record for key in needed)
    except (KeyError, TypeError, AttributeError):
        return False


def _refuse(
    location: str,
    index: int,
    record: Any,
    needed: tuple[str, ...],
    images: Mapping[Any, Record],
    categories: Mapping[Any, Record],
) -> None:
    """Raises UserError saying what is wrong with an annotation."""
    _check_keys(location, "annotations", index, record, needed)
    name = f"annotation id {to_text(record['id'])}" if "id" in record else f"entry {index} of `annotations`"
    if record["image_id"] not in images:
        raise UserError(f"data {location}: {name} has image_id {record['image_id']!r}, which no image has")
    if "category_id" in needed and record["category_id"] not in categories:
        raise UserError(f"data {location}: {name} has category_id {record['category_id']!r}, which no category has")
    raise UserError(f"data {location}: the id {to_text(record['id'])} is given twice in `annotations`")


def _check_keys(location: str, key: str, index: int, record: Any, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not isinstance(record, dict) or name not in record]
    if missing:
        where = f"entry {index} of `{key}`"
        if isinstance(record, dict) and "id" in record:
            where += f" (id {to_text(record['id'])})"
        raise UserError(f"data {location}: {where} has no `{missing[0]}`")
    for name in _ID_KEYS:
        if name in record and not isinstance(record[name], (int, str)):
            raise UserError(f"data {location}: entry {index} of `{key}` has {name} {record[name]!r}; give a number")
