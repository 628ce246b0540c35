"""What the model says on some val images, beside the truth: image, truth, prediction, errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from batchseg.classes import IGNORE_ID, ClassTable, MaskArray
from batchseg.images import RgbArray
from batchseg.metrics import ConfusionMatrix
from batchseg.render import draw_contact_sheet, draw_overlay

_WRONG, _IGNORED = (230, 30, 30), (128, 128, 128)
_LONGEST = 1024
_TITLES = ("image", "truth", "prediction", "errors (red; grey: ignored)")


@dataclass(frozen=True)
class ValPicture:
    """image_rgb: uint8 hxwx3. truth, predicted: uint8 class ids of one size, which may differ from the image's."""

    name: str
    image_rgb: RgbArray
    truth: MaskArray
    predicted: MaskArray


def pick_evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0 to count - 1, spread evenly, always the same."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()}) if count else []


def draw_val_sheet(pictures: Sequence[ValPicture], classes: ClassTable) -> RgbArray:
    """A row for each picture, with its mIoU. Wrong pixels are red, ignored ones grey."""
    rows, captions = [], []
    for picture in pictures:
        image = _shrink(picture.image_rgb)
        overlays = [draw_overlay(image, ids, classes.palette) for ids in (picture.truth, picture.predicted)]
        rows.append([image, *overlays, draw_errors(image, picture.truth, picture.predicted)])
        miou = ConfusionMatrix.from_masks(picture.truth, picture.predicted, len(classes)).miou
        captions.append(f"{picture.name}   mIoU {miou:.3f}" if np.isfinite(miou) else f"{picture.name}   all ignored")
    return draw_contact_sheet(rows, captions, _TITLES, classes, cell_width=320)


def draw_errors(image_rgb: RgbArray, truth: MaskArray, predicted: MaskArray) -> RgbArray:
    """The image in faint grey; wrong pixels red, ignored ones grey."""
    size_wh = (image_rgb.shape[1], image_rgb.shape[0])
    truth, predicted = (
        np.asarray(cv2.resize(ids, size_wh, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
        for ids in (truth, predicted)
    )
    grey = cv2.cvtColor(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    drawn = np.asarray(cv2.convertScaleAbs(grey, alpha=0.4, beta=140), np.uint8)
    drawn[truth == IGNORE_ID] = _IGNORED
    drawn[(truth != IGNORE_ID) & (truth != predicted)] = _WRONG
    return drawn


def _shrink(image_rgb: RgbArray) -> RgbArray:
    scale = _LONGEST / max(image_rgb.shape[:2])
    if scale >= 1:
        return image_rgb
    return np.asarray(cv2.resize(image_rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
