"""Where each pixel goes, and back."""

import io
import itertools
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from batchseg import geometry as geo
from batchseg.errors import ImageError
from batchseg.images import ImageHeader, decode_image

SIZES_HW = [(1, 1), (1, 97), (97, 1), (7, 5), (31, 33), (64, 96), (101, 67), (123, 250), (240, 11)]
GEOMETRIES = [
    geo.Geometry(size_hw, fit, stride)
    for size_hw, fit, stride in itertools.product([(64, 96), (45, 77), (1, 1)], ["resize", "letterbox"], [16, 32])
]


def draw_picture(height: int, width: int) -> np.ndarray:
    """A smooth picture, so that two ways of shrinking it can be compared."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / width * 9), 128 + 100 * np.cos(y / height * 7), 255 * x / width]
    return np.stack(waves, -1).astype(np.uint8)


def encode(image_rgb: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_rgb).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size_hw", "stride", "canvas_hw"),
    [((360, 480), 32, (384, 480)), ((64, 64), 16, (64, 64)), ((1, 33), 32, (32, 64))],
)
def test_canvas_is_a_multiple_of_the_stride(size_hw: tuple[int, int], stride: int, canvas_hw: tuple[int, int]) -> None:
    assert geo.Geometry(size_hw, "resize", stride).canvas_hw == canvas_hw


def test_plan_is_pure() -> None:
    geometry = geo.Geometry((64, 96), "letterbox", 32)
    plan = geo.make_plan((101, 67), geometry, can_reduce=True)
    assert plan == geo.make_plan((101, 67), geo.Geometry((64, 96), "letterbox", 32), can_reduce=True)
    assert hash(plan) == hash(geo.make_plan((101, 67), geometry, can_reduce=True))
    with pytest.raises(AttributeError):
        plan.reduction = 2  # type: ignore[misc]


def test_json_round_trip() -> None:
    for geometry in GEOMETRIES:
        assert geo.Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_size_fits_and_comes_back(geometry: geo.Geometry) -> None:
    rng = np.random.default_rng(0)
    for size_hw in SIZES_HW:
        plan = geo.make_plan(size_hw, geometry)
        assert plan.image_hw == size_hw
        assert plan.canvas_hw == geometry.canvas_hw
        assert all(1 <= side <= limit for side, limit in zip(plan.content_hw, geometry.size_hw, strict=True))
        image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        canvas = geo.fit_image(image, plan)
        assert (canvas.shape, canvas.dtype) == ((*plan.canvas_hw, 3), np.uint8)
        mask = rng.integers(0, 9, size_hw, dtype=np.uint8)
        fitted = geo.fit_mask(mask, plan)
        assert fitted.shape == plan.canvas_hw
        height, width = plan.content_hw
        # Only the padding is ignored, all of it, and no id is invented.
        assert (fitted[height:] == 255).all()
        assert (fitted[:, width:] == 255).all()
        assert set(np.unique(fitted[:height, :width])) <= set(np.unique(mask))
        restored = geo.restore_mask(fitted, plan)
        assert (restored.shape, restored.dtype) == (size_hw, np.uint8)
        assert set(np.unique(restored)) <= set(np.unique(mask))
        if size_hw[0] <= height and size_hw[1] <= width:
            # Enlarged and shrunk again: every pixel finds its own copy.
            assert np.array_equal(restored, mask)


@pytest.mark.parametrize("fit", ["resize", "letterbox"])
def test_masks_are_not_shifted(fit: geo.Fit) -> None:
    geometry = geo.Geometry((45, 77), fit, 32)
    for size_hw in [(90, 154), (123, 250), (97, 99), (201, 203)]:
        plan = geo.make_plan(size_hw, geometry)
        for axis, side in enumerate(size_hw):
            ramp = np.arange(side, dtype=np.uint8)
            mask = np.broadcast_to(ramp if axis else ramp[:, None], size_hw).copy()
            error = geo.restore_mask(geo.fit_mask(mask, plan), plan).astype(int) - mask
            step = side / plan.content_hw[axis]
            assert abs(error).max() <= step / 2 + 1
            assert abs(error.mean()) <= 0.5


def test_equal_size_is_identity() -> None:
    rng = np.random.default_rng(1)
    geometry = geo.Geometry((37, 53), "resize", 32)
    plan = geo.make_plan((37, 53), geometry)
    mask = rng.integers(0, 256, (37, 53), dtype=np.uint8)
    assert np.array_equal(geo.restore_mask(geo.fit_mask(mask, plan), plan), mask)
    image = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    assert np.array_equal(geo.fit_image(image, plan)[:37, :53], image)


def test_padding_of_the_picture_mirrors_it() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    canvas = geo.fit_image(image, geo.make_plan((4, 6), geo.Geometry((4, 6), "resize", 8)))
    assert canvas.shape == (8, 8, 3)
    assert np.array_equal(canvas[4], canvas[2])
    assert np.array_equal(canvas[:, 6], canvas[:, 4])


@pytest.mark.parametrize("size_hw", [(100, 100), (50, 400), (480, 37), (1000, 999), (3, 5)])
def test_letterbox_keeps_the_aspect(size_hw: tuple[int, int]) -> None:
    plan = geo.make_plan(size_hw, geo.Geometry((64, 96), "letterbox", 32))
    height, width = plan.content_hw
    assert height == 64 or width == 96
    scale = min(64 / size_hw[0], 96 / size_hw[1])
    assert abs(height - size_hw[0] * scale) <= 0.5
    assert abs(width - size_hw[1] * scale) <= 0.5


def test_resize_takes_the_whole_size() -> None:
    assert geo.make_plan((50, 400), geo.Geometry((64, 96), "resize", 32)).content_hw == (64, 96)


@pytest.mark.parametrize(
    ("size_hw", "wanted_hw", "reduction"),
    [
        ((800, 800), (100, 100), 8),
        ((799, 800), (100, 100), 4),
        ((400, 900), (100, 100), 4),
        ((200, 200), (100, 100), 2),
        ((199, 4000), (100, 100), 1),
        ((10, 10), (100, 100), 1),
    ],
)
def test_choose_reduction(size_hw: tuple[int, int], wanted_hw: tuple[int, int], reduction: int) -> None:
    assert geo.choose_reduction(size_hw, wanted_hw) == reduction


def test_only_jpeg_is_reduced() -> None:
    geometry = geo.Geometry((60, 80), "resize", 32)
    picture = draw_picture(480, 640)
    assert geo.fit_encoded(encode(picture, "JPEG"), geometry).plan.reduction == 8
    fitted = geo.fit_encoded(encode(picture, "PNG"), geometry)
    assert fitted.plan.reduction == 1
    assert np.array_equal(fitted.decoded, picture)


@pytest.mark.parametrize("size_hw", [(1200, 1600), (1201, 1607), (700, 913)])
def test_reduced_decoding_sees_nearly_the_same(size_hw: tuple[int, int]) -> None:
    geometry = geo.Geometry((150, 200), "resize", 32)
    data = encode(draw_picture(*size_hw), "JPEG")
    fitted = geo.fit_encoded(data, geometry)
    assert fitted.plan.reduction in (4, 8)
    assert fitted.decoded.shape[0] >= 150
    assert fitted.decoded.shape[1] >= 200
    full_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert full_bgr is not None
    full = geo.fit_image(np.ascontiguousarray(full_bgr[..., ::-1]).astype(np.uint8), fitted.plan)
    difference = np.abs(full.astype(int) - fitted.canvas)
    assert difference.mean() < 1.0
    assert difference.max() < 16


def test_fit_encoded_refuses_what_is_no_image_or_too_large() -> None:
    geometry = geo.Geometry((16, 16), "resize", 16)
    with pytest.raises(ImageError) as caught:
        geo.fit_encoded(b"hello", geometry)
    assert caught.value.kind == "decode"
    with pytest.raises(ImageError) as caught:
        geo.fit_encoded(encode(draw_picture(100, 200), "JPEG"), geometry, max_megapixels=0.01)
    assert caught.value.kind == "too_large"


# --- tiles ---

TILES = geo.Geometry((45, 77), "tile", 32, 20)


def test_a_tile_is_a_multiple_of_the_stride_and_so_is_its_overlap() -> None:
    assert TILES.canvas_hw == (64, 96)
    # On the grid of the stride every tile pools the pixels that the whole image would.
    assert [geo.Geometry((128, 160), "tile", 32, wanted).tile_overlap for wanted in (0, 1, 32, 33, 64)] == [
        0, 32, 32, 64, 64,
    ]  # fmt: skip
    # At most half of the smaller side, where a third tile would come in.
    assert geo.Geometry((96, 160), "tile", 32, 48).tile_overlap == 32
    assert geo.Geometry((32, 32), "tile", 32, 16).tile_overlap == 0


def test_a_bundle_from_before_tiles_is_read() -> None:
    old = {"size": [360, 480], "fit": "letterbox", "stride": 32, "restore": "nearest"}
    assert geo.Geometry.from_json(old) == geo.Geometry((360, 480), "letterbox", 32)
    assert geo.Geometry((360, 480), "letterbox", 32).to_json() == old
    assert geo.Geometry.from_json(json.loads(json.dumps(TILES.to_json()))) == TILES
    assert TILES.to_json()["overlap"] == 20


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_tiles_leave_the_image_as_it_is(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    plan = geo.make_plan(size_hw, TILES, can_reduce=True)
    assert (plan.reduction, plan.content_hw, plan.canvas_hw) == (1, size_hw, size_hw)
    assert plan.grid is not None
    assert (plan.grid.tile_hw, plan.grid.overlap) == ((64, 96), 32)
    image, mask = rng.integers(0, 256, (*size_hw, 3), np.uint8), rng.integers(0, 9, size_hw, np.uint8)
    # Held once: nothing is copied on the way in or out.
    assert geo.fit_image(image, plan) is image
    for function in (geo.fit_mask, geo.restore_mask, geo.restore_scores):
        assert np.shares_memory(function(mask, plan), mask)
        assert np.array_equal(function(mask, plan), mask)


def test_jpeg_is_decoded_in_full_for_tiles() -> None:
    fitted = geo.fit_encoded(encode(draw_picture(480, 640), "JPEG"), TILES)
    assert fitted.canvas.shape == (480, 640, 3)
    assert fitted.canvas is fitted.decoded


def test_scores_go_where_their_ids_go() -> None:
    geometry = geo.Geometry((45, 77), "letterbox", 32)
    plan = geo.make_plan((123, 250), geometry)
    ids = np.random.default_rng(0).integers(0, 200, plan.canvas_hw, np.uint8)
    assert np.array_equal(geo.restore_scores(ids + 50, plan), geo.restore_mask(ids, plan) + 50)


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 40), (16, 24), (17, 25), (50, 12), (51, 80)])
def test_crop_center(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*size_hw, 3), np.uint8), rng.integers(0, 9, size_hw, np.uint8)
    cropped, ids = geo.crop_center(image, mask, (16, 24))
    assert (cropped.shape, ids.shape) == ((16, 24, 3), (16, 24))
    height, width = min(16, size_hw[0]), min(24, size_hw[1])
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    assert np.array_equal(cropped[:height, :width], image[top : top + height, left : left + width])
    assert np.array_equal(ids[:height, :width], mask[top : top + height, left : left + width])
    assert (ids[height:] == 255).all()
    assert (ids[:, width:] == 255).all()
    if height > 1 and height < 16:
        assert np.array_equal(cropped[height], cropped[height - 2])


def test_another_decoder_may_be_given() -> None:
    """Such as one in a process that may die."""
    asked = []

    def decode(data: bytes, header: ImageHeader, reduction: int) -> np.ndarray:
        asked.append((header.size_hw, reduction))
        return decode_image(data, header, reduction)

    data, geometry = encode(draw_picture(480, 640), "JPEG"), geo.Geometry((60, 80), "resize", 32)
    assert np.array_equal(geo.fit_encoded(data, geometry, decode=decode).canvas, geo.fit_encoded(data, geometry).canvas)
    assert asked == [((480, 640), 8)]
