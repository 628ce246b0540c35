"""Takes things out of an output folder: rows and pictures of images that are gone, or everything that is ours.

Only what our own rows name is deleted, and nothing that a symbolic link would move out of OUT.
The caller holds the lease.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from batchseg import ledger, storage
from batchseg.errors import UserError
from batchseg.ledger import DamagedPartError
from batchseg.row_index import group_by_part

_PICTURES = (("masks", ".png"), ("overlays", ".png"), ("overlays", ".jpg"), ("scores", ".png"))
_THREADS = 16
_LONGEST_NAME = 255  # bytes of one part of a path on a disk; those of S3 or in Parquet may be longer
_DIGEST_LETTERS = 16
# Not run.json, which must say whose folder this is until the next run has written its own, and not the lease.
_OWN_FILES = (ledger.CLASSES_FILE, ledger.MANIFEST_FILE, ledger.LOG_FILE, "report.html")


def name_picture(folder: str, image_id: str, suffix: str = ".png") -> str:
    """The path under OUT of one of an image's pictures, from its id. Raises UserError if it would leave OUT.

    A part of it that no file system would take ends in `~` and the first 16 digits of the sha256 of the whole part.
    """
    if len(image_id) * 4 + len(suffix) > _LONGEST_NAME:  # 4 bytes a letter at most: most names need no closer look
        image_id = shorten_id(image_id, len(suffix))
    return storage.join(folder, f"{image_id}{suffix}")


def shorten_id(image_id: str, suffix_bytes: int = len(".png")) -> str:
    """The id as pictures are named by it: the same, unless a part of it is too long for a file system."""
    *folders, name = image_id.split("/")
    parts = [_shorten_part(part, _LONGEST_NAME) for part in folders]
    return "/".join([*parts, _shorten_part(name, _LONGEST_NAME - suffix_bytes)])


def find_shortened(image_ids: Iterable[pa.Array]) -> dict[str, str]:
    """The ids that pictures do not bear whole: what they bear -> the id."""
    found: dict[str, str] = {}
    for ids in image_ids:
        long = ids.filter(pc.greater(pc.binary_length(ids), _LONGEST_NAME - len(".png"))).to_pylist()
        found |= {short: whole for whole in long if (short := shorten_id(whole)) != whole}
    return found


def _shorten_part(part: str, longest: int) -> str:
    data = part.encode()
    if len(data) <= longest:
        return part
    start = data[: longest - 1 - _DIGEST_LETTERS].decode(errors="ignore")  # not half of a letter
    return f"{start}~{hashlib.sha256(data).hexdigest()[:_DIGEST_LETTERS]}"


def list_pictures(rows: pa.Table) -> list[str]:
    """The pictures that rows name, as paths under OUT; a name that is not the image's own raises UserError."""
    image_ids, named = rows["image_id"].to_pylist(), []
    for column in ledger.PICTURE_COLUMNS:
        paths = pc.struct_field(rows[column], "path").to_pylist()
        named += [_check_picture(i, path) for i, path in zip(image_ids, paths, strict=True) if path is not None]
    return named


def _check_picture(image_id: str, path: str) -> str:
    if path not in name_all_pictures(image_id):
        raise UserError(f"the row of {image_id!r} names {path!r}, which is no picture of it")
    return path


def name_all_pictures(image_id: str) -> list[str]:
    """Every path at which an image can have a picture."""
    return [name_picture(folder, image_id, suffix) for folder, suffix in _PICTURES]


def delete_pictures(out: str, paths: Iterable[str]) -> None:
    """Deletes files under OUT, and folders that are empty after it. Raises UserError for one that lies elsewhere."""
    wanted = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda path: storage.delete_file(_place_inside(out, path)), wanted))
    if not storage.is_remote(out):
        for folder in {os.path.dirname(path) for path in wanted}:
            _remove_empty(out, folder)


