"""(image, mask, rng) -> (image, mask), in step. Training only: no other room may import this one."""

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from batchseg.augment_knobs import AugmentConfig
from batchseg.classes import IGNORE_ID, MaskArray
from batchseg.images import RgbArray
from batchseg.mixing import Pair, cut_out, list_classes, mix_classes
from batchseg.photometric import change_pixels


def augment_pair(
    image_rgb: RgbArray,
    class_ids: MaskArray,
    rng: np.random.Generator,
    config: AugmentConfig,
    crop_hw: tuple[int, int],
) -> Pair:
    """One random zoom, rotation, crop and flip in a single warp, then colour, blur, noise and JPEG artefacts.

    image_rgb: uint8 HxWx3. class_ids: uint8 HxW. Returns both at crop_hw; beyond the picture's edge the image is
    mirrored and the mask is ignored. The same rng state gives the same result. `strength` is not looked at.
    """
    matrix = _draw_warp(class_ids, rng, config, crop_hw)
    size_wh = crop_hw[::-1]
    image = cv2.warpAffine(image_rgb, matrix, size_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    # Nearest, not linear: averaging two class ids invents a third class.
    mask = cv2.warpAffine(
        class_ids, matrix, size_wh, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(IGNORE_ID,)
    )
    return change_pixels(np.asarray(image, np.uint8), rng, config), np.asarray(mask, np.uint8)


def mix_pair(pair: Pair, draw_donor: Callable[[], Pair], rng: np.random.Generator, config: AugmentConfig) -> Pair:
    """ClassMix and cutout on a pair from augment_pair. draw_donor: gives another one, of the same size."""
    if config.class_mix and rng.uniform() < config.class_mix:
        pair = mix_classes(pair, draw_donor(), rng)
    if config.cutout and rng.uniform() < config.cutout:
        pair = cut_out(pair, rng)
    return pair


def _draw_warp(
    class_ids: MaskArray, rng: np.random.Generator, config: AugmentConfig, crop_hw: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """The 2x3 matrix from picture to crop, in pixel centres."""
    low, high = config.scale
    zoom = math.exp(rng.uniform(math.log(low), math.log(high)))
    # Where the zoomed picture is larger than the crop, any offset; where it is smaller, the picture anywhere inside.
    free_yx = [crop - zoom * side for crop, side in zip(crop_hw, class_ids.shape, strict=True)]
    top, left = (rng.uniform(min(0.0, free), max(0.0, free)) for free in free_yx)
    if config.rare_crops and rng.uniform() < config.rare_crops:
        top, left = _aim(class_ids, rng, zoom, free_yx, crop_hw) or (top, left)
    # Pixel i covers [i, i+1) with its centre at i + 0.5, hence the half pixels.
    matrix = np.array([[zoom, 0, left + 0.5 * zoom - 0.5], [0, zoom, top + 0.5 * zoom - 0.5]])
    if config.rotation:
        matrix = _rotate(matrix, rng.uniform(-config.rotation, config.rotation), crop_hw)
    if rng.uniform() < config.flip:
        matrix[0] = -matrix[0]
        matrix[0, 2] += crop_hw[1] - 1
    return matrix


def _aim(
    class_ids: MaskArray, rng: np.random.Generator, zoom: float, free_yx: list[float], crop_hw: tuple[int, int]
) -> tuple[float, float] | None:
    """(top, left) of a crop in which a pixel lies anywhere, whose class was drawn evenly from those in the mask.

    None where everything is ignored. The crop stays as far inside the picture as any other.
    """
    classes = list_classes(class_ids)
    if not len(classes):
        return None
    places = np.flatnonzero(class_ids == rng.choice(classes))
    target_yx = divmod(int(rng.choice(places)), class_ids.shape[1])
    offsets = [
        float(np.clip(rng.uniform(0, crop) - zoom * (target + 0.5), min(0.0, free), max(0.0, free)))
        for crop, target, free in zip(crop_hw, target_yx, free_yx, strict=True)
    ]
    return offsets[0], offsets[1]


def _rotate(matrix: npt.NDArray[np.float64], degrees: float, crop_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The warp followed by a turn about the middle of the crop."""
    center_xy = ((crop_hw[1] - 1) / 2, (crop_hw[0] - 1) / 2)
    turn = np.asarray(cv2.getRotationMatrix2D(center_xy, degrees, 1.0), np.float64)
    return turn @ np.vstack([matrix, [0, 0, 1]])
