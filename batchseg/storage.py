"""Files on this machine or under s3://, through pyarrow.fs: read, write atomically, list, delete.

A location is a plain string: a local path (relative ones count from the working directory) or `s3://bucket/key`.
"""

import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import pyarrow.fs as pafs

from batchseg.errors import UserError

_SCHEMES = ("s3",)


@dataclass(frozen=True)
class FileEntry:
    """One listed file. `path` is relative to the listed folder, with `/` between its parts; `modified` is in UTC."""

    path: str
    location: str
    size_bytes: int
    modified: datetime


def is_remote(location: str) -> bool:
    """True for s3:// locations."""
    return "://" in location


def to_absolute(location: str | os.PathLike[str]) -> str:
    """The same location without dependence on the working directory; a trailing slash is dropped."""
    text = os.fspath(location)
    if not is_remote(text):
        return os.path.abspath(os.path.expanduser(text))
    _filesystem(text)
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


@lru_cache(maxsize=8)
def _s3_filesystem(endpoint: str | None) -> pafs.FileSystem:
    if endpoint is None:
        return pafs.S3FileSystem()
    return pafs.S3FileSystem(endpoint_override=endpoint)


def _filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    if not is_remote(location):
        return _LOCAL, os.path.abspath(os.path.expanduser(location))
    scheme, _, path = location.partition("://")
    if scheme not in _SCHEMES:
        raise UserError(f"{location}: unknown scheme {scheme}://; allowed are a local path and s3://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _s3_filesystem(endpoint), path


_LOCAL = pafs.LocalFileSystem()


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a location, and the path in it."""
    return _filesystem(location)


def read_bytes(location: str) -> bytes:
    """The whole file. Raises FileNotFoundError, PermissionError or another OSError."""
    fs, path = _filesystem(location)
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read())


def read_text(location: str) -> str:
    """The whole file as UTF-8."""
    return read_bytes(location).decode("utf-8")


def write_atomic(location: str, data: bytes | str, staging: str | None = None) -> None:
    """Writes `data` so that a reader sees the old file or the new one, never a part.

    On a local disk it goes to a temporary name and is renamed (in `staging`, a folder on the same disk, so that what a
    killed process leaves lies in one place; without it beside the target). On S3 one PUT is atomic already.
    """
    payload = data.encode() if isinstance(data, str) else data
    fs, path = _filesystem(location)
    if is_remote(location):
        with fs.open_output_stream(path) as stream:
            stream.write(payload)
        return
    folder = Path(path).parent
    temporary = Path(staging or folder) / f".{uuid.uuid4().hex}.tmp"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(payload)
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_type(location: str) -> str:
    """`file`, `folder` or `missing`. An S3 prefix with something under it is a folder."""
    fs, path = _filesystem(location)
    kind = fs.get_file_info(path).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(kind, "missing")


def exists(location: str) -> bool:
    """True if there is a file or a folder."""
    return file_type(location) != "missing"


def list_files(location: str, *, recursive: bool = True, hidden: bool = False) -> Iterator[FileEntry]:
    """Yields the files under a folder in the order of their paths.

    hidden: also those with a part of the path that starts with a dot.
    Raises FileNotFoundError when the folder is missing, UserError for a name that is not UTF-8.
    """
    fs, root = _filesystem(location)
    root = root.rstrip("/")
    infos = fs.get_file_info(pafs.FileSelector(root, recursive=recursive))
    try:
        infos = sorted(infos, key=lambda entry: entry.path)
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: a file name under it is not UTF-8 ({error.object!r}); rename it") from None
    for info in infos:
        relative = info.path[len(root) + 1 :]
        if info.type != pafs.FileType.File:
            continue
        if not hidden and any(part.startswith(".") for part in relative.split("/")):
            continue
        modified = info.mtime or datetime.fromtimestamp(0, UTC)
        yield FileEntry(relative, posixpath.join(location, relative), info.size or 0, modified.astimezone(UTC))


def list_names(location: str) -> list[str]:
    """The names of files and folders in a folder, hidden ones included; none for a missing one."""
    fs, path = _filesystem(location)
    return [info.base_name for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))]


def make_folder(location: str) -> None:
    """Creates a local folder and its parents; S3 needs none. Raises UserError where that is not possible."""
    if is_remote(location):
        return
    try:
        Path(location).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UserError(f"folder {location} cannot be made: {error}") from None


def delete_file(location: str) -> None:
    """Deletes one file; a missing one is no error."""
    fs, path = _filesystem(location)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


def delete_folder(location: str) -> None:
    """Deletes a folder with all that is in it; a missing one is no error."""
    fs, path = _filesystem(location)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)
