"""The three stages that an image passes in segment and evaluate, as plain callables on batches of columns.

    manifest rows -> FitStage (CPU) -> PredictStage (model actor) -> WriteStage or ScoreStage (CPU)

A batch is a dict of numpy columns. Pixels stay uint8; class scores never leave PredictStage. No stage but PredictStage
imports Keras.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from batchseg import geometry as geo
from batchseg import images, ledger, render, storage
from batchseg.classes import ClassTable, MaskArray
from batchseg.datasets import Sample
from batchseg.datasets.sample import load_mask
from batchseg.errors import ImageError, UserError, describe_no_space
from batchseg.images import RgbArray
from batchseg.metrics import ConfusionMatrix

Batch = dict[str, Any]


@dataclass(frozen=True)
class FitStage:
    """Fetch, decode, fit. Adds `canvas` uint8 HxWx3, `height`, `width`, `preview`, `error_kind`, `error`, `seconds`.

    preview: the picture for an overlay, RGB bytes of preview_h x preview_w, from overlay_size (None: none is made).
    """

    geometry: geo.Geometry
    max_megapixels: float
    overlay_size: int | None

    def __call__(self, batch: Batch) -> Batch:
        made = [self._fit(str(uri)) for uri in batch["uri"]]
        columns: Batch = {name: np.array([item[name] for item in made]) for name in made[0] if name != "preview"}
        columns["preview"] = _as_objects([item["preview"] for item in made])
        return {**batch, **columns}

    def _fit(self, uri: str) -> dict[str, Any]:
        started = time.perf_counter()
        canvas, size_hw = np.zeros((*self.geometry.canvas_hw, 3), np.uint8), (0, 0)
        preview, kind, message = np.zeros((0, 0, 3), np.uint8), "", ""
        try:
            data = read_image(uri)
            fitted = geo.fit_encoded(data, self.geometry, self.max_megapixels)
            canvas, size_hw = fitted.canvas, fitted.plan.image_hw
            if self.overlay_size is not None:
                preview = make_preview(data, fitted, self.overlay_size)
        except ImageError as error:
            kind, message = error.kind, str(error)
        except MemoryError:
            kind, message = "oom", f"{uri} needs more memory than there is to decode"
        return {
            "canvas": canvas, "height": size_hw[0], "width": size_hw[1], "error_kind": kind, "error": message,
            "preview": preview.tobytes(), "preview_h": preview.shape[0], "preview_w": preview.shape[1],
            "seconds": time.perf_counter() - started,
        }  # fmt: skip


def read_image(uri: str) -> bytes:
    """The bytes of an image. Raises ImageError `missing`, `denied` or `read`."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ImageError("missing", f"{uri} does not exist any more") from error
    except PermissionError as error:
        raise ImageError("denied", f"{uri} may not be read: {error}") from error
    except OSError as error:
        raise ImageError("read", f"{uri} cannot be read: {error}") from error


def make_preview(data: bytes, fitted: geo.FittedImage, longest: int) -> RgbArray:
    """The picture that an overlay is drawn on, its longest side at most `longest` (0: its own size).

    Decodes again when the model was content with fewer pixels: no output option changes what the model sees.
    """
    header = images.probe_image(data, float("inf"))
    wanted_hw = render.scale_to_longest(header.size_hw, longest)
    picture = fitted.decoded
    if picture.shape[0] < wanted_hw[0] or picture.shape[1] < wanted_hw[1]:
        picture = images.decode_image(
            data, header, geo.choose_reduction(header.size_hw, wanted_hw) if header.can_reduce else 1
        )
    if picture.shape[:2] == wanted_hw:
        return picture
    return np.asarray(cv2.resize(picture, wanted_hw[::-1], interpolation=cv2.INTER_AREA), np.uint8)


class PredictStage:
    """Holds the model. Replaces `canvas` by `ids` uint8 HxW and adds `mean_confidence` and `uncertain_share`."""

    def __init__(self, bundle: str, batch_size: int, threads: int):
        from batchseg.predict import Predictor

        self._predictor = Predictor(bundle, batch_size=batch_size, threads=threads)

    def __call__(self, batch: Batch) -> Batch:
        from batchseg.predict import summarize_confidence

        started = time.perf_counter()
        canvases = batch.pop("canvas")
        good = np.flatnonzero(batch["error_kind"] == "")
        ids = np.zeros(canvases.shape[:3], np.uint8)
        shares = np.zeros((len(ids), 2))
        if len(good):
            ids[good], confidence = self._predictor.run(canvases[good])
            for index, sure in zip(good, confidence, strict=True):
                plan = geo.make_plan(
                    (int(batch["height"][index]), int(batch["width"][index])), self._predictor.card.geometry
                )
                shares[index] = summarize_confidence(sure, plan)
        spent = (time.perf_counter() - started) / max(1, len(good))
        return {
            **batch, "ids": ids, "mean_confidence": shares[:, 0], "uncertain_share": shares[:, 1],
            "seconds": batch["seconds"] + spent * (batch["error_kind"] == ""),
        }  # fmt: skip


