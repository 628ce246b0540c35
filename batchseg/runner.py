"""Canvases of any size through a model in full batches: tiles across images, class scores bounded, out of memory met.

The model itself comes in as two functions, so that this room computes nothing that Keras does.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from batchseg import geometry as geo
from batchseg.classes import IGNORE_ID, MaskArray
from batchseg.errors import ImageError
from batchseg.images import RgbArray
from batchseg.quality import InferenceOptions
from batchseg.tiling import ScoreBlender, pick_classes

FloatArray = npt.NDArray[np.float32]
Forward = Callable[[RgbArray], tuple[MaskArray, FloatArray]]
"""Canvases uint8 NxHxWx3 -> class ids uint8 NxHxW and the confidence in them, float32 NxHxW in 0-1."""
Score = Callable[[RgbArray], FloatArray]
"""Tiles uint8 NxHxWx3 -> scores float32 N x classes x H x W; those of a pixel add up to 1."""

UNCERTAIN_BELOW = 0.5

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class CanvasPrediction:
    """ids: uint8 in the canvas frame, 255 where the model abstains. scores: confidence * 255, uint8 in the same frame,
    or None. The shares count the content of the canvas, without its padding.
    """

    ids: MaskArray
    scores: MaskArray | None
    mean_confidence: float
    uncertain_share: float


class _Collector:
    """Puts the blocks of one canvas together."""

    def __init__(self, plan: geo.Plan, options: InferenceOptions):
        self._plan, self._options = plan, options
        self._ids = np.empty(plan.canvas_hw, np.uint8)
        self._scores = np.empty(plan.canvas_hw, np.uint8) if options.score_map else None
        self._confidence, self._uncertain = 0.0, 0

    def add(self, top: int, left: int, ids: MaskArray, confidence: FloatArray) -> None:
        window = np.s_[top : top + ids.shape[0], left : left + ids.shape[1]]
        self._ids[window] = ids
        if self._options.min_confidence:
            self._ids[window][confidence < self._options.min_confidence] = IGNORE_ID
        if self._scores is not None:
            self._scores[window] = np.rint(confidence * 255)
        height, width = self._plan.content_hw
        content = confidence[: height - top, : width - left]
        self._confidence += float(content.sum(dtype=np.float64))
        self._uncertain += int(np.count_nonzero(content < UNCERTAIN_BELOW))

    def finish(self) -> CanvasPrediction:
        pixels = self._plan.content_hw[0] * self._plan.content_hw[1]
        return CanvasPrediction(self._ids, self._scores, self._confidence / pixels, self._uncertain / pixels)


class _Job(Generic[Tag]):
    """One image on its way. Its collector is made when the first answer comes: only one image at a time has one."""

    def __init__(self, tag: Tag, canvas: RgbArray, plan: geo.Plan):
        if canvas.shape != (*plan.canvas_hw, 3):
            raise ValueError(f"canvas is {canvas.shape}; its plan says {(*plan.canvas_hw, 3)}")
        self.tag, self.plan, self._canvas = tag, plan, canvas
        self.outcome: CanvasPrediction | ImageError | None = None
        self._collector: _Collector | None = None
        self._blender: ScoreBlender | None = None

    def cut(self) -> Iterator["_Piece"]:
        if self.plan.grid is None:
            yield _Piece(self, 0, self._canvas)
            return
        for number in range(len(self.plan.grid)):
            if self.outcome is not None:
                return  # it has failed: its other tiles are not asked for
            yield _Piece(self, number, self.plan.grid.cut(self._canvas, number))

    def take(self, number: int, answer: Any, options: InferenceOptions) -> None:
        """answer: (ids, confidence) of the canvas, or the scores of tile `number`. Sets `outcome` after the last."""
        if self._collector is None:
            self._collector = _Collector(self.plan, options)
        grid = self.plan.grid
        if grid is None:
            self._collector.add(0, 0, *answer)
            self.outcome = self._collector.finish()
            return
        if self._blender is None:
            self._blender = ScoreBlender(grid, len(answer))
        block = self._blender.add(number, answer)
        self._collector.add(block.top, block.left, *pick_classes(block.scores))
        if number == len(grid) - 1:
            self.outcome = self._collector.finish()

    def fail(self) -> None:
        height, width = self.plan.image_hw
        self._collector = self._blender = None
        self.outcome = ImageError("oom", f"{width}x{height} needs more memory than there is to segment it")


@dataclass(frozen=True)
class _Piece:
    """What the model sees at once of one image: a canvas, or a tile of it."""

    job: _Job[Any]
    number: int
    pixels: RgbArray


class CanvasRunner:
    """forward, score: the model. batch_size: pieces per call; halved for good each time that the memory is too small.

    out_of_memory: what the model raises then, besides MemoryError.
    """

    def __init__(
        self,
        forward: Forward,
        score: Score,
        batch_size: int,
        options: InferenceOptions,
        out_of_memory: tuple[type[BaseException], ...] = (),
    ):
        self.batch_size = batch_size
        self._forward, self._score, self._options = forward, score, options
        self._out_of_memory: tuple[type[BaseException], ...] = (MemoryError, *out_of_memory)

    def stream(
        self, items: Iterable[tuple[Tag, RgbArray, geo.Plan]]
    ) -> Iterator[tuple[Tag, CanvasPrediction | ImageError]]:
        """Yields what came of each item, in their order; ImageError `oom` where even one piece was too much.

        Items are taken when there is room in a batch, so few are in memory. An image gets the same answer in any batch.
        """
        waiting: list[_Piece] = []
        for job in (_Job(*item) for item in items):
            for piece in job.cut():
                if waiting and (piece.pixels.shape != waiting[0].pixels.shape or len(waiting) >= self.batch_size):
                    yield from self._run(waiting)
                    waiting = []
                waiting.append(piece)
        yield from self._run(waiting)

    def _run(self, pieces: Sequence[_Piece]) -> Iterator[tuple[Any, CanvasPrediction | ImageError]]:
        """Yields the jobs that end with these pieces."""
        waiting = list(pieces)
        while waiting := [piece for piece in waiting if piece.job.outcome is None]:
            batch = waiting[: self.batch_size]
            answers = self._ask(batch)
            if answers is None and len(batch) > 1:
                self.batch_size = len(batch) // 2
                logging.getLogger(__name__).warning("out of memory: batches of %d from now on", self.batch_size)
                continue
            for piece, answer in zip(batch, answers or [None], strict=True):
                if self._take(piece, answer):
                    assert piece.job.outcome is not None
                    yield piece.job.tag, piece.job.outcome
            waiting = waiting[len(batch) :]

    def _ask(self, batch: Sequence[_Piece]) -> list[Any] | None:
        """An answer for each piece; None when the memory was too small."""
        try:
            pixels = np.stack([piece.pixels for piece in batch])
            if batch[0].job.plan.grid is not None:
                return list(self._score(pixels))
            return list(zip(*self._forward(pixels), strict=True))
        except self._out_of_memory:
            return None

    def _take(self, piece: _Piece, answer: Any) -> bool:
        """True if the job of this piece has just come to its end, one way or the other."""
        if piece.job.outcome is not None:
            return False
        try:
            if answer is None:
                raise MemoryError
            piece.job.take(piece.number, answer, self._options)
        except MemoryError:
            piece.job.fail()
        return piece.job.outcome is not None
