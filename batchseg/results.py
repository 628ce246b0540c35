"""The last stage that an image passes: in segment its mask, overlay and row are written, in evaluate it is scored."""

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchseg import geometry as geo
from batchseg import images, ledger, render, storage
from batchseg.classes import ClassTable, MaskArray
from batchseg.clearing import name_picture
from batchseg.columns import unpack_picture
from batchseg.datasets import Sample
from batchseg.datasets.sample import load_mask
from batchseg.errors import ImageError, UserError, describe_no_space
from batchseg.image_scores import ImageScore
from batchseg.lease import check_token
from batchseg.metrics import ConfusionMatrix
from batchseg.options import SegmentOptions
from batchseg.quality import InferenceOptions, finish_mask
from batchseg.rle import encode_classes
from batchseg.sanity import Band

_COUNTED_AT_ONCE = 2**22
_PICTURES = ("ids", "scores", "preview")
_SIZE = ("height", "width")
_CONFIDENCE = ("mean_confidence", "uncertain_share")


@dataclass(frozen=True)
class JobFacts:
    """What every row of a run shares. lease: the token with which OUT is held."""

    out: str
    run: int
    lease: str
    bundle_digest: str
    classes: ClassTable
    geometry: geo.Geometry
    brightness: Band | None


@dataclass(frozen=True)
class WriteStage:
    """Restore, render, write pictures. Returns rows of the ledger; those with an `error_kind` have failed.

    board: is told how many, and how they look. Raises StoppedError for a full disk, and when
    another job has taken OUT over.
    """

    job: JobFacts
    options: SegmentOptions
    board: Any

    def __call__(self, table: pa.Table) -> pa.Table:
        check_token(self.job.out, self.job.lease)
        records = [self._finish(table, index) for index in range(len(table))]
        self.board.add.remote(**self._count(table, records))
        return pa.Table.from_pylist(records, schema=ledger.make_row_schema(self.job.classes))

    def _count(self, table: pa.Table, records: list[dict[str, Any]]) -> dict[str, int]:
        good = [record for record in records if record["error_kind"] is None]
        fresh = [record for record in records if record["attempts"] == 1]
        bright = table.filter(pc.is_null(table["error_kind"]))["brightness"].to_pylist()
        band = self.job.brightness
        return {
            "ok": len(good),
            "failed": len(records) - len(good),
            "bytes": sum(record["input_bytes"] or 0 for record in records),
            "fresh": len(fresh),
            "fresh_failed": sum(record["error_kind"] is not None for record in fresh),
            "single_class": sum(int(np.count_nonzero(record["class_pixels"]) <= 1) for record in good),
            "outside_brightness": sum(not band.holds(value) for value in bright) if band else 0,
        }

    def _finish(self, table: pa.Table, index: int) -> dict[str, Any]:
        started = time.perf_counter()
        item = {name: table[name][index].as_py() for name in table.column_names if name not in _PICTURES}
        record: dict[str, Any] = {
            "image_id": item["image_id"],
            "uri": item["uri"],
            "input_bytes": item["bytes"],
            "input_modified": item["modified"],
            "height": item["height"] or None,
            "width": item["width"] or None,
            "note": item["note"],
            "error_kind": item["error_kind"],
            "error": item["error"],
            "bundle": self.job.bundle_digest,
            "run": self.job.run,
            "attempts": item["attempts"] + 1,
        }
        if record["error_kind"] is None:
            try:
                record |= self._write_pictures(table, index)
            except ImageError as error:
                record |= {"error_kind": error.kind, "error": str(error)}
            except MemoryError:
                record |= {"error_kind": "oom", "error": "mask and overlay need more memory than there is"}
            except cv2.error as error:
                kind = "oom" if error.code == cv2.Error.StsNoMem else "write"
                record |= {"error_kind": kind, "error": f"mask or overlay cannot be made: {str(error).strip()}"}
        record["seconds"] = item["seconds"] + time.perf_counter() - started
        return record

    def _write_pictures(self, table: pa.Table, index: int) -> dict[str, Any]:
        if not storage.is_remote(self.job.out):  # where looking costs nothing; on S3 once a block must do
            check_token(self.job.out, self.job.lease)
        rendered = render_image(table, index, self.job.geometry, self.job.classes, self.options)
        for path, data in rendered.files(self.options).items():
            try:
                storage.write_atomic(storage.join(self.job.out, path), data, ledger.staging_of(self.job.out))
            except OSError as error:
                if full := describe_no_space(error):
                    raise full from error
                raise ImageError("write", f"{path} cannot be written: {error}") from error
        return rendered.to_row(self.options)


