"""A decoder that dies over a poisoned picture: a PNG with the text `poison` in it."""

import os
import signal
from collections.abc import Callable

from batchseg.images import ImageHeader, RgbArray, decode_image


def make_deadly_decoder() -> Callable[[bytes, ImageHeader, int], RgbArray]:
    """A decoder that takes its process along over a picture with a certain text in it."""

    def decode(data: bytes, header: ImageHeader, reduction: int = 1) -> RgbArray:
        if b"poison" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(data, header, reduction)

    return decode
