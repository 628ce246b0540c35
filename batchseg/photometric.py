"""What changes the pixels of a training image and leaves its mask alone: colour, blur, noise, JPEG artefacts."""

import math

import cv2
import numpy as np

from batchseg.augment_knobs import AugmentConfig
from batchseg.images import RgbArray

_BLUR_SIGMA_PX = (0.4, 2.0)
_NOISE_SIGMA = (2.0, 12.0)
_JPEG_QUALITY = (20, 80)


def change_pixels(image_rgb: RgbArray, rng: np.random.Generator, config: AugmentConfig) -> RgbArray:
    """uint8 HxWx3 -> the same. Draws from rng only for what is on, so that a knob that is off changes nothing."""
    image_rgb = _change_color(image_rgb, rng, config.color)
    for share, change in ((config.blur, _blur), (config.noise, _add_noise), (config.jpeg, _compress)):
        if share and rng.uniform() < share:
            image_rgb = change(image_rgb, rng)
    return image_rgb


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


def _blur(image_rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    return np.asarray(cv2.GaussianBlur(image_rgb, (0, 0), rng.uniform(*_BLUR_SIGMA_PX)), np.uint8)


def _add_noise(image_rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    noise = rng.standard_normal(image_rgb.shape, np.float32) * rng.uniform(*_NOISE_SIGMA)
    return np.clip(np.rint(image_rgb + noise), 0, 255).astype(np.uint8)


def _compress(image_rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    quality = int(rng.integers(*_JPEG_QUALITY, endpoint=True))
    # Channel order does not matter to a codec that is undone at once, but its colour planes do: red is red in RGB.
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)
