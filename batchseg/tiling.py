"""`fit: tile`: where the tiles of an image lie, and how their class scores become one answer per pixel.

    image --cut--> tile, tile, … --model--> scores --blend--> blocks of final scores --pick--> ids and confidence

Tiles lie on a regular grid that begins at the upper left corner; beyond the image's edge a tile mirrors the image. Of
an overlap the outer quarter on each side counts nothing, because there a tile knows too little around its pixels; over
the half in between one tile fades into the next, and their weights add up to 1.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchseg.classes import MaskArray
from batchseg.images import RgbArray

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TileSpan:
    """A tile along one axis. It begins at `start` and counts in [kept_from, kept_to), all in pixels of the image.

    In the `fade` first and last pixels of what counts it shares with its neighbours, where it has them.
    """

    start: int
    kept_from: int
    kept_to: int
    fade: int
    is_first: bool
    is_last: bool

    @property
    def inner(self) -> slice:
        """What counts, in pixels of the tile."""
        return slice(self.kept_from - self.start, self.kept_to - self.start)

    @property
    def final_to(self) -> int:
        """Up to here, from kept_from, no later tile adds anything."""
        return self.kept_to if self.is_last else self.kept_to - self.fade

    def make_weights(self) -> FloatArray:
        """float32, one per pixel that counts: rising, 1, falling."""
        weights = np.ones(self.kept_to - self.kept_from, np.float32)
        rising = np.sin((np.arange(self.fade) + 0.5) / max(1, self.fade) * (np.pi / 2)).astype(np.float32) ** 2
        if not self.is_first:
            weights[: self.fade] = rising
        if not self.is_last:
            # 1 - rising, not the cosine: so the two add up to 1 but for the last bit.
            weights[len(weights) - self.fade :] = 1 - rising
        return weights


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image, by number, row by row. They are computed when asked for, never listed.

    overlap: pixels that neighbours share on each axis; at most half of the smaller side of `tile_hw`.
    """

    image_hw: tuple[int, int]
    tile_hw: tuple[int, int]
    overlap: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, columns = (
            max(1, -(-(side - self.overlap) // (tile - self.overlap)))
            for side, tile in zip(self.image_hw, self.tile_hw, strict=True)
        )
        return rows, columns

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def fade(self) -> int:
        """Pixels over which one tile fades into the next."""
        return self.overlap - 2 * (self.overlap // 4)

    def locate(self, number: int) -> tuple[TileSpan, TileSpan]:
        """The spans of a tile from top to bottom and from left to right."""
        row, column = divmod(number, self.shape[1])
        return self._span(0, row), self._span(1, column)

    def _span(self, axis: int, place: int) -> TileSpan:
        side, tile, margin = self.image_hw[axis], self.tile_hw[axis], self.overlap // 4
        start = place * (tile - self.overlap)
        is_first, is_last = place == 0, place == self.shape[axis] - 1
        kept_to = side if is_last else start + tile - margin
        return TileSpan(start, start + (0 if is_first else margin), kept_to, self.fade, is_first, is_last)

    def cut(self, image_rgb: RgbArray, number: int) -> RgbArray:
        """uint8 of tile_hw x 3: a view where the tile lies inside the image, else a copy, mirrored beyond the edge."""
        down, right = self.locate(number)
        (height, width), (tile_height, tile_width) = self.image_hw, self.tile_hw
        if down.start + tile_height <= height and right.start + tile_width <= width:
            return image_rgb[down.start : down.start + tile_height, right.start : right.start + tile_width]
        rows = mirror_indices(down.start, tile_height, height)
        columns = mirror_indices(right.start, tile_width, width)
        return image_rgb[rows[:, None], columns]

    def score_bytes(self, num_classes: int) -> int:
        """Bytes of class scores that are kept between tiles, float32: the bound of `ScoreBlender`.

        4 * num_classes * fade * (image width + tile height), where fade is half the overlap. 21 classes, 20,000 pixels
        wide, tiles of 512 with an overlap of 128: 110 MB. The height of the image does not count.
        """
        rows, columns = self.shape
        band = self.image_hw[1] if rows > 1 else 0
        seam = self.tile_hw[0] if columns > 1 else 0
        return 4 * num_classes * self.fade * (band + seam)


def mirror_indices(start: int, count: int, side: int) -> npt.NDArray[np.intp]:
    """The pixels of an axis of `side` that stand at start, start + 1, …; beyond the edge it is mirrored, again and
    again if need be, and the edge itself is not repeated.
    """
    if side == 1:
        return np.zeros(count, np.intp)
    period = 2 * (side - 1)
    places = np.arange(start, start + count) % period
    return np.minimum(places, period - places)


@dataclass(frozen=True)
class Block:
    """Final scores of a rectangle of the image, float32 classes x height x width."""

    top: int
    left: int
    scores: FloatArray


class ScoreBlender:
    """Adds up the scores of one image's tiles, which come in the order of their numbers.

    Only what a later tile still adds to is kept: of the row of tiles above, the rows that fade; of the tile to the
    left, the columns that fade. Never more than grid.score_bytes(num_classes).
    """

    def __init__(self, grid: TileGrid, num_classes: int):
        self._grid = grid
        rows, columns = grid.shape
        self._above = np.zeros((num_classes, grid.fade, grid.image_hw[1] if rows > 1 else 0), np.float32)
        self._left = np.zeros((num_classes, grid.tile_hw[0] if columns > 1 else 0, grid.fade), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that are held between tiles."""
        return self._above.nbytes + self._left.nbytes

    def add(self, number: int, scores: FloatArray) -> Block:
        """scores: float32 classes x tile height x tile width, each pixel's sum 1. Returns what is final with them."""
        down, right = self._grid.locate(number)
        kept = scores[:, down.inner, right.inner] * right.make_weights()
        height, fade = kept.shape[1], self._grid.fade
        if not right.is_first:
            kept[:, :, :fade] += self._left[:, :height]
        if not right.is_last:
            self._left[:, :height] = kept[:, :, kept.shape[2] - fade :]
            kept = kept[:, :, : kept.shape[2] - fade]
        # These columns are complete but for what the rows of tiles above and below add.
        kept *= down.make_weights()[:, None]
        columns = slice(right.kept_from, right.final_to)
        if not down.is_first:
            kept[:, :fade] += self._above[:, :, columns]
        if not down.is_last:
            self._above[:, :, columns] = kept[:, height - fade :]
            kept = kept[:, : height - fade]
        return Block(down.kept_from, right.kept_from, kept)


def pick_classes(scores: FloatArray) -> tuple[MaskArray, FloatArray]:
    """Scores float32 classes x H x W -> (ids uint8 HxW, scores of them float32 HxW). Of equals the first wins."""
    best = scores[0].copy()
    ids = np.zeros(best.shape, np.uint8)
    # Plane by plane takes half the time of argmax and max over the first axis.
    for class_id in range(1, len(scores)):
        plane = scores[class_id]
        np.putmask(ids, plane > best, class_id)
        np.maximum(best, plane, out=best)
    return ids, best
