"""Files on this machine or under s3://: read, write atomically, list, delete; what can pass is tried again.

A location is a plain string: a local path (relative ones count from the working directory) or `s3://bucket/key`.
S3 goes through pyarrow.fs with the credentials, region and endpoint that the AWS_* variables or ~/.aws name.
"""

import errno
import os
import posixpath
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from batchseg.access import find_endpoint, reach
from batchseg.errors import UserError
from batchseg.retries import retry_io as retry_io
from batchseg.s3 import connect_s3, read_whole
from batchseg.s3_file import CheckedFile

_SCHEMES = ("s3",)
_LOCAL = pafs.LocalFileSystem()
_LONGEST_KEY = 1024  # bytes, of S3


@dataclass(frozen=True)
class FileEntry:
    """One listed file. `path` is relative to the listed folder, with `/` between its parts; `modified` is in UTC."""

    path: str
    location: str
    size_bytes: int
    modified: datetime


class FileStamp(NamedTuple):
    """What tells one version of a file from the next. modified_us: microseconds since 1970, UTC."""

    size_bytes: int
    modified_us: int


def is_remote(location: str) -> bool:
    """True for s3:// locations."""
    return "://" in location


def to_absolute(location: str | os.PathLike[str]) -> str:
    """The same location without dependence on the working directory; a trailing slash is dropped."""
    text = os.fspath(location)
    if not is_remote(text):
        return os.path.abspath(os.path.expanduser(text))
    _split_scheme(text)
    return text.rstrip("/")


def to_real(location: str) -> str:
    """The absolute location with symbolic links followed, to tell whether one lies in the other."""
    absolute = to_absolute(location)
    return absolute if is_remote(absolute) else os.path.realpath(absolute)


def join(location: str, *parts: str) -> str:
    """Appends relative parts. Raises UserError if one of them would leave `location`."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise UserError(f"path {part!r} would leave {location}")
    return posixpath.join(location, *parts)


def name_of(location: str) -> str:
    """The last part of a location."""
    return posixpath.basename(location.rstrip("/"))


def folder_of(location: str) -> str:
    """All but the last part of a location."""
    return posixpath.dirname(location.rstrip("/"))


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a location, and the path in it. Its errors are not translated: see retry_io."""
    if not is_remote(location):
        return _LOCAL, os.path.abspath(os.path.expanduser(location))
    path = _split_scheme(location)
    endpoint = find_endpoint()
    has_region = endpoint or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    try:
        return connect_s3(endpoint, None if has_region else path.partition("/")[0], settings), path
    except pa.ArrowInvalid as error:
        raise UserError(f"{location} cannot be reached, AWS_ENDPOINT_URL is {endpoint!r}: {error}") from None


def _split_scheme(location: str) -> str:
    scheme, _, path = location.partition("://")
    if scheme not in _SCHEMES:
        raise UserError(f"{location}: unknown scheme {scheme}://; allowed are a local path and s3://")
    if not path.strip("/"):
        raise UserError(f"{location} names no bucket; write s3://bucket/key")
    return path


def read_bytes(location: str) -> bytes:
    """The whole file. Raises FileNotFoundError, PermissionError or another OSError."""
    return reach(location, lambda: read_once(location))


def read_once(location: str) -> bytes:
    """read_bytes without a second attempt. Raises OSError also when fewer bytes arrive than the store said."""
    if not is_remote(location):
        with open(os.path.expanduser(location), "rb") as file:
            return file.read()
    fs, path = filesystem_of(location)
    # Not open_input_stream: its read() asks for 256 KiB at a time, which is 46 requests for 12 MB.
    with fs.open_input_file(path) as stream:
        return read_whole(stream, location)


def open_file(location: str) -> pa.NativeFile | CheckedFile:
    """A file to read in parts, such as Parquet; to be closed. On S3 a part that arrives short is an OSError."""
    fs, path = filesystem_of(location)
    stream = fs.open_input_file(path)
    return CheckedFile(stream, location) if is_remote(location) else stream


def read_text(location: str) -> str:
    """The whole file as UTF-8."""
    return read_bytes(location).decode("utf-8")


def write_atomic(
    location: str, data: bytes | memoryview | str, staging: str | None = None, *, durable: bool = False
) -> None:
    """Writes `data` so that a reader sees the old file or the new one, never a part.

    On a local disk it goes to a temporary name and is renamed (in `staging`, a folder on the same disk, so that what a
    killed process leaves lies in one place; without it beside the target). On S3 one PUT is atomic already.
    durable: the file also outlives a loss of power that follows at once. It costs a wait for the disk, so it is for the
    few files that say what is done; a killed process loses nothing either way. S3 is always durable.
    """
    payload = data.encode() if isinstance(data, str) else data
    if is_remote(location):
        # In a thread, where Ctrl-C does not reach: an exception between open and close would publish a part.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(reach, location, lambda: _put(location, payload)).result()
        return
    path = Path(os.path.abspath(os.path.expanduser(location)))
    temporary = Path(staging or path.parent) / f".{uuid.uuid4().hex}.tmp"
    retry_io(lambda: _replace(path, payload, temporary, durable))


