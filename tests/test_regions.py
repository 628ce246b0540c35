"""Small regions go to the class around them, and nothing else changes."""

from collections import Counter, deque

import cv2
import numpy as np
import pytest

from batchseg.regions import drop_small_regions


def parse(text: str) -> np.ndarray:
    """Digits are class ids, `#` is abstained."""
    return np.array([[255 if sign == "#" else int(sign) for sign in line] for line in text.split()], np.uint8)


def find_regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Connected regions, by walking."""
    seen, found = np.zeros(mask.shape, bool), []
    for start in zip(*np.nonzero(mask != 255), strict=True):
        if seen[start]:
            continue
        seen[start], waiting, region = True, deque([start]), []
        while waiting:
            y, x = waiting.popleft()
            region.append((y, x))
            for place in around(mask, y, x):
                if not seen[place] and mask[place] == mask[y, x]:
                    seen[place] = True
                    waiting.append(place)
        found.append(region)
    return found


def around(mask: np.ndarray, y: int, x: int) -> list[tuple[int, int]]:
    places = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return [(r, c) for r, c in places if 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1]]


def drop_slowly(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    result, is_settled = mask.copy(), np.zeros(mask.shape, bool)
    regions = find_regions(mask)
    for region in regions:
        is_settled[tuple(zip(*region, strict=True))] = len(region) >= min_pixels
    while True:
        changes = []
        for region in regions:
            if is_settled[region[0]]:
                continue
            votes = Counter(int(result[p]) for spot in region for p in around(mask, *spot) if is_settled[p])
            if votes:
                changes.append((region, min(votes, key=lambda c: (-votes[c], c))))
        if not changes:
            return result
        for region, class_id in changes:
            places = tuple(zip(*region, strict=True))
            result[places], is_settled[places] = class_id, True


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("00000 01100 00000", "00000 00000 00000"),
        ("00000 01110 00000", "00000 01110 00000"),  # large enough
        ("00022 00122 00022", "00022 00022 00022"),  # three edges against one
        ("000 010 222", "000 000 222"),
        ("0000 0120 0000", "0000 0000 0000"),  # two small ones do not swap
        ("00000 01110 01210 01110 00000", "00000 01110 01110 01110 00000"),
        ("00# 0#1 00#", "00# 0#1 00#"),  # nobody around
        ("000 0#1 000", "000 0#0 000"),  # abstained stays, and has no vote
        ("121 212 121", "121 212 121"),  # all are small
        ("0000 1000 0100 0000", "0000 0000 0000 0000"),  # corners do not connect
        ("1", "1"),
    ],
)
def test_drop_small_regions(before: str, after: str) -> None:
    mask = parse(before)
    assert drop_small_regions(mask, 3).tolist() == parse(after).tolist()
    assert mask.tolist() == parse(before).tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_pixels", [2, 5, 20, 200])
def test_against_a_slow_one(seed: int, min_pixels: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [(1, 40), (40, 1), (31, 47), (64, 64), (50, 23), (23, 50)][seed]
    fields = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 0.6 + seed / 3) for _ in range(5)]
    mask = np.array([0, 3, 7, 254, 255], np.uint8)[np.argmax(fields, 0)]
    assert np.array_equal(drop_small_regions(mask, min_pixels), drop_slowly(mask, min_pixels))


@pytest.mark.parametrize("min_pixels", [0, 1])
def test_off(min_pixels: int) -> None:
    mask = parse("010 101")
    assert drop_small_regions(mask, min_pixels) is mask


def test_read_only_masks_and_views_are_fine() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:6, 4:6] = 1
    view = mask[2:, 3:]
    view.flags.writeable = False
    assert not drop_small_regions(view, 9).any()
    assert mask.sum() == 4
