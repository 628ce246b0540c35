"""Pictures for people: sizes, colours, and ignored pixels left as they are."""

import numpy as np
import pytest

from batchseg.classes import ClassTable, parse_classes
from batchseg.render import draw_contact_sheet, draw_legend, draw_overlay, scale_to_longest

RED_BLUE = [{"name": "red", "color": "#ff0000"}, {"name": "blue", "color": "#0000ff"}]


@pytest.fixture
def table() -> ClassTable:
    return parse_classes(RED_BLUE)


def test_overlay_blends_half_and_half(table: ClassTable) -> None:
    image = np.full((6, 8, 3), 100, np.uint8)
    overlay = draw_overlay(image, np.ones((6, 8), np.uint8), table.palette)
    assert (overlay.shape, overlay.dtype) == ((6, 8, 3), np.uint8)
    assert np.abs(overlay.astype(int) - [50, 50, 178]).max() <= 1
    assert (image == 100).all()


def test_overlay_leaves_ignored_pixels_alone(table: ClassTable) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    ids = np.zeros((12, 12), np.uint8)
    ids[3:9, 3:9] = 255
    ids[:, 10:] = 1
    overlay = draw_overlay(image, ids, table.palette)
    assert np.array_equal(overlay[4:8, 4:8], image[4:8, 4:8])
    assert np.array_equal(overlay[ids == 255], image[ids == 255])
    assert not np.array_equal(overlay[ids == 0], image[ids == 0])
    everything_ignored = np.full((12, 12), 255, np.uint8)
    assert np.array_equal(draw_overlay(image, everything_ignored, table.palette), image)


def test_overlay_draws_a_dark_line_between_classes(table: ClassTable) -> None:
    image = np.full((6, 8, 3), 200, np.uint8)
    ids = np.zeros((6, 8), np.uint8)
    ids[:, 4:] = 1
    brightness = draw_overlay(image, ids, table.palette).astype(int).sum(axis=(0, 2))
    assert brightness[3:5].min() < 0.7 * brightness[0]
    assert brightness[1] == brightness[0]
    assert brightness[6] == brightness[7]


def test_overlay_scales_the_mask(table: ClassTable) -> None:
    image = np.full((10, 20, 3), 100, np.uint8)
    overlay = draw_overlay(image, np.array([[0, 1]], np.uint8), table.palette)
    assert overlay.shape == (10, 20, 3)
    assert overlay[5, 2].tolist() == overlay[5, 7].tolist()
    assert overlay[5, 2, 0] > overlay[5, 2, 2]
    assert overlay[5, 17, 2] > overlay[5, 17, 0]


@pytest.mark.parametrize(
    ("size_hw", "longest", "scaled_hw"),
    [
        ((400, 800), 400, (200, 400)),
        ((400, 800), 0, (400, 800)),
        ((400, 800), 900, (400, 800)),
        ((800, 3), 100, (100, 1)),
        ((801, 1601), 512, (256, 512)),
    ],
)
def test_scale_to_longest(size_hw: tuple[int, int], longest: int, scaled_hw: tuple[int, int]) -> None:
    assert scale_to_longest(size_hw, longest) == scaled_hw


def test_legend_shows_every_colour(table: ClassTable) -> None:
    legend = draw_legend(table, 300)
    assert (legend.shape[1:], legend.dtype) == ((300, 3), np.uint8)
    colors = {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert {(255, 0, 0), (0, 0, 255)} <= colors


def test_legend_breaks_its_lines() -> None:
    many = parse_classes([f"a long class name {i}" for i in range(12)])
    wide, narrow = draw_legend(many, 4000), draw_legend(many, 200)
    assert (wide.shape[1], narrow.shape[1]) == (4000, 200)
    assert narrow.shape[0] == 12 * wide.shape[0] - 11 * 4
    # Narrower than one name: still one a line, and no error.
    assert draw_legend(many, 20).shape == (narrow.shape[0], 20, 3)


def test_contact_sheet(table: ClassTable) -> None:
    rng = np.random.default_rng(0)
    rows = [
        [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), np.zeros((90, 120, 3), np.uint8)],
        [np.full((400, 200, 3), 7, np.uint8), rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)],
    ]
    sheet = draw_contact_sheet(rows, ["a.png", "ü.png"], ["image", "prediction"], table, cell_width=100)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1:] == (2 * 100 + 3 * 8, 3)
    # Both rows at the height of their highest picture, between the titles and the legend.
    assert sheet.shape[0] == 28 + (75 + 28) + (200 + 28) + draw_legend(table, sheet.shape[1]).shape[0]
    assert (sheet[28:103, 116:216] == 0).all()
