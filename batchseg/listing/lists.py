"""List files: one location a line in .txt, a column `uri` in .csv or .parquet."""

import posixpath
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.csv

from batchseg import storage
from batchseg.errors import UserError
from batchseg.listing.left_out import LeftOut
from batchseg.listing.manifest import ManifestBuilder, make_image_id
from batchseg.listing.parquet import URI_COLUMN, read_uri_column
from batchseg.storage import FileStamp

LIST_SUFFIXES = (".txt", ".csv")
_THREADS = 32
_BATCH = 256


def read_uris(location: str) -> list[str]:
    """The locations that a list names: absolute, each once, in its order. Relative ones count from its folder.

    Raises UserError for a list that cannot be read, and for an entry that no file can be named.
    """
    suffix = posixpath.splitext(location)[1].lower()
    names = {".txt": _read_lines, ".csv": _read_csv}.get(suffix, read_uri_column)(location)
    for number, name in enumerate(names, 1):
        if name and "\0" in name:
            where = "line" if suffix == ".txt" else "entry"
            raise UserError(
                f"the list {location}, {where} {number}: {name[:80]!r} holds a NUL character, which no name may. "
                f"Is the list UTF-16? UTF-8 is needed"
            )
    folder = storage.folder_of(location)
    return list(dict.fromkeys(_resolve(name, folder) for name in names if name))


def _read_lines(location: str) -> list[str]:
    """Lines end with a newline alone: names may hold what str.splitlines takes for an end. There are no comments."""
    try:
        return [line.removesuffix("\r") for line in storage.read_bytes(location).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"the list {location} is not UTF-8: {error}") from None


def _read_csv(location: str) -> list[str]:
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(storage.read_bytes(location)),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types={URI_COLUMN: pa.string()}),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"the list {location} cannot be read: {error}") from None
    if URI_COLUMN not in table.column_names:
        raise UserError(f"the list {location} has no column `{URI_COLUMN}`; it has {', '.join(table.column_names)}")
    return list(table[URI_COLUMN].to_pylist())


def _resolve(name: str, folder: str) -> str:
    if storage.is_remote(name) or name.startswith("/"):
        return storage.to_absolute(name)
    if not storage.is_remote(folder):
        return storage.to_absolute(f"{folder}/{name}")
    scheme, _, key = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'/{key}/{name}').lstrip('/')}"


def find_common_folder(uris: list[str]) -> str:
    """The deepest folder that all of them lie in, with its slash; empty for local and s3:// ones together."""
    first, last = min(uris).split("/")[:-1], max(uris).split("/")[:-1]  # what these two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "".join(f"{part}/" for part in first[:same])


def add_listed(
    uris: list[str], common: str, left_out: LeftOut, builder: ManifestBuilder, tick: Callable[[], None]
) -> None:
    """Puts every listed image into the manifest; what is missing stays in it without a size.

    A file is looked at one by one, on S3 with one request each.
    """
    batches = [uris[start : start + _BATCH] for start in range(0, len(uris), _BATCH)]

    def look(listed: list[str]) -> None:
        batch = [uri for uri in listed if not (left_out.holds if storage.is_remote(uri) else left_out.holds_file)(uri)]
        # Both schemes in one list: s3://bucket/key becomes s3/bucket/key.
        ids = [make_image_id(uri.removeprefix(common) if common else uri.replace("://", "/", 1)) for uri in batch]
        builder.add((name, uri, _stat(uri), None) for name, uri in zip(ids, batch, strict=True))

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(look, batches):
            tick()


def _stat(uri: str) -> FileStamp | None:
    """None also for what may not be looked at: fetching it will say why."""
    try:
        return storage.stat_file(uri)
    except (OSError, pa.ArrowInvalid):
        return None
