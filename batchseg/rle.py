"""Masks as COCO run-length codes, for tools that read those."""

from typing import Any

import numpy as np
from pycocotools import mask as coco

from batchseg.classes import MaskArray


def encode_classes(mask: MaskArray, num_classes: int) -> list[dict[str, Any]]:
    """Of each class that the mask holds: class_id, size [height, width] and `counts`, COCO's compressed text."""
    present = [class_id for class_id in range(num_classes) if (mask == class_id).any()]
    codes = (coco.encode(np.asfortranarray(mask == class_id, dtype=np.uint8)) for class_id in present)
    return [
        {"class_id": class_id, "size": list(mask.shape), "counts": code["counts"].decode("ascii")}
        for class_id, code in zip(present, codes, strict=True)
    ]
