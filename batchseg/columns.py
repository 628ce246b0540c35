"""Pictures as Arrow columns: bytes without a copy, so that a large image is held once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ByteArray = npt.NDArray[np.uint8]


def pack_pictures(pictures: Sequence[ByteArray]) -> pa.Array:
    """uint8 arrays of any shapes -> a large_binary column of their bytes, row-major. One alone is not copied."""
    flat = [np.ascontiguousarray(picture).reshape(-1) for picture in pictures]
    data = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.uint8), *flat])
    offsets = np.cumsum([0, *(part.size for part in flat)], dtype=np.int64)
    return pa.Array.from_buffers(pa.large_binary(), len(flat), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def unpack_picture(column: pa.ChunkedArray, row: int, shape: tuple[int, ...]) -> ByteArray:
    """A row of `pack_pictures` -> the read-only uint8 array of that shape; a view, where `column[row]` would copy."""
    for chunk in column.chunks:
        if row < len(chunk):
            break
        row -= len(chunk)
    _, offsets, data = chunk.buffers()
    start, end = np.frombuffer(offsets, np.int64)[chunk.offset + row : chunk.offset + row + 2].tolist()
    return np.frombuffer(data, np.uint8, end - start, start).reshape(shape)


def replace_columns(table: pa.Table, drop: Sequence[str] = (), **columns: Any) -> pa.Table:
    """The table without the columns named in `drop`, and with those given, new ones at the end."""
    kept = [name for name in table.column_names if name not in drop and name not in columns]
    return pa.table({**{name: table[name] for name in kept}, **columns})
