"""The only codec room: encoded bytes <-> RGB uint8 arrays, mask PNG <-> class ids.

Pictures are decoded by OpenCV. Masks are read and written by Pillow, because OpenCV expands a palette to colours and
so loses the class ids.
"""

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from batchseg.classes import MaskArray, UintArray
from batchseg.errors import ImageError, UserError

# Pillow's own limit only warns; ours is checked from the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm",
    ".pnm", ".avif",
})  # fmt: skip
DEFAULT_MAX_MEGAPIXELS = 250.0

_REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_EXIF_ORIENTATION = 0x0112
_LOSSY_FORMATS = frozenset({"JPEG", "MPO"})

RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes say. `size_hw` is the size a person sees, EXIF orientation applied. mode: as in Pillow."""

    format: str
    size_hw: tuple[int, int]
    orientation: int
    mode: str = "RGB"

    @property
    def can_reduce(self) -> bool:
        """Only JPEG scales down while decoding (in the DCT)."""
        return self.format in _LOSSY_FORMATS


def is_image_name(name: str) -> bool:
    """True if the name ends like a picture that can be decoded."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in IMAGE_SUFFIXES


def probe_image(data: bytes, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> ImageHeader:
    """Reads format, size and orientation from the header; decodes nothing.

    Raises ImageError `decode` for what is no image, `too_large` above the pixel limit.
    """
    if not data:
        raise ImageError("decode", "the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            header_format, mode = image.format or "unknown", image.mode
            # Not image.getexif(): for PNG it decodes the whole picture, before the limit below is checked.
            orientation = int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    except MemoryError as error:
        raise ImageError("oom", f"no memory to read the header of {len(data)} bytes") from error
    except Exception as error:  # Pillow raises many types on bad bytes: SyntaxError, struct.error, OSError, ...
        reason = "" if isinstance(error, UnidentifiedImageError) else f"; {type(error).__name__}: {error}"
        raise ImageError(
            "decode", f"not an image that can be read ({len(data)} bytes, begins with {data[:8]!r}{reason})"
        ) from error
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise ImageError(
            "too_large", f"{width}x{height} is {megapixels:.0f} megapixels; --max-megapixels allows {max_megapixels:g}"
        )
    if mode == "LAB":
        raise ImageError("decode", f"{header_format} in LAB colours, which would be read wrongly; convert it to RGB")
    # TIFF: Pillow gives the turned size, and OpenCV turns the pixels whatever the flag says.
    if orientation not in range(1, 9) or header_format == "TIFF":
        orientation = 1
    size_hw = (width, height) if orientation >= 5 else (height, width)
    return ImageHeader(header_format, size_hw, orientation, mode)


def decode_image(data: bytes, header: ImageHeader, reduction: int = 1) -> RgbArray:
    """Bytes -> RGB uint8 HxWx3, EXIF orientation applied.

    reduction: 1, 2, 4 or 8; each side becomes ceil(side / reduction). Transparency is dropped, 16 bits become 8.
    Raises ImageError `decode` when the pixels are damaged or cut off.
    """
    if header.format == "GIF" or (header.format, header.mode) == ("TIFF", "RGBA"):
        return _decode_with_pillow(data, header)
    flags = _REDUCED_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("decode", f"{header.format} cannot be decoded: {str(error).strip()}") from error
    if image_bgr is None:
        raise ImageError("decode", f"{header.format} of {len(data)} bytes is damaged or cut off")
    image_rgb = _apply_orientation(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB), header.orientation)
    expected_hw = tuple(-(-side // reduction) for side in header.size_hw)
    if image_rgb.shape[:2] != expected_hw:
        raise ImageError("decode", f"{header.format} decodes to {image_rgb.shape[:2]}, its header says {expected_hw}")
    return image_rgb


def _decode_with_pillow(data: bytes, header: ImageHeader) -> RgbArray:
    """For what OpenCV reads otherwise than it should: it blends what is transparent into a background."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # as in probe_image
        raise ImageError("decode", f"{header.format} cannot be decoded: {type(error).__name__}: {error}") from error


def _apply_orientation(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """EXIF 2.32, tag 0x0112: 2-4 mirror or turn by 180 degrees, 5-8 swap the axes first."""
    if orientation >= 5:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


def decode_mask(data: bytes, source: str) -> UintArray:
    """Mask file -> raw values: HxW (uint8 or uint16; palette indices are kept) or HxWx3 for an RGB-coded mask.

    Raises UserError naming `source` for a file that is no mask: unreadable, or JPEG, whose values are not exact.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in _LOSSY_FORMATS:
                raise UserError(f"mask {source} is a JPEG: its values are not exact. Store masks as PNG.")
            if image.width * image.height > DEFAULT_MAX_MEGAPIXELS * 1e6:
                raise UserError(
                    f"mask {source} is {image.width}x{image.height}; {DEFAULT_MAX_MEGAPIXELS:g} megapixels are allowed"
                )
            if image.mode in ("RGBA", "CMYK", "YCbCr"):
                raw = np.asarray(image.convert("RGB"))
            elif image.mode == "LA":
                raw = np.asarray(image)[..., 0]
            else:
                raw = np.asarray(image)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # as in probe_image
        raise UserError(f"mask {source} cannot be read: {type(error).__name__}: {error}") from error
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8)
    if not np.issubdtype(raw.dtype, np.integer) or raw.min(initial=0) < 0 or raw.max(initial=0) > 0xFFFF:
        raise UserError(f"mask {source} holds {raw.dtype} values; whole numbers from 0 to 65535 are allowed")
    return raw.astype(np.uint16) if raw.dtype.itemsize > 2 else raw


def encode_mask(class_ids: MaskArray, palette: MaskArray) -> bytes:
    """uint8 HxW -> palette PNG whose pixels are the class ids. palette: uint8 256x3, RGB."""
    image = Image.fromarray(class_ids, mode="L")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_image(image_rgb: RgbArray, suffix: str) -> bytes:
    """RGB uint8 -> `.png` (fast compression) or `.jpg` (quality 90)."""
    parameters = {".png": [cv2.IMWRITE_PNG_COMPRESSION, 1], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90]}[suffix]
    ok, data = cv2.imencode(suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), parameters)
    if not ok:
        raise ImageError("write", f"cannot encode {image_rgb.shape} as {suffix}")
    return bytes(data.tobytes())
