"""The rows are the ledger: what was listed, what is done, what is left. Functions on tables and small files.

    OUT/manifest.parquet   the last listing
    OUT/rows/status=ok/part-<run>-<digest>.parquet, OUT/rows/status=error/…   one row per image
    OUT/run.json           whose folder this is

A picture is written first, then the part that lists it. Whatever will be redone loses its row before the work starts,
so a death leaves an image without a row, never with two.
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
from batchseg.images import is_image_name

STATUSES = ("ok", "error")
RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.parquet"
CLASSES_FILE = "classes.json"
_STAGING = ".tmp"
_THREADS = 16
_STALE_SECONDS = 3600

_TIME = pa.timestamp("us", tz="UTC")
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

MANIFEST_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("modified", _TIME)]
)
_ROW_FIELDS = [
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("input_bytes", pa.int64()),
    ("input_modified", _TIME),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("error_kind", pa.string()),
    ("error", pa.string()),
    ("mask", _PICTURE),
    ("overlay", _PICTURE),
    ("class_pixels", pa.list_(pa.int64())),
    ("mean_confidence", pa.float32()),
    ("uncertain_share", pa.float32()),
    ("bundle", pa.string()),
    ("run", pa.int32()),
    ("seconds", pa.float32()),
    ("attempts", pa.int32()),
]
_INDEX_COLUMNS = ["image_id", "input_bytes", "input_modified", "run", "attempts"]
# The features of Hugging Face datasets, so that masks and overlays show as images there.
_HUGGING_FACE = {"info": {"features": {"mask": {"_type": "Image"}, "overlay": {"_type": "Image"}}}}


def make_row_schema(classes: ClassTable) -> pa.Schema:
    """The schema of a part. `status` is not in it: the folder says it. Class names stand in the metadata."""
    metadata = {"batchseg.classes": json.dumps(classes.names), "huggingface": json.dumps(_HUGGING_FACE)}
    return pa.schema(_ROW_FIELDS, metadata=metadata)


@dataclass(frozen=True)
class Work:
    """What a run has to do. todo: manifest rows with `attempts` so far. redone: ids whose rows must go first."""

    todo: pa.Table
    redone: list[str]
    reasons: dict[str, int]


def list_images(location: str, exclude: str) -> pa.Table:
    """The manifest of a folder: every image under it, in the order of their ids. `exclude` is a folder to leave out.

    Raises UserError when the folder is missing or holds no image.
    """
    kind = storage.file_type(location)
    if kind == "missing":
        raise UserError(f"INPUT {location} does not exist")
    if kind == "file":
        raise UserError(f"INPUT {location} is a file; a directory is allowed")
    prefix = storage.to_real(exclude) + "/"
    try:
        listed = [entry for entry in storage.list_files(storage.to_real(location)) if is_image_name(entry.path)]
    except OSError as error:
        raise UserError(f"INPUT {location} cannot be listed: {error}") from None
    found = [entry for entry in listed if not entry.location.startswith(prefix)]
    if not found:
        raise UserError(f"INPUT {location} holds no image (.jpg, .png, .tif, .webp, …), at any depth")
    columns = [
        [e.path for e in found],
        [e.location for e in found],
        [e.size_bytes for e in found],
        [e.modified for e in found],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, MANIFEST_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=MANIFEST_SCHEMA)


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
    """Of every row: image_id, input_bytes, input_modified, run, attempts, and the status and part it lies in."""
    parts = list_parts(out)
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(_read_part_index, parts))
    schema = pa.schema(
        [(n, t) for n, t in _ROW_FIELDS if n in _INDEX_COLUMNS] + [("status", pa.string()), ("part", pa.string())]
    )
    return pa.concat_tables([schema.empty_table(), *tables])


def _read_part_index(part: tuple[str, str]) -> pa.Table:
    status, location = part
    table = _read_part(location, _INDEX_COLUMNS).replace_schema_metadata(None)
    constant = [pa.repeat(pa.scalar(text, pa.string()), len(table)) for text in (status, location)]
    return table.append_column("status", constant[0]).append_column("part", constant[1])


def _read_part(location: str, columns: list[str] | None = None) -> pa.Table:
    fs, path = storage.filesystem_of(location)
    with fs.open_input_file(path) as stream:
        return pq.ParquetFile(stream).read(columns=columns)


def plan_work(manifest: pa.Table, index: pa.Table) -> Work:
    """Compares the listing with the rows: new, changed (size or time) and failed images are to do, the others done."""
    renamed = index.select([*_INDEX_COLUMNS[:3], "attempts", "status"])
    joined = manifest.join(renamed, keys="image_id", join_type="left outer").sort_by("image_id")
    is_new = pc.is_null(joined["status"])
    same = pc.and_(
        pc.equal(joined["bytes"], joined["input_bytes"]), pc.equal(joined["modified"], joined["input_modified"])
    )
    is_changed = pc.and_(pc.invert(is_new), pc.invert(pc.fill_null(same, False)))
    has_failed = pc.and_(pc.fill_null(pc.equal(joined["status"], "error"), False), pc.invert(is_changed))
    redone = pc.or_(is_changed, has_failed)
    wanted = pc.or_(is_new, redone)
    todo = joined.filter(wanted).select([*MANIFEST_SCHEMA.names, "attempts"])
    todo = todo.set_column(4, "attempts", pc.fill_null(todo["attempts"], 0).cast(pa.int32()))
    reasons = {
        "new": pc.sum(is_new).as_py() or 0,
        "changed": pc.sum(is_changed).as_py() or 0,
        "failed before": pc.sum(has_failed).as_py() or 0,
        "done": len(joined) - len(todo),
    }
    return Work(todo.combine_chunks(), joined.filter(redone)["image_id"].to_pylist(), reasons)


def commit_part(out: str, rows: pa.Table, status: str, run: int) -> str:
    """Writes rows as one part and returns its location. The same rows of the same run always get the same name."""
    digest = hashlib.sha256("\0".join(sorted(rows["image_id"].to_pylist())).encode()).hexdigest()[:16]
    location = storage.join(out, "rows", f"status={status}", f"part-{run:06d}-{digest}.parquet")
    write_table(location, rows, out)
    return location


def write_table(location: str, table: pa.Table, out: str) -> None:
    """Parquet in memory first, then one atomic write: a stream to the final name would show halves."""
    buffer = pa.BufferOutputStream()
    # Pictures are compressed already; zstd serves the columns beside them.
    pq.write_table(table, buffer, compression="zstd")
    storage.write_atomic(location, buffer.getvalue().to_pybytes(), staging_of(out))


def staging_of(out: str) -> str | None:
    """Where half-written files live: one folder on the same disk; nowhere on S3, whose PUT is atomic."""
    return None if storage.is_remote(out) else storage.join(out, _STAGING)


def sweep_staging(out: str) -> None:
    """Deletes what a killed run left half-written; nothing younger than an hour, which another run may be writing."""
    staging = staging_of(out)
    if not staging or not storage.exists(staging):
        return
    for entry in storage.list_files(staging, hidden=True):
        if (datetime.now(UTC) - entry.modified).total_seconds() > _STALE_SECONDS:
            storage.delete_file(entry.location)


def subtract(out: str, index: pa.Table, image_ids: Iterable[str]) -> int:
    """Takes rows out of their parts: a part is replaced by the rest under its name, or deleted with no rest."""
    gone = pa.array(sorted(set(image_ids)), pa.string())
    hit = index.filter(pc.is_in(index["image_id"], value_set=gone))
    for location in sorted(set(hit["part"].to_pylist())):
        _drop_rows(out, location, gone)
    return len(hit)


def _drop_rows(out: str, location: str, image_ids: pa.Array) -> None:
    table = _read_part(location)
    rest = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=image_ids)))
    if len(rest):
        write_table(location, rest, out)
    else:
        storage.delete_file(location)


def settle(out: str) -> pa.Table:
    """Leaves each image one row: of the higher run, then `ok`, then of the smaller part name. Returns the index."""
    index = read_index(out)
    if pc.count_distinct(index["image_id"]).as_py() == len(index):
        return index
    ranked = index.sort_by(
        [("image_id", "ascending"), ("run", "descending"), ("status", "descending"), ("part", "ascending")]
    )
    ids = ranked["image_id"].to_pylist()
    losers: dict[str, list[str]] = {}
    for before, image_id, part in zip(ids, ids[1:], ranked["part"].to_pylist()[1:], strict=False):
        if before == image_id:
            losers.setdefault(part, []).append(image_id)
    for part, image_ids in losers.items():
        _drop_rows(out, part, pa.array(image_ids, pa.string()))
    return read_index(out)


def count_rows(index: pa.Table, manifest: pa.Table) -> dict[str, int]:
    """`manifest`: images listed; `ok` and `error`: their rows; `gone`: rows of images that are listed no more."""
    is_listed = pc.is_in(index["image_id"], value_set=manifest["image_id"].combine_chunks())
    listed = index.filter(is_listed)
    counts = {status: pc.sum(pc.equal(listed["status"], status)).as_py() or 0 for status in STATUSES}
    return {"manifest": len(manifest), **counts, "gone": len(index) - len(listed)}


def read_run(out: str) -> dict[str, Any] | None:
    """run.json of an output folder, None where the folder is new or empty.

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
    # A staging folder is all that a run leaves which was killed in its first moment.
    if is_file or any(name != _STAGING and not name.startswith(".probe-") for name in storage.list_names(out)):
        raise UserError(f"OUT {out} exists and is not an output of batchseg (it has no {RUN_FILE}); give another --out")
    return None


def forget_run(out: str) -> None:
    """Takes back what the start of a run has written, where it was refused before the first row."""
    if not list_parts(out):
        for name in (RUN_FILE, CLASSES_FILE):
            storage.delete_file(storage.join(out, name))


def check_same_run(out: str, before: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raises UserError naming what differs when OUT was made with other parameters."""
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
    storage.write_atomic(storage.join(out, RUN_FILE), json.dumps(run, indent=1), staging_of(out))


def format_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
