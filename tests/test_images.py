"""The codec room: masks keep their ids, pictures come out as a person sees them, damage is an error of its own kind."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from batchseg import images
from batchseg.classes import parse_classes
from batchseg.errors import ImageError, UserError

ORIENTATION_TAG = 0x0112


def draw_picture(height: int = 40, width: int = 64) -> np.ndarray:
    """A smooth picture without any symmetry, so that a wrong turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 250 // width, y * 250 // height, (x + y) * 250 // (width + height)], -1).astype(np.uint8)
    picture[: height // 4, : width // 4] = 255
    return picture


def encode(picture: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(data: bytes, reduction: int = 1) -> np.ndarray:
    return images.decode_image(data, images.probe_image(data), reduction)


def find_difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def make_png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    tail = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(chunk) - 4) + chunk + tail + struct.pack(">I", 100) + b"IDAT"


# --- masks ---


def test_palette_png_keeps_its_indices() -> None:
    raw = np.array([[0, 2, 255], [2, 0, 0]], np.uint8)
    image = Image.fromarray(raw)
    image.putpalette(bytes(range(256)) * 3)
    assert image.mode == "P"
    decoded = images.decode_mask(encode(image, "PNG"), "m.png")
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == raw.tolist()


def test_palette_with_few_colours_keeps_its_indices() -> None:
    # Pillow packs two colours into one bit a pixel.
    raw = np.array([[0, 1, 1, 0, 1]], np.uint8)
    image = Image.fromarray(raw)
    image.putpalette([0, 0, 0, 128, 0, 0])
    data = encode(image, "PNG", bits=1)
    assert data[24] == 1
    assert images.decode_mask(data, "m.png").tolist() == raw.tolist()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 17), (64, 64)])
def test_masks_survive_encoding(shape: tuple[int, int]) -> None:
    palette = parse_classes([f"c{i}" for i in range(255)]).palette
    class_ids = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = images.encode_mask(class_ids, palette)
    assert np.array_equal(images.decode_mask(data, "m.png"), class_ids)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", shape[::-1])
        # Any viewer shows the colours of the classes.
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[class_ids])


def test_jpeg_mask_is_refused() -> None:
    # By what it is, not by its name.
    data = encode(np.zeros((4, 4), np.uint8), "JPEG")
    with pytest.raises(UserError, match=r"mask masks/1\.png is a JPEG: its values are not exact\. Store masks as PNG"):
        images.decode_mask(data, "masks/1.png")


def test_one_bit_mask() -> None:
    raw = np.array([[True, False, True]])
    data = encode(Image.fromarray(raw), "PNG")
    decoded = images.decode_mask(data, "m.png")
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_mask(file_format: str) -> None:
    raw = np.array([[0, 300, 65535]], np.uint16)
    decoded = images.decode_mask(encode(raw, file_format), "m")
    assert decoded.dtype == np.uint16
    assert decoded.tolist() == raw.tolist()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_grey_mask(file_format: str) -> None:
    raw = np.array([[0, 1, 2, 200, 255]], np.uint8)
    assert images.decode_mask(encode(raw, file_format), "m").tolist() == raw.tolist()


def test_alpha_of_a_mask_is_dropped() -> None:
    rgb = draw_picture(4, 4)
    rgba = np.dstack([rgb, np.full((4, 4), 7, np.uint8)])
    assert np.array_equal(images.decode_mask(encode(rgba, "PNG"), "m"), rgb)
    grey_alpha = Image.merge("LA", [Image.fromarray(rgb[..., 0]), Image.fromarray(rgb[..., 1])])
    assert np.array_equal(images.decode_mask(encode(grey_alpha, "PNG"), "m"), rgb[..., 0])


