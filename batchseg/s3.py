"""The client of pyarrow for S3: its settings, and a read that notices a cut answer."""

from contextlib import suppress
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

# The SDK's own 1 s and 3 s are too short for a store under load, such as when it joins the parts of an upload.
_CONNECT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 20.0
# Of one request; retry_io tries the whole operation again.
_SDK_ATTEMPTS = 3
_END_MARKS = (0xA5, 0x5A)  # neither JPEG nor PNG ends so


@lru_cache(maxsize=8)
def connect_s3(
    endpoint: str | None, unknown_bucket: str | None, settings: tuple[tuple[str, str], ...]
) -> pafs.FileSystem:
    """One client for each state of the AWS_* variables (`settings`). A bucket without a set region is asked for it."""
    region = None
    if unknown_bucket:
        with suppress(OSError):  # then the region that the SDK finds in ~/.aws or on the machine
            region = pafs.resolve_s3_region(unknown_bucket)
    region = region or dict(settings).get("AWS_REGION") or dict(settings).get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        # One PUT for up to 10 MB instead of the three requests of a multi-part upload.
        allow_delayed_open=True,
        # Not False: then an upload whose second part fails is completed on closing, and a short object appears.
        background_writes=True,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_SDK_ATTEMPTS),
    )


def read_whole(stream: pa.NativeFile, location: str) -> bytes:
    """pyarrow takes an answer that was cut for a whole one, and the missing end for whatever its memory held.

    So the last byte is set to a mark beforehand. A mark that is still there is looked at with another one: the file may
    really end in it.
    """
    size = stream.size()
    for mark in _END_MARKS:
        data = bytearray(size)
        data[-1:] = bytes([mark])[:size]
        stream.seek(0)
        stream.readinto(data)
        if not size or data[-1] != mark:
            return bytes(data)
    raise OSError(f"{location}: fewer than {size} bytes arrived")
