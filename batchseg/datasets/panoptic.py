"""Format `panoptic`: COCO panoptic PNG and JSON -> samples (https://cocodataset.org/#format-data)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchseg import storage
from batchseg.classes import IGNORE_ID
from batchseg.datasets.categories import CategoryMap
from batchseg.datasets.coco_json import CocoJson, to_text
from batchseg.datasets.masks import PanopticFile
from batchseg.datasets.patterns import Excluded
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import MaskOptions, Sample
from batchseg.errors import UserError


class PanopticReader:
    """Reads splits of one data set."""

    def __init__(self, root: str, excluded: Excluded, options: MaskOptions, log: ProblemLog, categories: CategoryMap):
        self._root, self._excluded, self._options, self._log = root, excluded, options, log
        self._categories = categories

    def read(self, page: CocoJson, images: str, masks: str) -> list[Sample]:
        """The samples of one JSON. images, masks: the folders of the pictures and of the PNG that it names."""
        class_of = self._categories.resolve(page)
        samples: dict[str, Sample] = {}
        for annotation in page.annotations:
            name = page.image_name(page.images[annotation["image_id"]], images)
            if name in self._excluded:
                continue
            if name in samples:
                raise UserError(f"data {page.location}: image id {to_text(annotation['image_id'])} is annotated twice")
            mask = storage.join(self._root, masks, str(annotation["file_name"]))
            panoptic = self._read_segments(page, annotation, mask, class_of)
            samples[name] = Sample(name, storage.join(self._root, name), panoptic, self._options)
        self._report_unannotated(page, images, samples)
        return list(samples.values())

    def _read_segments(
        self, page: CocoJson, annotation: Mapping[str, Any], mask: str, class_of: Mapping[int, int | None]
    ) -> PanopticFile:
        where = f"data {page.location}: image id {to_text(annotation['image_id'])}"
        found: dict[int, int] = {}
        for segment in annotation["segments_info"]:
            if not isinstance(segment, dict) or not {"id", "category_id"} <= set(segment):
                raise UserError(f"{where}: a segment has no `id` or no `category_id`: {segment!r}")
            if segment["category_id"] not in class_of:
                raise UserError(
                    f"{where}: segment {to_text(segment['id'])} has category_id {segment['category_id']!r}, "
                    f"which no category has"
                )
            if segment["id"] in found:
                raise UserError(f"{where}: the segment id {to_text(segment['id'])} is given twice")
            class_id = class_of[segment["category_id"]]
            meant = self._categories.rest if class_id is None else class_id
            found[segment["id"]] = IGNORE_ID if class_id is not None and segment.get("iscrowd") else meant
        ids = sorted(found)
        class_ids = bytes(found[segment_id] for segment_id in ids)
        return PanopticFile(mask, np.array(ids, np.uint32).tobytes(), class_ids)

    def _report_unannotated(self, page: CocoJson, images: str, samples: Mapping[str, Sample]) -> None:
        """An image without any segment has no PNG, unlike one in `coco`, which is simply empty."""
        for image_id, image in page.images.items():
            name = page.image_name(image, images)
            if name in samples or name in self._excluded or self._log.skips_unpaired:
                continue
            self._log.report(
                "image_without_mask", name, f"{page.location}: image id {to_text(image_id)} ({name}) has no "
                f"annotation. Add it, take the image out (`exclude`), or skip all such images (`unpaired: skip`).",
            )  # fmt: skip
