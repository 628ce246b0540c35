"""An S3 object that is read in parts, such as Parquet, without taking a cut answer for a whole one."""

import io
import os
from dataclasses import dataclass

import pyarrow as pa

from batchseg.s3 import read_whole


class CheckedFile(io.RawIOBase):
    """Reads every part as read_whole reads a file: a part that arrives short is an OSError.

    stream: of pyarrow, which notices no cut answer by itself; it is closed with this file. One thread at a time.
    """

    def __init__(self, stream: pa.NativeFile, location: str):
        self._stream, self._location, self._position = stream, location, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As io.IOBase.seek."""
        from_where = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stream.size()}
        self._position = from_where[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or all that are left; fewer only at the end. Raises OSError for a part that arrives short."""
        left = max(0, self._stream.size() - self._position)
        size = left if size is None or size < 0 else min(size, left)
        data = read_whole(_Part(self._stream, self._position, size), self._location)
        self._position += size
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclass(frozen=True)
class _Part:
    """A part of an open file, with what read_whole asks of a whole one."""

    stream: pa.NativeFile
    start: int
    length: int

    def size(self) -> int:
        return self.length

    def seek(self, offset: int) -> None:
        self.stream.seek(self.start + offset)

    def readinto(self, data: bytearray) -> None:
        self.stream.readinto(data)