@dataclass(frozen=True)
class RenderedImage:
    """What comes of one image. pictures: by column of its row, (path under OUT, encoded bytes). values: the others."""

    pictures: dict[str, tuple[str, bytes]]
    values: dict[str, Any]

    def files(self, options: SegmentOptions) -> dict[str, bytes]:
        """What is to be written beside the rows: path under OUT -> bytes."""
        return dict(self.pictures.values()) if "png" in options.write else {}

    def to_row(self, options: SegmentOptions) -> dict[str, Any]:
        """The columns of its row."""
        to_rows, to_files = "parquet" in options.write, "png" in options.write
        pictures = {
            column: {"bytes": data if to_rows else None, "path": path if to_files else None}
            for column, (path, data) in self.pictures.items()
        }
        return pictures | self.values


def render_image(
    table: pa.Table, index: int, geometry: geo.Geometry, classes: ClassTable, options: SegmentOptions
) -> RenderedImage:
    """Restores, draws and encodes one image of a table of PredictStage. Raises ImageError, MemoryError or cv2.error."""
    item = {name: table[name][index].as_py() for name in (*_SIZE, "image_id", *_CONFIDENCE)}
    plan, image_id = geo.make_plan((item["height"], item["width"]), geometry), item["image_id"]
    mask = finish_mask(unpack_picture(table["ids"], index, plan.canvas_hw), plan, options.inference)
    pictures = {"mask": (name_picture("masks", image_id), images.encode_mask(mask, classes.palette))}
    if suffix := options.overlay_suffix:
        preview_hw = render.scale_to_longest(plan.image_hw, options.overlay_size)
        preview = unpack_picture(table["preview"], index, (*preview_hw, 3))
        overlay = images.encode_image(render.draw_overlay(preview, mask, classes.palette), suffix)
        pictures["overlay"] = (name_picture("overlays", image_id, suffix), overlay)
    if options.inference.score_map:
        scores = geo.restore_scores(unpack_picture(table["scores"], index, plan.canvas_hw), plan)
        pictures["score_map"] = (name_picture("scores", image_id), images.encode_scores(scores))
    values = {
        "class_pixels": count_classes(mask, len(classes)),
        **{name: item[name] for name in _CONFIDENCE},
        "rle": encode_classes(mask, len(classes)) if options.rle else None,
    }
    return RenderedImage(pictures, values)


def count_classes(mask: MaskArray, num_classes: int) -> list[int]:
    """Pixels of each class; those that abstain (255) count nowhere."""
    counts, rows = np.zeros(256, np.int64), max(1, _COUNTED_AT_ONCE // mask.shape[1])
    # In bands: bincount makes int64 of every pixel, eight times the mask.
    for top in range(0, mask.shape[0], rows):
        counts += np.bincount(mask[top : top + rows].ravel(), minlength=256)
    return [int(count) for count in counts[:num_classes]]


@dataclass(frozen=True)
class ScoreStage:
    """Restores masks and compares them with the truth: one confusion matrix per table, a score of each image, and what
    could not be used.
    """

    classes: ClassTable
    geometry: geo.Geometry
    board: Any

    def __call__(self, table: pa.Table) -> pa.Table:
        total, scores, problems = ConfusionMatrix.empty(len(self.classes)), [], []
        for index in range(len(table)):
            outcome = self._score(table, index)
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                scores.append(outcome[0].to_row())
                total += outcome[1]
        self.board.add.remote(ok=len(table))
        row = {"counts": [total.counts.ravel().tolist()], "images": [scores], "problems": [problems]}
        return pa.table(row, schema=SCORE_SCHEMA)

    def _score(self, table: pa.Table, index: int) -> tuple[ImageScore, ConfusionMatrix] | str:
        """The scores of one image, or why it has none."""
        item = {name: table[name][index].as_py() for name in table.column_names if name not in _PICTURES}
        if item["error_kind"] is not None:
            return f"image {item['uri']} cannot be used: {item['error']}"
        size_hw = (item["height"], item["width"])
        sample: Sample = pickle.loads(item["sample"])  # of evaluate's own process, as Ray does; never of a file
        plan = geo.make_plan(size_hw, self.geometry)
        try:
            truth = load_mask(sample, self.classes, size_hw)
        except UserError as error:
            return str(error)
        mask = finish_mask(unpack_picture(table["ids"], index, plan.canvas_hw), plan, InferenceOptions())
        return ImageScore.from_masks(sample.name, truth, mask, len(self.classes))


_IMAGE_TYPE = pa.struct([("name", pa.string()), ("counts", pa.list_(pa.int64()))])
SCORE_SCHEMA = pa.schema(
    [("counts", pa.list_(pa.int64())), ("images", pa.list_(_IMAGE_TYPE)), ("problems", pa.list_(pa.string()))]
)


def sum_scores(
    parts: Sequence[dict[str, Any]], num_classes: int
) -> tuple[ConfusionMatrix, list[ImageScore], list[str]]:
    """What the tables of ScoreStage add up to, the score of each image, and every problem."""
    total, images, problems = ConfusionMatrix.empty(num_classes), [], []
    for part in parts:
        total += ConfusionMatrix(np.asarray(part["counts"], np.int64).reshape(num_classes, num_classes))
        images += [ImageScore.from_row(row) for row in part["images"]]
        problems += list(part["problems"])
    return total, images, problems
