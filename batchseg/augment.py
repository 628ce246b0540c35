"""(image, mask, rng) -> (image, mask), in step. Training only: no other room may import this one."""

import math

import cv2
import numpy as np

from batchseg.classes import IGNORE_ID, MaskArray
from batchseg.config import AugmentConfig
from batchseg.images import RgbArray


def augment_pair(
    image_rgb: RgbArray,
    class_ids: MaskArray,
    rng: np.random.Generator,
    config: AugmentConfig,
    crop_hw: tuple[int, int],
) -> tuple[RgbArray, MaskArray]:
    """One random zoom, crop and flip in a single warp, then colour.

    image_rgb: uint8 HxWx3. class_ids: uint8 HxW. Returns both at crop_hw; beyond the picture's edge the image is
    mirrored and the mask is ignored. The same rng state gives the same result.
    """
    matrix = _draw_warp(image_rgb.shape[:2], rng, config, crop_hw)
    size_wh = crop_hw[::-1]
    image = cv2.warpAffine(image_rgb, matrix, size_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    # Nearest, not linear: averaging two class ids invents a third class.
    mask = cv2.warpAffine(
        class_ids, matrix, size_wh, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(IGNORE_ID,)
    )
    return _change_color(np.asarray(image, np.uint8), rng, config.color), np.asarray(mask, np.uint8)


def _draw_warp(size_hw: tuple[int, int], rng: np.random.Generator, config: AugmentConfig, crop_hw: tuple[int, int]):  # type: ignore[no-untyped-def]
    """The 2x3 matrix from picture to crop, in pixel centres."""
    low, high = config.scale
    zoom = math.exp(rng.uniform(math.log(low), math.log(high)))
    # Where the zoomed picture is larger than the crop, any offset; where it is smaller, the picture anywhere inside.
    top, left = (
        rng.uniform(min(0.0, free), max(0.0, free))
        for free in (crop_hw[0] - zoom * size_hw[0], crop_hw[1] - zoom * size_hw[1])
    )
    # Pixel i covers [i, i+1) with its centre at i + 0.5, hence the half pixels.
    matrix = np.array([[zoom, 0, left + 0.5 * zoom - 0.5], [0, zoom, top + 0.5 * zoom - 0.5]])
    if rng.uniform() < config.flip:
        matrix[0] = -matrix[0]
        matrix[0, 2] += crop_hw[1] - 1
    return matrix


def _change_color(image_rgb: RgbArray, rng: np.random.Generator, strength: float) -> RgbArray:
    """Brightness, contrast and tint as one table per channel, then saturation."""
    if strength <= 0:
        return image_rgb
    gain = math.exp(rng.uniform(-1, 1) * strength)
    contrast = math.exp(rng.uniform(-1, 1) * strength)
    tint = np.exp(rng.uniform(-1, 1, 3) * strength * 0.25)
    saturation = max(0.0, 1 + rng.uniform(-1, 1) * strength * 1.5)
    levels = np.arange(256, dtype=np.float64)[:, None] * gain * tint
    table = np.clip((levels - 128) * contrast + 128, 0, 255).astype(np.uint8)
    changed = cv2.LUT(image_rgb, table[None])
    grey = cv2.cvtColor(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(changed, saturation, grey, 1 - saturation, 0), np.uint8)
