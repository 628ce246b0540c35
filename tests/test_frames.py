"""Unusual pictures: of animations and many pages the first is used and all are counted; odd modes come out right."""

import io

import numpy as np
import pytest
from PIL import Image

from batchseg import images
from batchseg.errors import ImageError


def draw_picture(shift: int = 0, height: int = 40, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 250 // width, y * 250 // height, (x + y) * 250 // (width + height)], -1).astype(np.uint8)
    return np.roll(picture, shift, axis=1)


FRAMES = [Image.fromarray(draw_picture(shift)) for shift in (0, 9, 18)]


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, file_format, **options)  # Pillow leaves options behind in the image
    return buffer.getvalue()


def encode_frames(file_format: str, **options: object) -> bytes:
    return encode(
        FRAMES[0], file_format, save_all=True, append_images=[image.copy() for image in FRAMES[1:]], **options
    )


def decode(data: bytes) -> np.ndarray:
    return images.decode_image(data, images.probe_image(data))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("GIF", {}, 30),  # 256 colours
        ("WEBP", {"lossless": True}, 0),
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 100}, 8),
        ("MPO", {"quality": 95}, 12),
    ],
)
def test_the_first_frame_is_used_and_all_are_counted(
    file_format: str, options: dict[str, object], tolerance: int
) -> None:
    data = encode_frames(file_format, **options)
    header = images.probe_image(data)
    assert (header.frames, header.size_hw) == (3, (40, 64))
    assert difference(decode(data), np.asarray(FRAMES[0])) <= tolerance
    assert difference(decode(data), np.asarray(FRAMES[1])) > 100


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "JPEG", "BMP", "PPM", "JPEG2000"])
def test_a_single_picture_has_one_frame(file_format: str) -> None:
    assert images.probe_image(encode(FRAMES[0], file_format)).frames == 1


def test_pages_of_different_sizes() -> None:
    pages = [Image.fromarray(draw_picture(0, 20, 30)), Image.fromarray(draw_picture(0, 90, 70))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert (images.probe_image(data).frames, images.probe_image(data).size_hw) == (2, (20, 30))
    assert np.array_equal(decode(data), np.asarray(pages[0]))


def test_the_animation_counts_not_the_still_picture_before_it() -> None:
    """APNG may begin with what a viewer without animation shows."""
    data = encode(FRAMES[2], "PNG", save_all=True, append_images=[f.copy() for f in FRAMES[:2]], default_image=True)
    assert np.array_equal(decode(data), np.asarray(FRAMES[0]))
    assert images.probe_image(data).frames == 3


def test_damage_behind_the_first_page_does_not_matter() -> None:
    pages = [Image.fromarray(draw_picture(shift, 200, 300)) for shift in range(3)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    first = encode(pages[0], "TIFF")
    cut = data[: len(first) + 100]
    assert images.probe_image(cut).frames == 1
    assert np.array_equal(decode(cut), np.asarray(pages[0]))


def test_frames_are_not_counted_above_the_pixel_limit() -> None:
    with pytest.raises(ImageError) as caught:
        images.probe_image(encode_frames("TIFF"), max_megapixels=0.001)
    assert caught.value.kind == "too_large"


GREY = FRAMES[0].getchannel(0)
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("image", "file_format", "options", "tolerance"),
    [
        (FRAMES[0].convert("CMYK"), "JPEG", {"quality": 98}, 4),
        (FRAMES[0].convert("CMYK"), "TIFF", {}, 0),
        (DEEP, "PNG", {}, 0),
        (DEEP, "TIFF", {}, 0),
        (FRAMES[0].quantize(16), "PNG", {"transparency": 3}, 0),
        (FRAMES[0].quantize(16), "TIFF", {}, 0),
        (Image.merge("LA", [GREY, GREY]), "PNG", {}, 0),
        (Image.merge("RGBA", [*FRAMES[0].split(), GREY]), "PNG", {}, 0),
        (Image.merge("RGBA", [*FRAMES[0].split(), GREY]), "WEBP", {"lossless": True, "exact": True}, 0),
        (FRAMES[0].convert("1"), "TIFF", {}, 0),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_odd_modes(image: Image.Image, file_format: str, options: dict[str, object], tolerance: int) -> None:
    """Transparency is dropped, 16 bits become 8, palettes and CMYK become RGB."""
    expected = GREY.convert("RGB") if image is DEEP else image.convert("RGB")
    assert difference(decode(encode(image, file_format, **options)), np.asarray(expected)) <= tolerance


def test_fractions_are_no_picture() -> None:
    with pytest.raises(ImageError, match="TIFF") as caught:
        decode(encode(Image.fromarray(np.asarray(GREY).astype(np.float32) / 255), "TIFF"))
    assert caught.value.kind == "decode"
