"""Places that let nobody in: wrong credentials, endpoint or bucket, a folder that is not allowed."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from batchseg.errors import StoppedError, UserError
from batchseg.retries import retry_io

_AWS_HEAD = re.compile(r"^.*?(?=AWS Error )", re.DOTALL)
_answered: set[str] = set()  # buckets that have let this process in: what fails there later is no wrong address

_T = TypeVar("_T")


def find_endpoint() -> str | None:
    """The S3 server that the environment names; None is Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def reach(location: str, call: Callable[[], _T]) -> _T:
    """retry_io(call); an error that pyarrow raised gets the location as its `filename`, as Python's own have one."""
    is_remote = "://" in location
    try:
        found = retry_io(call)
    except OSError as error:
        if error.filename is not None or not (is_remote or error.errno):
            raise
        text = _AWS_HEAD.sub("", error.strerror or str(error))
        # OSError() makes itself a PermissionError or a FileNotFoundError by its number.
        raise OSError(error.errno or errno.EIO, text, location) from error
    if is_remote:
        _answered.add(_bucket_of(location))
    return found


def _bucket_of(location: str) -> str:
    return location.partition("://")[2].partition("/")[0]


def describe_refusal(error: BaseException) -> UserError | StoppedError | None:
    """What a person is told where an error says that a place lets nobody in; None for any other error.

    A StoppedError where this process had been let in before: the store is down, or credentials have run out.
    """
    for cause in _list_causes(error):
        if isinstance(cause, OSError) and isinstance(cause.filename, str):
            return _describe_remote(cause) if "://" in cause.filename else _describe_local(cause)
    return None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, through Ray's wrappers."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _describe_local(error: OSError) -> UserError | None:
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UserError(f"{error.filename} may not be used: {error.strerror}")
    return None


def _describe_remote(error: OSError) -> UserError | StoppedError | None:
    text, is_missing = f"{error.filename} cannot be used: {error.strerror}", isinstance(error, FileNotFoundError)
    if is_missing and "NO_SUCH_BUCKET" not in str(error):
        return None
    if _bucket_of(error.filename) in _answered and not is_missing:
        return StoppedError(f"{text}. What is finished stays; the same command goes on")
    return UserError(
        f"{text}. Look at the name of the bucket, at AWS_ENDPOINT_URL ({find_endpoint() or 'not set'}), and at the "
        f"credentials that AWS_ACCESS_KEY_ID, AWS_PROFILE or this machine give"
    )
