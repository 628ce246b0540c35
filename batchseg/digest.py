"""One number for an output folder: equal for two that hold the same rows and pictures, however they came about."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from batchseg import ledger, storage

_WITHOUT = ("seconds", "attempts", "error", "run")
"""How an image came to its row. `error_kind` counts, the message does not."""
_THREADS = 4


def digest_output(out: str) -> str:
    """sha256 over all rows in the order of their image ids, with the bytes of their pictures.

    Pictures are the files where rows name files, else the bytes in the rows. Part boundaries do not count.
    Raises FileNotFoundError for a missing picture, DamagedPartError for a part that cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(lambda part: _digest_part(out, *part), ledger.list_parts(out)))
    schema = pa.schema([("image_id", pa.string()), ("digest", pa.binary(32))])
    ordered = pa.concat_tables([schema.empty_table(), *tables]).sort_by(
        [("image_id", "ascending"), ("digest", "ascending")]
    )
    total = hashlib.sha256()
    for digest in ordered["digest"]:
        total.update(digest.as_py())
    return total.hexdigest()


def _digest_part(out: str, status: str, location: str) -> pa.Table:
    rows = ledger.read_part(location)
    digests = [_digest_row(out, rows.slice(i, 1).to_pylist()[0], status) for i in range(len(rows))]
    return pa.table({"image_id": rows["image_id"], "digest": pa.array(digests, pa.binary(32))})


def _digest_row(out: str, row: dict[str, Any], status: str) -> bytes:
    plain = {name: value for name, value in row.items() if name not in _WITHOUT} | {"status": status}
    for column in ledger.PICTURE_COLUMNS:
        if row[column] is not None:
            plain[column] = [row[column]["path"], _digest_picture(out, row[column])]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).digest()


def _digest_picture(out: str, picture: dict[str, Any]) -> str:
    data = storage.read_bytes(storage.join(out, picture["path"])) if picture["path"] else picture["bytes"]
    return hashlib.sha256(data).hexdigest()
