"""The rows are the ledger: what was listed, what is done, what is left. Functions on tables and small files.

    OUT/manifest.parquet   the last listing
    OUT/rows/status=ok/part-<run>-<digest>.parquet, OUT/rows/status=error/…   one row per image
    OUT/run.json           whose folder this is

A picture is written first, then the part that lists it. Whatever will be redone loses its row before the work starts,
so a death leaves an image without a row, never with two. Whoever changes rows holds the lease (lease.py).
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchseg import storage
from batchseg.classes import ClassTable
from batchseg.errors import UserError
from batchseg.row_index import INDEX_COLUMNS, STATUSES, TIME, build_index, find_losers, group_by_part

RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.parquet"
CLASSES_FILE = "classes.json"
LOG_FILE = "batchseg.log"
LEASE_FILE = "lease.json"
PICTURE_FOLDERS = ("masks", "overlays", "scores")
OVERWRITING = "overwriting"
"""The state in run.json of a folder that is being emptied: what is left in it is good for nothing."""

_STAGING = ".tmp"
_READ_THREADS = 16
_REWRITE_THREADS = 4  # each holds a whole part, pictures included

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_RLE = pa.list_(pa.struct([("class_id", pa.int32()), ("size", pa.list_(pa.int32())), ("counts", pa.string())]))

_ROW_FIELDS = [
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("input_bytes", pa.int64()),
    ("input_modified", TIME),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("note", pa.string()),
    ("error_kind", pa.string()),
    ("error", pa.string()),
    ("mask", _PICTURE),
    ("overlay", _PICTURE),
    ("score_map", _PICTURE),
    ("rle", _RLE),
    ("class_pixels", pa.list_(pa.int64())),
    ("mean_confidence", pa.float32()),
    ("uncertain_share", pa.float32()),
    ("bundle", pa.string()),
    ("run", pa.int32()),
    ("seconds", pa.float32()),
    ("attempts", pa.int32()),
]
PICTURE_COLUMNS = [name for name, kind in _ROW_FIELDS if kind == _PICTURE]
# The features of Hugging Face datasets, so that masks and overlays show as images there.
_HUGGING_FACE = {"info": {"features": {name: {"_type": "Image"} for name in PICTURE_COLUMNS}}}


def make_row_schema(classes: ClassTable) -> pa.Schema:
    """The schema of a part. `status` is not in it: the folder says it. Class names stand in the metadata."""
    metadata = {"batchseg.classes": json.dumps(classes.names), "huggingface": json.dumps(_HUGGING_FACE)}
    return pa.schema(_ROW_FIELDS, metadata=metadata)


class DamagedPartError(UserError):
    """A part that is no whole Parquet file."""


@dataclass(frozen=True)
class Work:
    """What a run has to do. todo: manifest rows with `attempts` so far. redone: ids (strings) whose rows go first.

    unseen: images that were done, and of which the listing found neither size nor time now; they count as done.
    """

    todo: pa.Table
    redone: pa.Array
    reasons: dict[str, int]
    unseen: int


def list_parts(out: str) -> list[tuple[str, str]]:
    """(status, location) of every part."""
    parts = []
    for status in STATUSES:
        folder = storage.join(out, "rows", f"status={status}")
        if storage.exists(folder):
            parts += [
                (status, e.location) for e in storage.list_files(folder, recursive=False) if e.path.endswith(".parquet")
            ]
    return parts


def read_index(out: str) -> pa.Table:
    """Of every row: image_id, input_bytes, input_modified, run, attempts, and the status and part it lies in.

    Raises DamagedPartError.
    """
    parts = list_parts(out)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return build_index(parts, list(pool.map(lambda part: read_part(part[1], INDEX_COLUMNS), parts)))


def empty_index() -> pa.Table:
    """The index of a folder without rows."""
    return build_index([], [])


def read_part(location: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of one part. Raises DamagedPartError."""
    return storage.retry_io(lambda: _read_part_once(location, columns))


