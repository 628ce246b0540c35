"""The first two stages that an image passes in segment and evaluate, as plain callables on Arrow tables.

    manifest rows -> FitStage (CPU) -> PredictStage (model actor) -> WriteStage or ScoreStage (CPU; see results.py)

Pixels stay uint8 and are held once; class scores never leave PredictStage. Only PredictStage imports Keras.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from batchseg import geometry as geo
from batchseg import images, render
from batchseg.columns import pack_pictures, replace_columns, unpack_picture
from batchseg.errors import ImageError
from batchseg.fetching import fetch_image
from batchseg.images import ImageHeader, RgbArray
from batchseg.isolation import ChildDiedError, IsolatedFunction

Decode = Callable[[bytes, ImageHeader, int], RgbArray]

FETCHES_AT_ONCE = 8
DEATHS_TO_BLAME = 3
"""An image that has killed so many children, each alone, is a `crash`."""

_TABLE_BYTES = 64 * 2**20
_CHILD_TIMEOUT_S = 300
_CHILD_SPARE_BYTES = 2**30
_BYTES_PER_PIXEL = 16  # of a codec at work: the pixels, their copy in another order, 16 bits a channel


@dataclass(frozen=True)
class FittedPicture:
    """canvas: what the model sees, uint8 HxWx3. preview: what an overlay is drawn on. brightness: mean grey, 0-255."""

    canvas: RgbArray
    size_hw: tuple[int, int]
    preview: RgbArray
    brightness: float
    note: str


@dataclass(frozen=True)
class Failure:
    """Why an image has no canvas."""

    kind: str
    message: str


@dataclass(frozen=True)
class FitStage:
    """Fetch, decode, fit. Adds `canvas`, `preview`, `height`, `width`, `brightness`, `note`, `seconds`, and for what
    cannot be used `error_kind` and `error`. Yields tables of at most 64 MB of pixels, or of one image.

    overlay_size: longest side of the preview (0: the image's own; None: none is made). decode: as images.decode_image.
    """

    geometry: geo.Geometry
    max_megapixels: float
    overlay_size: int | None
    decode: Decode = images.decode_image

    def __call__(self, todo: pa.Table, *, isolates: bool = False) -> Iterator[pa.Table]:
        """isolates: decode in a child process, because an earlier attempt at these images took its process down."""
        cv2.setNumThreads(1)  # a task has one core; a pool would not survive a fork either
        with self._open_fit(isolates) as fit, ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
            start, made, size = 0, [], 0
            for index, (data, fetch_seconds) in enumerate(_fetch_ahead(pool, todo)):
                started = time.perf_counter()
                picture = data if isinstance(data, Failure) else fit(data)
                made.append((picture, fetch_seconds + time.perf_counter() - started))
                size += picture.canvas.nbytes + picture.preview.nbytes if isinstance(picture, FittedPicture) else 0
                if size >= _TABLE_BYTES:
                    yield _append_columns(todo.slice(start, len(made)), made)
                    start, made, size = index + 1, [], 0
            if made:
                yield _append_columns(todo.slice(start, len(made)), made)

    def _open_fit(self, isolates: bool) -> Any:
        """A context with a function bytes -> FittedPicture | Failure."""
        if not isolates:
            return nullcontext(self._fit_here)
        return _IsolatedFit(self.fit_picture, int(self.max_megapixels * 1e6) * _BYTES_PER_PIXEL + _CHILD_SPARE_BYTES)

    def _fit_here(self, data: bytes) -> FittedPicture | Failure:
        return describe_failure(self.fit_picture, data)

    def fit_picture(self, data: bytes) -> FittedPicture:
        """One encoded image. Raises ImageError or MemoryError."""
        header = images.probe_image(data, self.max_megapixels)
        fitted = geo.fit_encoded(data, self.geometry, self.max_megapixels, decode=self.decode)
        preview = np.zeros((0, 0, 3), np.uint8)
        if self.overlay_size is not None:
            preview = make_preview(data, header, fitted.decoded, self.overlay_size, self.decode)
        height, width = fitted.plan.content_hw
        red, green, blue, _ = cv2.mean(fitted.canvas[:height, :width])
        note = f"first of {header.frames} frames" if header.frames > 1 else ""
        return FittedPicture(
            fitted.canvas, fitted.plan.image_hw, preview, 0.299 * red + 0.587 * green + 0.114 * blue, note
        )


def describe_failure(function: Callable[[bytes], FittedPicture], data: bytes) -> FittedPicture | Failure:
    """function(data), its errors about this one image as a Failure."""
    try:
        return function(data)
    except ImageError as error:
        return Failure(error.kind, str(error))
    except MemoryError:
        return Failure("oom", f"{len(data)} bytes of image need more memory than there is to decode")
    except cv2.error as error:
        kind = "oom" if error.code == cv2.Error.StsNoMem else "decode"
        return Failure(kind, f"the image cannot be fitted: {str(error).strip()}")


class _IsolatedFit:
    """Fits each image in a child. One that kills three children, each time alone in it, is a `crash`."""

    def __init__(self, function: Callable[[bytes], FittedPicture], memory_bytes: int):
        self._child = IsolatedFunction(function, memory_bytes=memory_bytes, timeout_s=_CHILD_TIMEOUT_S)

    def __enter__(self) -> Callable[[bytes], FittedPicture | Failure]:
        return self.fit

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def fit(self, data: bytes) -> FittedPicture | Failure:
        """One encoded image; three deaths over it are a `crash`."""
        reason = ""
        for _ in range(DEATHS_TO_BLAME):
            try:
                return describe_failure(self._child, data)
            except ChildDiedError as death:
                reason = str(death)
        return Failure("crash", f"decoding killed its process {DEATHS_TO_BLAME} times ({reason})")


def _fetch(uri: str, row: int | None, listed_bytes: int | None) -> tuple[bytes | Failure, float]:
    """(the bytes of an image or why there are none, seconds)."""
    started = time.perf_counter()
    try:
        data: bytes | Failure = fetch_image(uri, row, listed_bytes)
    except ImageError as error:
        data = Failure(error.kind, str(error))
    return data, time.perf_counter() - started


def _fetch_ahead(pool: ThreadPoolExecutor, todo: pa.Table) -> Iterator[tuple[bytes | Failure, float]]:
    """What _fetch returns for each image in turn; some are on their way meanwhile, but few large ones."""
    items = list(zip(todo["uri"].to_pylist(), _rows_of(todo), todo["bytes"].to_pylist(), strict=True))
    waiting: deque[tuple[Future[tuple[bytes | Failure, float]], int]] = deque()
    ahead_bytes, next_item = 0, 0
    while waiting or next_item < len(items):
        while next_item < len(items) and len(waiting) < FETCHES_AT_ONCE and (ahead_bytes < _TABLE_BYTES or not waiting):
            uri, row, size = items[next_item]
            waiting.append((pool.submit(_fetch, uri, row, size), (size or 0) if row is None else 0))
            ahead_bytes, next_item = ahead_bytes + waiting[-1][1], next_item + 1
        future, size = waiting.popleft()
        ahead_bytes -= size
        yield future.result()


def _rows_of(todo: pa.Table) -> list[int | None]:
    """The row in a Parquet file; None for an image that is a file."""
    return todo["row"].to_pylist() if "row" in todo.column_names else [None] * len(todo)


def _append_columns(todo: pa.Table, made: list[tuple[FittedPicture | Failure, float]]) -> pa.Table:
    none = np.zeros((0, 0, 3), np.uint8)
    nothing = FittedPicture(none, (0, 0), none, 0.0, "")
    pictures = [picture if isinstance(picture, FittedPicture) else nothing for picture, _ in made]
    failures = [failure if isinstance(failure, Failure) else None for failure, _ in made]
    return replace_columns(
        todo,
        canvas=pack_pictures([picture.canvas for picture in pictures]),
        preview=pack_pictures([picture.preview for picture in pictures]),
        height=pa.array([picture.size_hw[0] for picture in pictures], pa.int32()),
        width=pa.array([picture.size_hw[1] for picture in pictures], pa.int32()),
        brightness=pa.array([picture.brightness for picture in pictures], pa.float32()),
        note=pa.array([picture.note or None for picture in pictures], pa.string()),
        error_kind=pa.array([failure.kind if failure else None for failure in failures], pa.string()),
        error=pa.array([failure.message if failure else None for failure in failures], pa.string()),
        seconds=pa.array([seconds for _, seconds in made], pa.float32()),
    )


def make_preview(data: bytes, header: ImageHeader, decoded: RgbArray, longest: int, decode: Decode) -> RgbArray:
    """The picture that an overlay is drawn on, its longest side at most `longest` (0: its own size).

    Decodes again when the model was content with fewer pixels: no output option changes what the model sees.
    """
    wanted_hw = render.scale_to_longest(header.size_hw, longest)
    picture = decoded
    if picture.shape[0] < wanted_hw[0] or picture.shape[1] < wanted_hw[1]:
        picture = decode(data, header, geo.choose_reduction(header.size_hw, wanted_hw) if header.can_reduce else 1)
    if picture.shape[:2] == wanted_hw:
        return picture
    return np.asarray(cv2.resize(picture, wanted_hw[::-1], interpolation=cv2.INTER_AREA), np.uint8)


class PredictStage:
    """Holds the model. Replaces `canvas` by `ids` and `scores`, adds `mean_confidence` and `uncertain_share`."""

    def __init__(self, bundle: str, batch_size: int, threads: int, inference: Any):
        from batchseg.predict import Predictor

        self._predictor = Predictor(bundle, batch_size=batch_size, threads=threads, options=inference)

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        geometry = self._predictor.card.geometry
        good = [index for index, kind in enumerate(table["error_kind"].to_pylist()) if kind is None]
        sizes = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        plans = [geo.make_plan(sizes[index], geometry) for index in good]
        canvases = [
            unpack_picture(table["canvas"], index, (*plan.canvas_hw, 3))
            for index, plan in zip(good, plans, strict=True)
        ]
        predicted = dict(zip(good, self._predictor.run(canvases, plans), strict=True))
        spent = (time.perf_counter() - started) / max(1, len(good))
        return _append_predictions(table, predicted, spent)


def _append_predictions(table: pa.Table, predicted: dict[int, Any], seconds_each: float) -> pa.Table:
    """predicted: by row, the CanvasPrediction or the ImageError of it; rows that failed before have none."""
    none = np.zeros(0, np.uint8)
    kinds, messages = table["error_kind"].to_pylist(), table["error"].to_pylist()
    ids, scores, confidences, uncertain = [], [], [], []
    for index in range(len(table)):
        found = predicted.get(index)
        if isinstance(found, ImageError):
            kinds[index], messages[index], found = found.kind, str(found), None
        ids.append(none if found is None else found.ids)
        scores.append(none if found is None or found.scores is None else found.scores)
        confidences.append(0.0 if found is None else found.mean_confidence)
        uncertain.append(0.0 if found is None else found.uncertain_share)
    spent = [seconds + seconds_each * (row in predicted) for row, seconds in enumerate(table["seconds"].to_pylist())]
    return replace_columns(
        table,
        drop=["canvas"],
        ids=pack_pictures(ids),
        scores=pack_pictures(scores),
        mean_confidence=pa.array(confidences, pa.float32()),
        uncertain_share=pa.array(uncertain, pa.float32()),
        error_kind=pa.array(kinds, pa.string()),
        error=pa.array(messages, pa.string()),
        seconds=pa.array(spent, pa.float32()),
    )