@dataclass(frozen=True)
class WriteStage:
    """Restore, render, write pictures. Returns rows of the ledger; those with an `error_kind` have failed."""

    out: str
    run: int
    bundle_digest: str
    classes: ClassTable
    geometry: geo.Geometry
    to_parquet: bool
    to_png: bool
    overlay_suffix: str | None
    board: Any

    def __call__(self, batch: Batch) -> pa.Table:
        records = [
            self._finish({name: column[i] for name, column in batch.items()}) for i in range(len(batch["image_id"]))
        ]
        failed = sum(record["error_kind"] is not None for record in records)
        self.board.add.remote(ok=len(records) - failed, failed=failed)
        return pa.Table.from_pylist(records, schema=ledger.make_row_schema(self.classes))

    def _finish(self, item: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        record: dict[str, Any] = {
            "image_id": str(item["image_id"]),
            "uri": str(item["uri"]),
            "input_bytes": int(item["bytes"]),
            "input_modified": np.datetime64(item["modified"], "us").item().replace(tzinfo=UTC),
            "height": int(item["height"]) or None,
            "width": int(item["width"]) or None,
            "error_kind": str(item["error_kind"]) or None,
            "error": str(item["error"]) or None,
            "bundle": self.bundle_digest,
            "run": self.run,
            "attempts": int(item["attempts"]) + 1,
        }
        if record["error_kind"] is None:
            try:
                record |= self._write_pictures(record["image_id"], item)
            except ImageError as error:
                record |= {"error_kind": error.kind, "error": str(error)}
        if record["error_kind"]:
            self._delete_pictures(record["image_id"])
        record["seconds"] = float(item["seconds"]) + time.perf_counter() - started
        return record

    def _delete_pictures(self, image_id: str) -> None:
        """A row that failed has no pictures: neither its own first one nor those of an earlier file of this name."""
        for path in (f"masks/{image_id}.png", f"overlays/{image_id}{self.overlay_suffix}"):
            with suppress(OSError):  # one that could not be written cannot be looked for either
                storage.delete_file(storage.join(self.out, path))

    def _write_pictures(self, image_id: str, item: dict[str, Any]) -> dict[str, Any]:
        plan = geo.make_plan((int(item["height"]), int(item["width"])), self.geometry)
        mask = geo.restore_mask(np.asarray(item["ids"]), plan)
        pictures = {"mask": (f"masks/{image_id}.png", images.encode_mask(mask, self.classes.palette)), "overlay": None}
        if self.overlay_suffix:
            preview = np.frombuffer(item["preview"], np.uint8).reshape(
                int(item["preview_h"]), int(item["preview_w"]), 3
            )
            overlay = render.draw_overlay(preview, mask, self.classes.palette)
            path = f"overlays/{image_id}{self.overlay_suffix}"
            pictures["overlay"] = (path, images.encode_image(overlay, self.overlay_suffix))
        counts = np.bincount(mask.ravel(), minlength=256)[: len(self.classes)]
        return {
            **{name: self._store(*picture) if picture else None for name, picture in pictures.items()},
            "class_pixels": counts.tolist(),
            "mean_confidence": float(item["mean_confidence"]),
            "uncertain_share": float(item["uncertain_share"]),
        }

    def _store(self, path: str, data: bytes) -> dict[str, Any]:
        if self.to_png:
            try:
                storage.write_atomic(storage.join(self.out, path), data, ledger.staging_of(self.out))
            except OSError as error:
                if full := describe_no_space(error):
                    raise full from error
                raise ImageError("write", f"{path} cannot be written: {error}") from error
        return {"bytes": data if self.to_parquet else None, "path": path if self.to_png else None}


@dataclass(frozen=True)
class ScoreStage:
    """Restores masks and compares them with the truth: one confusion matrix per batch, and what could not be used."""

    classes: ClassTable
    geometry: geo.Geometry
    board: Any

    def __call__(self, batch: Batch) -> Batch:
        total, problems = ConfusionMatrix.empty(len(self.classes)), []
        for index in range(len(batch["image_id"])):
            if batch["error_kind"][index]:
                problems.append(f"image {batch['uri'][index]} cannot be used: {batch['error'][index]}")
                continue
            size_hw = (int(batch["height"][index]), int(batch["width"][index]))
            sample = Sample(str(batch["image_id"][index]), str(batch["uri"][index]), str(batch["mask_uri"][index]))
            try:
                truth = load_mask(sample, self.classes, size_hw)
            except UserError as error:
                problems.append(str(error))
                continue
            mask: MaskArray = geo.restore_mask(np.asarray(batch["ids"][index]), geo.make_plan(size_hw, self.geometry))
            total += ConfusionMatrix.from_masks(truth, mask, len(self.classes))
        self.board.add.remote(ok=len(batch["image_id"]))
        return {"counts": total.counts[None], "problems": _as_objects(["\n".join(problems)])}


def _as_objects(values: Sequence[Any]) -> Any:
    """A column of Python objects; numpy would turn equal-length bytes into a fixed type and cut their zeros off."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