def _read_part_once(location: str, columns: list[str] | None) -> pa.Table:
    with storage.open_file(location) as stream:
        try:
            return pq.ParquetFile(stream, page_checksum_verification=True).read(columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and (error.errno or storage.is_remote(location)):
                raise  # of the disk or the network; what the decoder raises has no number
            raise DamagedPartError(
                f"{location} is damaged ({error}). `batchseg verify OUT --repair` deletes it, "
                f"then the same line does its images again."
            ) from error


def plan_work(manifest: pa.Table, index: pa.Table) -> Work:
    """Compares the listing with the rows: new, changed (size or time) and failed images are to do, the others done."""
    place = pc.index_in(manifest["image_id"], value_set=_as_ids(index["image_id"]))
    row = index.select(["input_bytes", "input_modified", "attempts", "status"]).take(place)
    is_new = pc.is_null(place)
    is_same = pc.and_(
        _are_same(manifest["bytes"], row["input_bytes"]), _are_same(manifest["modified"], row["input_modified"])
    )
    # A file that cannot be seen now, on a disk that is away or behind a broken link, has not changed: its row stays.
    is_seen = pc.or_(pc.is_valid(manifest["bytes"]), pc.is_valid(manifest["modified"]))
    is_other = pc.and_not(pc.invert(is_new), is_same)
    is_changed = pc.and_(is_other, is_seen)
    has_failed = pc.and_not(pc.fill_null(pc.equal(row["status"], "error"), False), is_changed)
    redone = pc.or_(is_changed, has_failed)
    wanted = pc.or_(is_new, redone)
    todo = manifest.append_column("attempts", pc.fill_null(row["attempts"], 0)).filter(wanted)
    # As they lie in a Parquet file, whatever their names: else each row would read its group of rows anew.
    todo = todo.sort_by([("uri", "ascending"), ("row", "ascending")])
    reasons = {
        "new": pc.sum(is_new).as_py() or 0,
        "changed": pc.sum(is_changed).as_py() or 0,
        "failed before": pc.sum(has_failed).as_py() or 0,
        "done": len(manifest) - len(todo),
    }
    unseen = pc.sum(pc.and_not(pc.and_not(is_other, is_seen), has_failed)).as_py() or 0
    return Work(todo.combine_chunks(), _as_ids(manifest["image_id"].filter(redone)), reasons, unseen)


def _are_same(now: pa.ChunkedArray, then: pa.ChunkedArray) -> pa.ChunkedArray:
    """Equal, or both unknown: a listed file that is missing has neither size nor time, and neither has its row."""
    return pc.or_(pc.fill_null(pc.equal(now, then), False), pc.and_(pc.is_null(now), pc.is_null(then)))


def _as_ids(image_ids: pa.ChunkedArray | Iterable[str]) -> pa.Array:
    if isinstance(image_ids, pa.ChunkedArray):
        return image_ids.combine_chunks()
    return image_ids if isinstance(image_ids, pa.Array) else pa.array(list(image_ids), pa.string())


def commit_part(out: str, rows: pa.Table, status: str, run: int) -> str:
    """Writes rows as one part and returns its location. The same rows of the same run always get the same name.

    Raises ValueError when an image stands in them twice: such a pair could never be settled, as rows leave by their id.
    """
    image_ids = sorted(rows["image_id"].to_pylist())
    if len(set(image_ids)) < len(image_ids):
        raise ValueError(f"a part of run {run} would hold an image twice: {image_ids}")
    digest = hashlib.sha256("\0".join(image_ids).encode()).hexdigest()[:16]
    location = storage.join(out, "rows", f"status={status}", f"part-{run:06d}-{digest}.parquet")
    write_table(location, rows, out)
    return location


def write_table(location: str, table: pa.Table, out: str) -> None:
    """Parquet in memory first, then one atomic write: a stream to the final name would show halves."""
    buffer = pa.BufferOutputStream()
    # Pictures are compressed already; zstd serves the columns beside them. Checksums show what a disk has lost.
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    storage.write_atomic(location, memoryview(buffer.getvalue()), staging_of(out), durable=True)


def staging_of(out: str) -> str | None:
    """Where half-written files live: one folder on the same disk; nowhere on S3, whose PUT is atomic."""
    return None if storage.is_remote(out) else storage.join(out, _STAGING)


def sweep_staging(out: str) -> None:
    """Deletes what a killed run left half-written. The caller holds the lease, so nobody else is writing there."""
    staging = staging_of(out)
    if staging and storage.exists(staging):
        for entry in storage.list_files(staging, hidden=True):
            storage.delete_file(entry.location)


def subtract(out: str, index: pa.Table, image_ids: pa.Array | Iterable[str]) -> int:
    """Takes rows out of their parts: a part is replaced by the rest under its name, or deleted with no rest.

    Returns how many rows of `index` went.
    """
    hit = index.filter(pc.is_in(index["image_id"], value_set=_as_ids(image_ids)))
    with ThreadPoolExecutor(_REWRITE_THREADS) as pool:
        list(pool.map(lambda group: drop_rows(out, *group), group_by_part(hit)))
    return len(hit)


def drop_rows(out: str, location: str, image_ids: pa.Array) -> None:
    """Takes the rows of these images out of one part."""
    table = read_part(location)
    rest = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=image_ids)))
    if len(rest):
        write_table(location, rest, out)
    else:
        storage.delete_file(location)


