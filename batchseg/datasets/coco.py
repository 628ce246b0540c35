"""Format `coco`: instances JSON (polygons, multi-polygons, both run-length codes, crowd regions) -> samples.

https://cocodataset.org/#format-data. The JSON is parsed once; what a sample needs of it is packed into the sample.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as coco

from batchseg import storage
from batchseg.classes import IGNORE_ID
from batchseg.datasets.categories import CategoryMap
from batchseg.datasets.coco_json import CocoJson, to_text
from batchseg.datasets.patterns import Excluded
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import MaskOptions, Sample
from batchseg.datasets.shapes import Part, pack_shapes

Annotation = Mapping[str, Any]


class CocoReader:
    """Reads splits of one data set."""

    def __init__(self, root: str, excluded: Excluded, options: MaskOptions, log: ProblemLog, categories: CategoryMap):
        self._root, self._excluded, self._options, self._log = root, excluded, options, log
        self._categories = categories

    def read(self, page: CocoJson, images: str) -> list[Sample]:
        """The samples of one JSON, whose file names are relative to the folder `images`.

        An image without annotations is one of what no annotation covers. Raises UserError naming JSON and id.
        """
        class_of = self._categories.resolve(page)
        by_image: dict[Any, list[Annotation]] = defaultdict(list)
        for annotation in page.annotations:
            by_image[annotation["image_id"]].append(annotation)
        samples = []
        for image_id, image in page.images.items():
            name = page.image_name(image, images)
            if name in self._excluded:
                by_image.pop(image_id, None)
                continue
            size_hw = page.image_size(image)
            packed = []
            for annotation in by_image.pop(image_id, ()):
                class_id = class_of[annotation["category_id"]]
                if class_id is None:
                    continue
                parts = self._read_parts(page, annotation, size_hw, name)
                if parts is not None:
                    packed.append((IGNORE_ID if annotation.get("iscrowd") else class_id, parts))
            shapes = pack_shapes(page.location, image_id, size_hw, self._categories.rest, packed)
            samples.append(Sample(name, storage.join(self._root, name), shapes, self._options))
        return samples

    def _read_parts(
        self, page: CocoJson, annotation: Annotation, size_hw: tuple[int, int], name: str
    ) -> list[Part] | None:
        """None, and a note in the log, for an annotation that cannot be used."""
        try:
            return _read_segmentation(annotation.get("segmentation"), size_hw)
        except ValueError as error:
            where = f"{page.location}: annotation id {to_text(annotation.get('id'))} of image {name}"
            self._log.report("bad_annotation", name, f"{where} {error}")
            return None


def _read_segmentation(given: Any, size_hw: tuple[int, int]) -> list[Part]:
    """Raises ValueError saying what is wrong with it."""
    if isinstance(given, dict):
        return [_read_code(given, size_hw)]
    if not isinstance(given, list) or not given:
        raise ValueError("has no segmentation. Draw it, delete it, or leave its image out (`exclude`).")
    polygons = given if isinstance(given[0], (list, tuple)) else [given]
    _check_polygons(polygons, size_hw)
    return polygons


def _check_polygons(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> None:
    try:
        if any(len(polygon) % 2 for polygon in polygons):
            raise ValueError("has a polygon with an odd number of coordinates; x and y must alternate.")
        # One polygon that meets the image is enough; what sticks out is cut off.
        is_inside = any(_meets(polygon, size_hw) for polygon in polygons if polygon)
    except TypeError:
        raise ValueError("has a segmentation that is no list of numbers.") from None
    if not is_inside:
        raise ValueError(f"lies outside its image of {size_hw[1]}x{size_hw[0]} pixels. Delete it, or mend the size.")


def _meets(polygon: Sequence[float], size_hw: tuple[int, int]) -> bool:
    height, width = size_hw
    if 0 <= polygon[0] < width and 0 <= polygon[1] < height:  # nearly always, and a hundred times as fast
        return True
    x, y = polygon[::2], polygon[1::2]
    return min(x) < width and max(x) >= 0 and min(y) < height and max(y) >= 0


def _read_code(given: Mapping[str, Any], size_hw: tuple[int, int]) -> bytes:
    height, width = size_hw
    counts, size = given.get("counts"), given.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"has a run-length code of size {size!r}; its image is [{height}, {width}] (height, width).")
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
            raise ValueError(f"has a run-length code whose counts do not add up to {height} x {width}.")
        code: bytes = coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)["counts"]
        return code
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("has a run-length code without `counts`.")
    return counts.encode("ascii")
