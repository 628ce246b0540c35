"""Where each pixel goes: one pure function of image size and bundle, used by training, evaluate and segment alike.

image (its own size) --decode, resize--> content --pad to the stride--> canvas (what the model sees), and back.
With `fit: tile` the canvas is the image itself, and the model sees it in pieces (tiling.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from batchseg.classes import IGNORE_ID, MaskArray
from batchseg.images import DEFAULT_MAX_MEGAPIXELS, ImageHeader, RgbArray, decode_image, probe_image
from batchseg.tiling import TileGrid

Fit = Literal["resize", "letterbox", "tile"]
Decode = Callable[[bytes, ImageHeader, int], RgbArray]


@dataclass(frozen=True)
class Geometry:
    """How a bundle sees images. `resize` stretches to `size_hw`; `letterbox` keeps the aspect ratio inside it; `tile`
    leaves images as they are and moves a window of that size over them.

    overlap: pixels that neighbouring tiles share at least; used by `tile` only, through `tile_overlap`.
    """

    size_hw: tuple[int, int]
    fit: Fit
    stride: int
    overlap: int = 0

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Size of every model input, which for `tile` is a tile: `size_hw` rounded up to multiples of `stride`."""
        height, width = self.size_hw
        return -(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride

    @property
    def tile_overlap(self) -> int:
        """`overlap` rounded up to the stride, but at most half of the smaller side of a tile.

        On the grid of the stride a tile pools its pixels as the whole image would.
        """
        most = min(self.canvas_hw) // 2 // self.stride * self.stride
        return min(most, -(-self.overlap // self.stride) * self.stride)

    def to_json(self) -> dict[str, Any]:
        tile = {"overlap": self.overlap} if self.fit == "tile" else {}
        return {"size": list(self.size_hw), "fit": self.fit, "stride": self.stride, "restore": "nearest", **tile}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Geometry":
        """Bundles made before there were tiles name no overlap."""
        return cls(tuple(data["size"]), data["fit"], int(data["stride"]), int(data.get("overlap", 0)))


@dataclass(frozen=True)
class Plan:
    """The way of one image: decoded at 1/reduction, resized to `content_hw`, padded below and right to `canvas_hw`.

    grid: the tiles that the model sees; None where it sees the canvas as a whole. With a grid the canvas is the image:
    it is padded tile by tile, so that a large one is held once.
    """

    image_hw: tuple[int, int]
    reduction: int
    content_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    grid: TileGrid | None = None


@dataclass(frozen=True)
class FittedImage:
    """canvas: RGB uint8 of plan.canvas_hw. decoded: RGB uint8 at 1/plan.reduction, as it came out of the decoder."""

    canvas: RgbArray
    decoded: RgbArray
    plan: Plan


def make_plan(size_hw: tuple[int, int], geometry: Geometry, *, can_reduce: bool = False) -> Plan:
    """The plan for an image of this size. can_reduce: its codec can scale down while decoding (JPEG)."""
    if geometry.fit == "tile":
        return Plan(size_hw, 1, size_hw, size_hw, TileGrid(size_hw, geometry.canvas_hw, geometry.tile_overlap))
    content_hw = geometry.size_hw
    if geometry.fit == "letterbox":
        scale = min(geometry.size_hw[0] / size_hw[0], geometry.size_hw[1] / size_hw[1])
        content_hw = (max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale)))
    reduction = choose_reduction(size_hw, content_hw) if can_reduce else 1
    return Plan(size_hw, reduction, content_hw, geometry.canvas_hw)


def choose_reduction(size_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> int:
    """The strongest of 8, 4, 2, 1 that still leaves at least `wanted_hw` pixels, so that nothing is enlarged again."""
    for reduction in (8, 4, 2):
        if size_hw[0] >= wanted_hw[0] * reduction and size_hw[1] >= wanted_hw[1] * reduction:
            return reduction
    return 1


def fit_encoded(
    data: bytes,
    geometry: Geometry,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    *,
    decode: Decode = decode_image,
) -> FittedImage:
    """Encoded picture -> what the model sees. The one way in for training, evaluate and segment.

    decode: as images.decode_image, where another process does it. Raises ImageError (`decode`, `too_large`).
    """
    header: ImageHeader = probe_image(data, max_megapixels)
    plan = make_plan(header.size_hw, geometry, can_reduce=header.can_reduce)
    decoded = decode(data, header, plan.reduction)
    return FittedImage(fit_image(decoded, plan), decoded, plan)


def fit_image(image_rgb: RgbArray, plan: Plan) -> RgbArray:
    """RGB uint8 of any size -> RGB uint8 of plan.canvas_hw. The padding mirrors the picture, so it looks like one."""
    content = image_rgb
    if image_rgb.shape[:2] != plan.content_hw:
        shrinks = image_rgb.shape[0] >= plan.content_hw[0] and image_rgb.shape[1] >= plan.content_hw[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        content = cv2.resize(image_rgb, plan.content_hw[::-1], interpolation=interpolation)
    return _pad(content, plan.canvas_hw, cv2.BORDER_REFLECT_101)


def fit_mask(class_ids: MaskArray, plan: Plan) -> MaskArray:
    """uint8 HxW -> uint8 of plan.canvas_hw; the padding is ignored."""
    # Nearest, not linear: averaging two class ids invents a third class.
    content = _resize_nearest(class_ids, plan.content_hw)
    return _pad(content, plan.canvas_hw)


def restore_mask(class_ids: MaskArray, plan: Plan) -> MaskArray:
    """uint8 of plan.canvas_hw -> uint8 of plan.image_hw: the padding is cut off, ids are enlarged by nearest."""
    return _restore(class_ids, plan)


def restore_scores(scores: MaskArray, plan: Plan) -> MaskArray:
    """The score map, uint8 of plan.canvas_hw -> uint8 of plan.image_hw: each score goes where its class id goes."""
    return _restore(scores, plan)


def crop_center(image_rgb: RgbArray, class_ids: MaskArray, crop_hw: tuple[int, int]) -> tuple[RgbArray, MaskArray]:
    """The middle of image and mask, both at crop_hw. Beyond the edge the image is mirrored and the mask ignored."""
    top, left = (max(0, (side - crop) // 2) for side, crop in zip(class_ids.shape, crop_hw, strict=True))
    window = np.s_[top : top + crop_hw[0], left : left + crop_hw[1]]
    return _pad(image_rgb[window], crop_hw, cv2.BORDER_REFLECT_101), _pad(class_ids[window], crop_hw)


def _restore(values: MaskArray, plan: Plan) -> MaskArray:
    height, width = plan.content_hw
    return _resize_nearest(np.ascontiguousarray(values[:height, :width]), plan.image_hw)


def _resize_nearest(class_ids: MaskArray, size_hw: tuple[int, int]) -> MaskArray:
    if class_ids.shape == size_hw:
        return class_ids
    # EXACT takes the pixel whose centre is nearest, as the bilinear resize of the picture does; plain INTER_NEAREST
    # takes the upper left one, which shifts masks by half a pixel.
    return np.asarray(cv2.resize(class_ids, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _pad(content: MaskArray, size_hw: tuple[int, int], border: int = cv2.BORDER_CONSTANT) -> MaskArray:
    below, right = size_hw[0] - content.shape[0], size_hw[1] - content.shape[1]
    if not below and not right:
        return content
    fill = (IGNORE_ID,) * 4
    return np.asarray(cv2.copyMakeBorder(content, 0, below, 0, right, border, value=fill), np.uint8)