def _put(location: str, payload: bytes | memoryview) -> None:
    fs, path = filesystem_of(location)
    with fs.open_output_stream(path) as stream:
        stream.write(payload)


def _replace(path: Path, payload: bytes | memoryview, temporary: Path, durable: bool) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stat_file(location: str) -> FileStamp | None:
    """Size and time of a regular file, links followed; None for anything else. Raises PermissionError or OSError."""
    if not is_remote(location):
        path = Path(os.path.expanduser(location))
        with suppress(FileNotFoundError, NotADirectoryError):
            found = retry_io(path.stat)
            return FileStamp(found.st_size, found.st_mtime_ns // 1000) if path.is_file() else None
        return None
    fs, path_in_bucket = filesystem_of(location)
    info = reach(location, lambda: fs.get_file_info(path_in_bucket))
    return stamp_of(info) if info.type == pafs.FileType.File else None


def stamp_of(info: pafs.FileInfo) -> FileStamp:
    """Of an entry that pyarrow has listed."""
    return FileStamp(info.size or 0, (info.mtime_ns or 0) // 1000)


def file_type(location: str) -> str:
    """`file`, `folder` or `missing`. An S3 prefix with something under it is a folder."""
    fs, path = filesystem_of(location)
    kind = reach(location, lambda: fs.get_file_info(path)).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(kind, "missing")


def exists(location: str) -> bool:
    """True if there is a file or a folder."""
    return file_type(location) != "missing"


def list_infos(location: str, *, recursive: bool) -> list[tuple[str, pafs.FileInfo]]:
    """Everything under a folder, as path relative to it and what pyarrow says. Raises FileNotFoundError.

    On S3 a recursive listing is one request for each 1,000 keys.
    """
    fs, root = filesystem_of(location)
    root = root.rstrip("/")
    infos = reach(location, lambda: fs.get_file_info(pafs.FileSelector(root, recursive=recursive)))
    return [(info.path[len(root) + 1 :], info) for info in infos]


def list_files(location: str, *, recursive: bool = True, hidden: bool = False) -> Iterator[FileEntry]:
    """Yields the files under a folder in the order of their paths.

    hidden: also those with a part of the path that starts with a dot.
    Raises FileNotFoundError when the folder is missing, UserError for a name that is not UTF-8.
    """
    try:
        found = sorted(list_infos(location, recursive=recursive), key=lambda entry: entry[0])
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: a file name under it is not UTF-8 ({error.object!r}); rename it") from None
    for relative, info in found:
        if info.type != pafs.FileType.File:
            continue
        if not hidden and any(part.startswith(".") for part in relative.split("/")):
            continue
        modified = info.mtime or datetime.fromtimestamp(0, UTC)
        yield FileEntry(relative, f"{location.rstrip('/')}/{relative}", info.size or 0, modified.astimezone(UTC))


def list_names(location: str) -> list[str]:
    """The names of files and folders in a folder, hidden ones included; none for a missing one.

    Raises UserError where not even the bucket is there.
    """
    try:
        return [path for path, _ in list_infos(location, recursive=False)]
    except FileNotFoundError:
        if is_remote(location) and not exists(bucket := "/".join(location.split("/")[:3])):
            raise UserError(f"{location}: there is no bucket {bucket}, or not with these credentials") from None
        return []


def make_folder(location: str) -> None:
    """Creates a local folder and its parents; S3 needs none. Raises UserError where that is not possible."""
    if is_remote(location):
        return
    try:
        Path(location).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UserError(f"folder {location} cannot be made: {error}") from None


def delete_file(location: str) -> None:
    """Deletes one file; a missing one is no error, nor a name that is too long to be one, and a folder stays."""
    fs, path = filesystem_of(location)
    is_too_long = is_remote(location) and len(path.partition("/")[2].encode()) > _LONGEST_KEY
    if is_too_long or not (is_remote(location) or _local_type(path) == pafs.FileType.File):
        return
    with suppress(FileNotFoundError):
        reach(location, lambda: fs.delete_file(path))


def _local_type(path: str) -> pafs.FileType:
    try:
        return _LOCAL.get_file_info(path).type
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return pafs.FileType.NotFound
        raise


def delete_folder(location: str) -> None:
    """Deletes a folder with all that is in it; a missing one is no error."""
    fs, path = filesystem_of(location)
    if file_type(location) == "folder":
        with suppress(FileNotFoundError):
            reach(location, lambda: fs.delete_dir(path))