@pytest.mark.parametrize("data", [b"", b"not a mask", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_mask_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match=r"mask masks/0007\.png cannot be read"):
        images.decode_mask(data, "masks/0007.png")


def test_truncated_mask_is_named() -> None:
    data = images.encode_mask(
        np.random.default_rng(0).integers(0, 9, (90, 90), dtype=np.uint8), np.zeros((256, 3), np.uint8)
    )
    with pytest.raises(UserError, match=r"mask m\.png cannot be read"):
        images.decode_mask(data[: len(data) // 2], "m.png")


def test_pixel_limit_of_masks_is_checked_before_decoding() -> None:
    # There is nothing to decode: the file ends where its pixels should begin.
    with pytest.raises(UserError, match=r"mask masks/1\.png is 30000x30000; 250 megapixels are allowed"):
        images.decode_mask(make_png_header(30000, 30000), "masks/1.png")


def test_a_small_file_with_too_many_pixels_is_refused() -> None:
    # 256 megapixels, one bit each, in a few KB.
    row = zlib.compress(bytes(1 + 16000 // 8) * 16000, 1)
    header = b"IHDR" + struct.pack(">IIBBBBB", 16000, 16000, 1, 0, 0, 0, 0)
    chunks = [part + struct.pack(">I", zlib.crc32(part)) for part in (header, b"IDAT" + row, b"IEND")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(chunk) - 8) + chunk for chunk in chunks)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"mask m\.png is 16000x16000; 250 megapixels are allowed"):
            images.decode_mask(data, "m.png")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_mask_of_fractions_is_refused() -> None:
    data = encode(np.array([[0.5, 1.0]], np.float32), "TIFF")
    with pytest.raises(UserError, match=r"mask m\.tif holds float32 values; whole numbers from 0 to 65535"):
        images.decode_mask(data, "m.tif")


# --- pictures ---


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {} if file_format in ("PNG", "TIFF") else {"quality": 95}
    data = encode(draw_picture(), file_format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((64, 40, 3) if orientation >= 5 else (40, 64, 3))
    assert images.probe_image(data).size_hw == expected.shape[:2]
    assert find_difference(decode(data), expected) <= 3


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_a_reduced_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    data = encode(draw_picture(90, 130), "JPEG", exif=exif, quality=95)
    full, half = decode(data), decode(data, 2)
    assert half.shape[:2] == tuple(-(-side // 2) for side in full.shape[:2])
    shrunk = cv2.resize(full, half.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - half).mean() < 3


def test_orientation_beyond_the_standard_is_none() -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 9
    data = encode(draw_picture(), "JPEG", exif=exif)
    assert images.probe_image(data).orientation == 1
    assert decode(data).shape == (40, 64, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_modes_of_png(mode: str) -> None:
    image = Image.fromarray(draw_picture()).convert(mode)
    assert find_difference(decode(encode(image, "PNG")), np.asarray(image.convert("RGB"))) == 0


def test_transparency_is_dropped() -> None:
    picture = draw_picture()
    rgba = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
    for file_format in ("PNG", "TIFF"):
        assert find_difference(decode(encode(rgba, file_format)), picture) == 0


def test_sixteen_bits_become_eight() -> None:
    picture = draw_picture()
    grey = encode(picture[..., 0].astype(np.uint16) * 257, "PNG")
    assert find_difference(decode(grey), np.repeat(picture[..., :1], 3, axis=2)) == 0
    ok, color = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)
    assert ok
    assert find_difference(decode(color.tobytes()), picture) == 0


def test_cmyk_jpeg() -> None:
    data = encode(Image.fromarray(draw_picture()).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    assert find_difference(decode(data), expected) <= 3


def test_grey_jpeg() -> None:
    data = encode(Image.fromarray(draw_picture()).convert("L"), "JPEG", quality=95)
    picture = decode(data)
    assert picture.shape == (40, 64, 3)
    assert np.array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("size_hw", [(80, 160), (81, 163), (7, 9)])
def test_reduction_rounds_up(reduction: int, size_hw: tuple[int, int]) -> None:
    data = encode(draw_picture(*size_hw), "JPEG")
    assert decode(data, reduction).shape == (-(-size_hw[0] // reduction), -(-size_hw[1] // reduction), 3)


def test_only_jpeg_can_be_reduced() -> None:
    assert images.probe_image(encode(draw_picture(), "JPEG")).can_reduce
    assert not images.probe_image(encode(draw_picture(), "PNG")).can_reduce


# --- damage ---


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_picture(file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encode(noise, file_format)
    with pytest.raises(ImageError, match=r"damaged or cut off|cannot be decoded|not an image") as caught:
        decode(data[: int(len(data) * share)])
    assert caught.value.kind == "decode"


def test_truncated_jpeg_is_found_at_any_reduction() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encode(noise, "JPEG")
    header = images.probe_image(data)
    for reduction in (1, 2, 4, 8):
        with pytest.raises(ImageError, match=r"JPEG of \d+ bytes is damaged or cut off"):
            images.decode_image(data[: len(data) // 2], header, reduction)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"just some text, no picture", r"not an image that can be read \(26 bytes, begins with b'just som'\)"),
        (b"\xff\xd8\xff", "not an image that can be read"),
        (b"%PDF-1.7 x", "not an image that can be read"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        images.probe_image(data)
    assert caught.value.kind == "decode"


def test_pixel_limit_is_checked_before_decoding() -> None:
    data = encode(np.zeros((1000, 2000), np.uint8), "PNG")
    assert images.probe_image(data, 2.0).size_hw == (1000, 2000)
    with pytest.raises(ImageError, match=r"2000x1000 is 2 megapixels; --max-megapixels allows 1\.9") as caught:
        images.probe_image(data, 1.9)
    assert caught.value.kind == "too_large"


def test_header_alone_tells_the_size() -> None:
    # There is nothing to decode in it: the limit holds all the same.
    with pytest.raises(ImageError, match="30000x30000 is 900 megapixels") as caught:
        images.probe_image(make_png_header(30000, 30000))
    assert caught.value.kind == "too_large"
    assert images.probe_image(make_png_header(300, 200)).size_hw == (200, 300)
    jpeg = encode(draw_picture(200, 300), "JPEG")
    assert images.probe_image(jpeg[: len(jpeg) // 2]).size_hw == (200, 300)


# --- the rest ---


def test_encode_image() -> None:
    picture = draw_picture()
    assert find_difference(decode(images.encode_image(picture, ".png")), picture) == 0
    assert np.abs(decode(images.encode_image(picture, ".jpg")).astype(int) - picture).mean() < 2
    with pytest.raises(KeyError):
        images.encode_image(picture, ".gif")


@pytest.mark.parametrize("name", ["a.jpg", "b/c.JPEG", "x.y.png", "ü.TIF", "a.webp"])
def test_image_names(name: str) -> None:
    assert images.is_image_name(name)


@pytest.mark.parametrize("name", ["a.txt", "jpg", "a.png.txt", "dir.png/readme", "", "a."])
def test_other_names(name: str) -> None:
    assert not images.is_image_name(name)


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "ü.jpg"
    Image.fromarray(draw_picture()).save(path, quality=95)
    with Image.open(path) as image:
        assert find_difference(decode(path.read_bytes()), np.asarray(image)) <= 3


def test_transparent_pixels_of_a_gif_keep_their_colour() -> None:
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "GIF", transparency=1)
    np.testing.assert_array_equal(decode(buffer.getvalue()), palette[ids])
    with pytest.raises(ImageError, match=r"damaged|cannot be decoded|not an image"):
        decode(buffer.getvalue()[:-8])


def test_lab_colours_are_refused() -> None:
    image = Image.fromarray(np.zeros((4, 5, 3), np.uint8)).convert("LAB")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    with pytest.raises(ImageError, match="TIFF in LAB colours"):
        decode(buffer.getvalue())
