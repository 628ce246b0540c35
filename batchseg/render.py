"""Class ids -> pictures for people: overlay, legend, contact sheet."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from batchseg.classes import IGNORE_ID, ClassTable, MaskArray
from batchseg.images import RgbArray

_OPACITY = 0.5
_BACKGROUND = (255, 255, 255)
_TEXT = (30, 30, 30)
_GAP = 8


def scale_to_longest(size_hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size with its longest side at most `longest` pixels; 0 keeps it. Never enlarges."""
    scale = longest / max(size_hw) if longest else 1.0
    if scale >= 1:
        return size_hw
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def draw_overlay(image_rgb: RgbArray, class_ids: MaskArray, palette: MaskArray) -> RgbArray:
    """The image with each class in its colour at half opacity and a dark line between classes.

    image_rgb: uint8 hxwx3. class_ids: uint8 of any size, brought to hxw by nearest. Ignored pixels stay as they are.
    """
    size_wh = (image_rgb.shape[1], image_rgb.shape[0])
    ids = class_ids
    if ids.shape != image_rgb.shape[:2]:
        ids = np.asarray(cv2.resize(class_ids, size_wh, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    # applyColorMap looks up a 256-entry table an order of magnitude faster than numpy indexing; it keeps our RGB order.
    colors = cv2.applyColorMap(ids, palette[:, None, :])
    blended = cv2.addWeighted(image_rgb, 1 - _OPACITY, colors, _OPACITY, 0)
    cv2.copyTo(image_rgb, (ids == IGNORE_ID).astype(np.uint8), blended)
    edges = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    darker = cv2.convertScaleAbs(blended, alpha=0.55)
    cv2.copyTo(darker, ((edges > 0) & (ids != IGNORE_ID)).astype(np.uint8), blended)
    return np.asarray(blended, np.uint8)


def draw_legend(classes: ClassTable, width: int, font_size: int = 14) -> RgbArray:
    """Coloured squares with class names, in as many lines as `width` pixels need."""
    font = ImageFont.load_default(font_size)
    places, left, top, line = [], _GAP, _GAP // 2, font_size + _GAP
    for info in classes.classes:
        needed = font_size + 6 + int(font.getlength(info.name)) + 2 * _GAP
        if left + needed > width and left > _GAP:
            left, top = _GAP, top + line
        places.append((left, top))
        left += needed
    sheet = Image.new("RGB", (width, top + line), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for info, (x, y) in zip(classes.classes, places, strict=True):
        draw.rectangle((x, y + 1, x + font_size, y + 1 + font_size), fill=info.color_rgb, outline=_TEXT)
        draw.text((x + font_size + 6, y), info.name, fill=_TEXT, font=font)
    return np.asarray(sheet)


def draw_contact_sheet(
    rows: Sequence[Sequence[RgbArray]],
    captions: Sequence[str],
    titles: Sequence[str],
    classes: ClassTable,
    cell_width: int = 240,
) -> RgbArray:
    """A grid of pictures: one row per image with a caption, one column per title, the legend below.

    rows: RGB uint8 pictures of any size; each is scaled to cell_width.
    """
    font = ImageFont.load_default(14)
    scaled = [[_scale_to_width(picture, cell_width) for picture in row] for row in rows]
    heights = [max(picture.shape[0] for picture in row) + 20 + _GAP for row in scaled]
    width = len(titles) * (cell_width + _GAP) + _GAP
    legend = draw_legend(classes, width)
    sheet = Image.new("RGB", (width, 28 + sum(heights) + legend.shape[0]), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (cell_width + _GAP), 6), title, fill=_TEXT, font=font)
    top = 28
    for row, caption, height in zip(scaled, captions, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (_GAP + column * (cell_width + _GAP), top))
        draw.text((_GAP, top + height - 20 - _GAP // 2), caption, fill=(110, 110, 110), font=ImageFont.load_default(12))
        top += height
    sheet.paste(Image.fromarray(legend), (0, top))
    return np.asarray(sheet)


def _scale_to_width(picture: RgbArray, width: int) -> RgbArray:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    # Small pictures are enlarged by nearest: a person shall see their pixels, not a blur.
    interpolation = cv2.INTER_NEAREST if width > picture.shape[1] else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (width, height), interpolation=interpolation), np.uint8)