def settle(out: str) -> pa.Table:
    """Leaves each image one row: of the higher run, then `ok`, then of the smaller part name. Returns the index."""
    index = read_index(out)
    losers = find_losers(index)
    if not len(losers):
        return index
    for part, image_ids in group_by_part(losers):
        drop_rows(out, part, image_ids)
    return read_index(out)


def count_rows(index: pa.Table, manifest: pa.Table) -> dict[str, int]:
    """`manifest`: images listed; `ok` and `error`: their rows; `gone`: rows of images that are listed no more."""
    is_listed = pc.is_in(index["image_id"], value_set=_as_ids(manifest["image_id"]))
    listed = index.filter(is_listed)
    counts = {status: pc.sum(pc.equal(listed["status"], status)).as_py() or 0 for status in STATUSES}
    return {"manifest": len(manifest), **counts, "gone": len(index) - len(listed)}


def read_run(out: str) -> dict[str, Any] | None:
    """run.json of an output folder, None where the folder is new or holds no more than a lease and a log.

    Raises UserError for a folder with something in it that is not ours.
    """
    location = storage.join(out, RUN_FILE)
    if storage.exists(location):
        try:
            run = json.loads(storage.read_bytes(location))
        except ValueError as error:
            raise UserError(f"OUT {out}: {RUN_FILE} is damaged: {error}") from None
        if not isinstance(run, dict) or not {"run", "bundle", "parameters"} <= set(run):
            raise UserError(f"OUT {out}: its {RUN_FILE} is not one of batchseg; give another --out")
        return run
    is_file = storage.file_type(out) == "file"
    # A lease and a staging folder are what a run leaves that was killed in its first moment.
    known = {_STAGING, LEASE_FILE, LOG_FILE}
    if is_file or any(name not in known and not name.startswith(".probe-") for name in storage.list_names(out)):
        raise UserError(f"OUT {out} exists and is not an output of batchseg (it has no {RUN_FILE}); give another --out")
    return None


def check_same_run(out: str, before: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raises UserError naming what differs when OUT was made with other parameters, or is half removed."""
    if before.get("state") == OVERWRITING:
        raise UserError(f"OUT {out}: an --overwrite was cut short and half of it is gone; give --overwrite again")
    old = before.get("parameters", {})
    differing = [
        f"{key} ({old.get(key)!r} there, {value!r} now)" for key, value in parameters.items() if old.get(key) != value
    ]
    if differing:
        raise UserError(
            f"OUT {out} was made with other parameters; differing: {'; '.join(differing)}. Give another --out."
        )


def write_run(out: str, run: dict[str, Any]) -> None:
    """Replaces run.json."""
    storage.write_atomic(storage.join(out, RUN_FILE), json.dumps(run, indent=1), staging_of(out), durable=True)


def forget_run(out: str) -> None:
    """Takes run.json and what belongs to it away again, where a first run came to nothing; not where there are rows.

    Pictures without row count as something, too: without run.json the folder would be a stranger's.
    """
    if not list_parts(out) and not any(storage.exists(storage.join(out, name)) for name in PICTURE_FOLDERS):
        for name in (MANIFEST_FILE, CLASSES_FILE, RUN_FILE):
            storage.delete_file(storage.join(out, name))


def format_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
