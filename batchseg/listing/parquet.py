"""Parquet as INPUT: a list with the column `uri`, or the images themselves in the column `image`.

`image` is as in Hugging Face datasets (a struct of `bytes` and `path`) or plain bytes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchseg import storage
from batchseg.errors import UserError
from batchseg.listing.manifest import ManifestBuilder, make_image_id
from batchseg.retries import retry_io
from batchseg.storage import FileStamp

IMAGE_COLUMN = "image"
URI_COLUMN = "uri"
_THREADS = 8


def read_columns(location: str) -> pa.Schema:
    """The columns of a Parquet file. Raises UserError for a file that is no Parquet."""
    schema: pa.Schema = _open(location, lambda file: file.schema_arrow)
    return schema


def read_uri_column(location: str) -> list[str]:
    """The texts in the column `uri`; no other column is read."""
    column = _open(location, lambda file: file.read(columns=[URI_COLUMN]))[URI_COLUMN]
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise UserError(f"column `{URI_COLUMN}` of {location} is {column.type}; text is needed")
    return list(column.to_pylist())


def add_rows(root: str, files: list[tuple[str, FileStamp]], builder: ManifestBuilder, tick: Callable[[], None]) -> None:
    """Puts every row of the files (path under root, stamp) into the manifest. No image is read."""

    def look(entry: tuple[str, FileStamp]) -> None:
        name, stamp = entry
        builder.add(_list_rows(f"{root.rstrip('/')}/{name}", name, stamp))

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(look, files):
            tick()


def _list_rows(location: str, name: str, stamp: FileStamp) -> Iterator[tuple[str, str, FileStamp, int]]:
    """Named by `path` where all rows have one, else by file and row."""
    paths = _open(location, lambda file: _read_paths(location, file))
    ids = paths if all(paths) else [f"{name}/{row:09d}" for row in range(len(paths))]
    for row, image_id in enumerate(ids):
        yield make_image_id(str(image_id)), location, stamp, row


def _read_paths(location: str, file: pq.ParquetFile) -> list[str | None]:
    schema = file.schema_arrow
    kind = schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else None
    if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return [None] * file.metadata.num_rows
    fields = (
        [kind.field(i).name for i in range(kind.num_fields)] if kind is not None and pa.types.is_struct(kind) else []
    )
    if "bytes" not in fields:
        columns = ", ".join(f"{entry.name}: {entry.type}" for entry in schema)
        raise UserError(
            f"{location} has neither a column `{URI_COLUMN}` nor a column `{IMAGE_COLUMN}` of bytes, or of a struct "
            f"with `bytes` and `path`; it has {columns}"
        )
    if "path" not in fields:
        return [None] * file.metadata.num_rows
    # Only this sub-column: the bytes beside it may be the whole data set.
    images = file.read(columns=[f"{IMAGE_COLUMN}.path"])[IMAGE_COLUMN]
    return [None if image is None else image["path"] for image in images.to_pylist()]


def _open(location: str, read: Callable[[pq.ParquetFile], Any]) -> Any:
    def read_once() -> Any:
        with storage.open_file(location) as stream:
            return read(pq.ParquetFile(stream))

    try:
        return retry_io(read_once)
    except pa.ArrowInvalid as error:
        raise UserError(f"{location} is no Parquet file that can be read: {error}") from None
