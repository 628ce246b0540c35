"""Tiles cover every pixel, their weights add up to 1, and what is kept between them is bounded."""

import itertools

import cv2
import numpy as np
import pytest

from batchseg.tiling import ScoreBlender, TileGrid, mirror_indices, pick_classes

SIZES_HW = [(1, 1), (1, 97), (97, 1), (7, 5), (32, 48), (33, 48), (64, 96), (101, 67), (123, 250)]
GRIDS = [
    TileGrid(size_hw, tile_hw, overlap)
    for size_hw, (tile_hw, overlap) in itertools.product(
        SIZES_HW, [((32, 48), 0), ((32, 48), 8), ((32, 48), 16), ((16, 16), 2), ((16, 16), 5), ((512, 512), 128)]
    )
]


def draw_scores(grid: TileGrid, classes: int) -> np.ndarray:
    """Scores of the whole image and beyond its edge, as far as its tiles reach; a pixel's add up to 1."""
    reach = [last.start + tile for last, tile in zip(grid.locate(len(grid) - 1), grid.tile_hw, strict=True)]
    scores = np.random.default_rng(0).random((classes, *reach), np.float32)
    return scores / scores.sum(0)


def cut_scores(grid: TileGrid, scores: np.ndarray, number: int) -> np.ndarray:
    (top, left), (height, width) = (span.start for span in grid.locate(number)), grid.tile_hw
    return scores[:, top : top + height, left : left + width]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_cover_the_image_once_and_change_nothing_that_tiles_agree_on(grid: TileGrid) -> None:
    scores = draw_scores(grid, 3)
    blender, seen = ScoreBlender(grid, 3), np.zeros(grid.image_hw, int)
    for number in range(len(grid)):
        block = blender.add(number, cut_scores(grid, scores, number))
        height, width = block.scores.shape[1:]
        window = np.s_[block.top : block.top + height, block.left : block.left + width]
        seen[window] += 1
        # The weights add up to 1, so scores that are equal in all tiles come out as they are.
        np.testing.assert_allclose(block.scores, scores[:, *window], atol=3e-7)
    assert (seen == 1).all()


def test_the_outer_quarter_of_an_overlap_counts_nothing() -> None:
    grid = TileGrid((56, 120), (32, 48), 8)
    scores = draw_scores(grid, 2)
    edges = np.ones(grid.tile_hw, bool)
    edges[2:-2, 2:-2] = False
    blender = ScoreBlender(grid, 2)
    for number in range(len(grid)):
        (down, right), tile = grid.locate(number), cut_scores(grid, scores, number).copy()
        wrong = edges.copy()
        # At the edge of the image there is no neighbour that knows better.
        for span, axis in ((down, wrong), (right, wrong.T)):
            if span.is_first:
                axis[:2] = False
            if span.is_last:
                axis[-2:] = False
        tile[:, wrong] = 1e6
        assert blender.add(number, tile).scores.max() <= 1.001


def test_a_tile_fades_smoothly() -> None:
    _, span = TileGrid((64, 200), (64, 64), 32).locate(1)
    weights = span.make_weights()
    assert len(weights) == 64 - 2 * 8
    assert (np.diff(weights[:16]) > 0).all()
    assert (np.diff(weights[-16:]) < 0).all()
    assert (weights[16:-16] == 1).all()
    assert abs(np.diff(weights)).max() < 0.11
    np.testing.assert_allclose(weights[:16] + weights[-16:], 1, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_are_cut_out_of_the_mirrored_image(grid: TileGrid) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*grid.image_hw, 3), np.uint8)
    down, right = grid.locate(len(grid) - 1)
    below = max(0, down.start + grid.tile_hw[0] - grid.image_hw[0])
    beside = max(0, right.start + grid.tile_hw[1] - grid.image_hw[1])
    padded = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
    for number in range(len(grid)):
        top, left = (span.start for span in grid.locate(number))
        tile = grid.cut(image, number)
        assert np.array_equal(tile, padded[top : top + grid.tile_hw[0], left : left + grid.tile_hw[1]])
        fits = top + grid.tile_hw[0] <= grid.image_hw[0] and left + grid.tile_hw[1] <= grid.image_hw[1]
        assert np.shares_memory(tile, image) == fits


@pytest.mark.parametrize(("side", "count"), [(1, 5), (2, 7), (3, 3), (5, 40)])
def test_mirror_indices(side: int, count: int) -> None:
    expected = [cv2.borderInterpolate(place, side, cv2.BORDER_REFLECT_101) for place in range(2, 2 + count)]
    assert mirror_indices(2, count, side).tolist() == expected


@pytest.mark.parametrize(
    ("tile_hw", "overlap", "megabytes"), [((384, 480), 96, 83), ((512, 512), 128, 111), ((1024, 1024), 256, 227)]
)
def test_scores_of_a_wide_image_are_bounded(tile_hw: tuple[int, int], overlap: int, megabytes: int) -> None:
    for height in (10_000, 20_000):
        grid = TileGrid((height, 20_000), tile_hw, overlap)
        # classes x rows that fade x (width + height of a tile) x float32
        assert grid.score_bytes(21) == 21 * (overlap // 2) * (20_000 + tile_hw[0]) * 4
        assert ScoreBlender(grid, 21).nbytes == grid.score_bytes(21)
        assert megabytes - 1 <= grid.score_bytes(21) / 1e6 <= megabytes < 512 * 1.048576


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_bound_holds_for_every_grid(grid: TileGrid) -> None:
    assert ScoreBlender(grid, 5).nbytes == grid.score_bytes(5)


def test_a_grid_is_computed_not_listed() -> None:
    grid = TileGrid((200_000, 200_000), (32, 32), 8)
    assert len(grid) == 8333**2
    down, right = grid.locate(len(grid) - 1)
    assert (down.start, right.start) == (8332 * 24, 8332 * 24)
    assert hash(grid) == hash(TileGrid((200_000, 200_000), (32, 32), 8))


def test_pick_classes_is_argmax_and_the_first_of_equals() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (7, 30, 40)).astype(np.float32)
    ids, confidence = pick_classes(scores)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, scores.argmax(0))
    assert np.array_equal(confidence, scores.max(0))
