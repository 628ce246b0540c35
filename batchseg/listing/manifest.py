"""The manifest while it grows: columns, not objects, because there may be millions of names."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchseg.errors import UserError
from batchseg.listing.patterns import Filters
from batchseg.storage import FileStamp

MANIFEST_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("row", pa.int64()),
    ]
)
_CHUNK_ROWS = 16_384


def make_image_id(path: str) -> str:
    """The id of an image at a path that may come from S3 or a Parquet file, and so be one that no disk would hold.

    An id becomes a path under OUT. So leading slashes go, and a part that is empty, `.` or `..` gets its dots as `%2E`
    (an empty one becomes `%`), a NUL `%00`. Other ids stay as they are; the uri keeps the true name. Two names that
    become one id are a clash, which is refused.
    """
    if not path.startswith((".", "/")) and not path.endswith("/") and all(t not in path for t in ("//", "/.", "\0")):
        return path
    parts = path.lstrip("/").replace("\0", "%00").split("/")
    return "/".join({"": "%", ".": "%2E", "..": "%2E%2E"}.get(part, part) for part in parts)


@dataclass
class ManifestBuilder:
    """Takes images from several threads at once. seen: images of INPUT before --include and --exclude."""

    filters: Filters
    seen: int = 0
    _columns: list[list[object]] = field(default_factory=lambda: [[] for _ in MANIFEST_SCHEMA])
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, images: Iterable[tuple[str, str, FileStamp | None, int | None]]) -> None:
        """image_id, uri, stamp (None: missing), row. Raises UserError for a name that is kept and is not UTF-8."""
        kept: list[list[object]] = [[] for _ in MANIFEST_SCHEMA]
        count = 0
        for image_id, uri, stamp, row in images:
            count += 1
            if count == _CHUNK_ROWS:  # a folder of a million names must not wait for its end
                self._merge(kept, count)
                kept, count = [[] for _ in MANIFEST_SCHEMA], 0
            if not self.filters.keep(image_id):
                continue
            _check_utf8(image_id, uri)
            values = (image_id, uri, *(stamp or (None, None)), row)
            for column, value in zip(kept, values, strict=True):
                column.append(value)
        self._merge(kept, count)

    def _merge(self, columns: list[list[object]], count: int) -> None:
        with self._lock:
            self.seen += count
            for whole, part in zip(self._columns, columns, strict=True):
                whole += part
            if len(self._columns[0]) >= _CHUNK_ROWS:
                self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(column, entry.type) for column, entry in zip(self._columns, MANIFEST_SCHEMA, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=MANIFEST_SCHEMA))
        self._columns = [[] for _ in MANIFEST_SCHEMA]

    def finish(self) -> pa.Table:
        """The manifest in the order of its ids, each image once. Raises UserError when two images have one id."""
        self._flush()
        table = pa.Table.from_batches(self._batches, MANIFEST_SCHEMA)
        self._batches.clear()
        return _drop_repeated(table.sort_by([("image_id", "ascending"), ("uri", "ascending"), ("row", "ascending")]))


def _check_utf8(image_id: str, uri: str) -> None:
    try:
        image_id.encode()
        uri.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the name of {uri.encode(errors='surrogateescape')!r} is not UTF-8; "
            f"rename it, or leave it out, such as with --exclude {_make_pattern(image_id)!r}"
        ) from None


def _make_pattern(image_id: str) -> str:
    """`?` for every byte that no terminal can show."""
    return "".join("?" if "\udc80" <= letter <= "\udcff" or letter in "[*?" else letter for letter in image_id)


def _drop_repeated(table: pa.Table) -> pa.Table:
    if len(table) < 2:
        return table.combine_chunks()
    before, after = table.slice(0, len(table) - 1), table.slice(1)
    same_id = pc.equal(before["image_id"], after["image_id"])
    if not pc.any(same_id).as_py():
        return table.combine_chunks()
    same_row = pc.equal(pc.fill_null(before["row"], -1), pc.fill_null(after["row"], -1))
    is_repeated = pc.and_(same_id, pc.and_(pc.equal(before["uri"], after["uri"]), same_row))
    clash = pc.index(pc.and_(same_id, pc.invert(is_repeated)), True).as_py()
    if clash >= 0:
        one, other = table.slice(clash, 2).to_pylist()
        raise UserError(
            f"two images have the id {one['image_id']!r}: {_describe(one)} and {_describe(other)}. Their masks would "
            f"have one name. Take one out, or segment them into two OUTs"
        )
    is_first = pa.chunked_array([pa.array([True]), *pc.invert(is_repeated).chunks])
    return table.filter(is_first).combine_chunks()


def _describe(image: dict[str, object]) -> str:
    return f"{image['uri']}" if image["row"] is None else f"{image['uri']} row {image['row']}"