def _place_inside(out: str, path: str) -> str:
    """The location of a path under OUT, with no symbolic link on the way out of it."""
    location = storage.join(out, path)
    if not storage.is_remote(out):
        root = os.path.realpath(out)
        folder = os.path.realpath(os.path.dirname(location))
        if os.path.commonpath([root, folder]) != root:
            raise UserError(f"{location} lies in {folder}, outside of OUT; it is left alone. Remove the symbolic link.")
    return location


def _remove_empty(out: str, folder: str) -> None:
    """Removes a folder under OUT and its parents there, as long as they are empty."""
    while folder:
        try:
            os.rmdir(storage.join(out, folder))
        except FileNotFoundError:
            pass
        except OSError:  # not empty, or a link
            return
        folder = os.path.dirname(folder)


def prune(out: str, index: pa.Table, listed: pa.Array | pa.ChunkedArray) -> int:
    """Removes rows and pictures of images that are not `listed` (ids) any more. Returns how many rows went.

    Rows first: were it the pictures, a death between the two would leave a row without mask, and the image would count
    as done if it came back. What a death leaves now are pictures without row, which `verify --repair` removes.
    """
    ids = listed.combine_chunks() if isinstance(listed, pa.ChunkedArray) else listed
    gone = index.filter(pc.invert(pc.is_in(index["image_id"], value_set=ids)))
    for part, image_ids in group_by_part(gone):
        rows = read_names(part)
        pictures = list_pictures(rows.filter(pc.is_in(rows["image_id"], value_set=image_ids)))
        ledger.drop_rows(out, part, image_ids)
        delete_pictures(out, pictures)
    return len(gone)


def delete_failed_pictures(out: str, index: pa.Table, run: int) -> int:
    """Deletes what is left of the pictures of images that failed in this run: of an older file, or of half a write.

    Call it after settling, not when an image fails: a task that is run twice may fail the second time only, and then
    its first row counts. Returns how many images it looked at.
    """
    failed = index.filter(pc.and_(pc.equal(index["status"], "error"), pc.equal(index["run"], run)))
    image_ids = failed["image_id"].to_pylist()
    delete_pictures(out, [path for image_id in image_ids for path in name_all_pictures(image_id)])
    return len(image_ids)


def remove_output(out: str) -> None:
    """Empties an output folder of ours for `--overwrite`: pictures that rows name, rows, and our own files.

    run.json stays, in a state that only another --overwrite accepts, until the caller writes the new one; so a death
    at any moment leaves a folder that is still known as ours. Raises UserError where no run.json of ours lies.
    """
    run = ledger.read_run(out)
    if run is None or not {"run", "parameters"} <= set(run):
        raise UserError(f"OUT {out} is not an output of batchseg (no {ledger.RUN_FILE} of ours); nothing was removed")
    ledger.write_run(out, {**run, "state": ledger.OVERWRITING})
    for _, part in ledger.list_parts(out):
        with suppress(DamagedPartError):  # names nothing any more
            delete_pictures(out, list_pictures(read_names(part)))
        storage.delete_file(_place_inside(out, _path_under(out, part)))
    for name in _OWN_FILES:
        storage.delete_file(storage.join(out, name))
    ledger.sweep_staging(out)
    if not storage.is_remote(out):
        for folder in (*ledger.PICTURE_FOLDERS, "rows", ".tmp"):
            _remove_empty_below(Path(out, folder))


def _remove_empty_below(folder: Path) -> None:
    """Removes the empty folders of a tree, deepest first; symbolic links are left as they are."""
    for path, _, _ in os.walk(folder, topdown=False, followlinks=False):
        try:
            os.rmdir(path)
        except OSError:  # a file of somebody else
            continue


def _path_under(out: str, location: str) -> str:
    return location[len(out.rstrip("/")) + 1 :]


def read_names(part: str) -> pa.Table:
    """Ids and paths of pictures of a part; the pictures themselves are not read."""
    return ledger.read_part(part, ["image_id", *(f"{column}.path" for column in ledger.PICTURE_COLUMNS)])
