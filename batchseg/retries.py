"""Trying again what can pass, with growing waits: one policy for every read and write, here or on S3."""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 5
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 5.0
_FINAL_ERRNOS = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.EINVAL,
    errno.ELOOP, errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV,
})  # fmt: skip
_AWS_ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))? during")
_AWS_DENIED = frozenset({
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION_TOKEN", "INVALID_CLIENT_TOKEN_ID", "403",
})  # fmt: skip
_AWS_MISSING = frozenset({"NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "404"})

_T = TypeVar("_T")


def retry_io(call: Callable[[], _T], *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep) -> _T:
    """What call() returns, which is tried again after an OSError that can pass: throttling, resets, time-outs.

    The waits double from 0.2 s to 5 s, each shortened at random so that many workers do not return at once. `call` must
    be one that may happen twice. Raises FileNotFoundError and PermissionError, also for those of S3, at once.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except OSError as error:
            translated = _translate_error(error)
            if attempt == attempts or not _can_pass(translated):
                if translated is error:
                    raise
                raise translated from error
        sleep(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
    raise ValueError(f"attempts is {attempts}; at least 1 is needed")


def _can_pass(error: OSError) -> bool:
    return not isinstance(error, (FileNotFoundError, PermissionError)) and error.errno not in _FINAL_ERRNOS


def _translate_error(error: OSError) -> OSError:
    """pyarrow tells most S3 errors by their text only."""
    found = _AWS_ERROR.findall(str(error))
    if not found:
        return error
    if _AWS_DENIED & set(found[-1]):
        return PermissionError(errno.EACCES, str(error))
    if _AWS_MISSING & set(found[-1]):
        return FileNotFoundError(errno.ENOENT, str(error))
    return error
