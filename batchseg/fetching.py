"""The bytes of one image, wherever it lies: a file, an S3 object, a row of a Parquet file.

A fault of the transport is tried again and never handed to a decoder.
"""

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchseg import storage
from batchseg.errors import ImageError, describe_no_space
from batchseg.retries import ATTEMPTS, retry_io

_IMAGE_COLUMN = "image"

_Sleep = Callable[[float], None]


class _ShortBodyError(OSError):
    """Fewer bytes than were listed."""

    def __init__(self, data: bytes):
        super().__init__(f"only {len(data)} bytes arrived")
        self.data = data


def fetch_image(
    uri: str, row: int | None, listed_bytes: int | None, *, attempts: int = ATTEMPTS, sleep: _Sleep = time.sleep
) -> bytes:
    """The encoded image. row: of a Parquet file, None for a file that is the image. listed_bytes: None if unknown.

    A body shorter than listed is fetched again, unless the file now has that size: then it was changed meanwhile.
    Raises ImageError `missing`, `denied`, `read`, and for a Parquet row that holds no image `decode`. An OSError that
    says that the disk is full stays one.
    """
    retry = partial(retry_io, attempts=attempts, sleep=sleep)
    try:
        if row is not None:
            return _fetch_row(uri, row, retry)
        return _fetch_file(uri, listed_bytes, retry)
    except FileNotFoundError as error:
        raise ImageError("missing", f"{uri} does not exist any more") from error
    except PermissionError as error:
        raise ImageError("denied", f"{uri} may not be read: {error}") from error
    except OSError as error:
        if describe_no_space(error):
            raise
        raise ImageError("read", f"{uri} cannot be read: {error}") from error
    except pa.ArrowInvalid as error:  # a key such as a//b, which pyarrow cannot address
        raise ImageError("read", f"{uri} cannot be read: {error}") from error


def _fetch_file(uri: str, listed_bytes: int | None, retry: Callable[..., Any]) -> bytes:
    if not storage.is_remote(uri):
        _refuse_pipe(uri)

    def read_whole() -> bytes:
        data = storage.read_once(uri)
        if listed_bytes is not None and len(data) < listed_bytes and not _is_local_size(uri, len(data)):
            raise _ShortBodyError(data)
        return data

    try:
        return bytes(retry(read_whole))
    except _ShortBodyError as error:
        now = storage.stat_file(uri)
        if now and now.size_bytes == len(error.data):
            return error.data
        raise ImageError("read", f"{uri}: {len(error.data)} of {listed_bytes} bytes arrived") from error


def _refuse_pipe(path: str) -> None:
    """Opening a pipe waits for its writer, for ever if there is none."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError("read", f"{path} is no regular file ({stat.filemode(mode)})")


def _is_local_size(uri: str, size_bytes: int) -> bool:
    """A disk is believed at once; a store may answer once more with what an answer before was cut to."""
    return not storage.is_remote(uri) and os.stat(uri).st_size == size_bytes


def _fetch_row(uri: str, row: int, retry: Callable[..., Any]) -> bytes:
    stamp = storage.stat_file(uri)
    if stamp is None:
        raise FileNotFoundError(uri)
    ends = retry(lambda: _GROUP_ENDS.get((uri, stamp), lambda: _read_group_ends(uri)))
    if isinstance(ends, ImageError):
        raise ends
    if not 0 <= row < ends[-1]:
        raise ImageError("decode", f"{uri} has {ends[-1]} rows now; row {row} is not among them")
    group = int(np.searchsorted(ends, row, side="right")) - 1
    images = retry(lambda: _GROUPS.get((uri, stamp, group), lambda: _read_group(uri, group)))
    if isinstance(images, ImageError):
        raise images
    data = images[row - int(ends[group])].as_py()
    if data is None:
        raise ImageError("decode", f"{uri} row {row} holds no bytes")
    return bytes(data)


class _LastLoaded:
    """The last `size` values by key. Threads that want one at the same time share a single load, and its error."""

    def __init__(self, size: int):
        self._size, self._lock = size, Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """The value of `key`; an error of load() is not kept, so that the next call tries again."""
        with self._lock:
            is_new = key not in self._futures
            future = self._futures.setdefault(key, Future())
            self._futures.move_to_end(key)
            if len(self._futures) > self._size:
                self._futures.popitem(last=False)
        if is_new:
            self._load_into(future, key, load)
        return future.result()

    def _load_into(self, future: "Future[Any]", key: Hashable, load: Callable[[], Any]) -> None:
        try:
            future.set_result(load())
        except BaseException as error:
            with self._lock:
                if self._futures.get(key) is future:
                    del self._futures[key]
            future.set_exception(error)


# What is kept is kept with the file's stamp, so that a file that was replaced is read anew. A damaged file is kept as
# its ImageError: thousands of rows would each try it again.
_GROUP_ENDS = _LastLoaded(4)
_GROUPS = _LastLoaded(2)


def _read_group_ends(uri: str) -> npt.NDArray[np.int64] | ImageError:
    """For n row groups, n + 1 numbers: the first row of each, and the number of rows."""

    def read(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        return np.cumsum([0, *counts], dtype=np.int64)

    return _read_parquet(uri, read)


def _read_group(uri: str, group: int) -> pa.ChunkedArray | ImageError:
    """The encoded images of one row group, and no other column."""

    def read(file: pq.ParquetFile) -> pa.ChunkedArray:
        is_struct = pa.types.is_struct(file.schema_arrow.field(_IMAGE_COLUMN).type)
        name = f"{_IMAGE_COLUMN}.bytes" if is_struct else _IMAGE_COLUMN
        images = file.read_row_group(group, columns=[name])[_IMAGE_COLUMN]
        return pc.struct_field(images, "bytes") if is_struct else images

    return _read_parquet(uri, read)


def _read_parquet(uri: str, read: Callable[[pq.ParquetFile], Any]) -> Any:
    """What read() returns, or an ImageError when the file's content is at fault. Raises OSError of the transport."""
    try:
        with storage.open_file(uri) as stream:
            return read(pq.ParquetFile(stream, pre_buffer=True))
    except (pa.ArrowInvalid, KeyError) as error:
        return ImageError("decode", f"{uri} is no Parquet file with images any more: {error}")
    except OSError as error:
        # pyarrow says damaged pages by an OSError too; those of a disk have a number.
        if error.errno is None and not storage.is_remote(uri):
            return ImageError("decode", f"{uri} is damaged: {error}")
        raise
