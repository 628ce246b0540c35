"""The parts of the doctor: counting values, likeness, the pool that outlives a killer, lines of YAML."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from batchseg.doctor.counting import count_values
from batchseg.doctor.finding import Finding, sort_findings
from batchseg.doctor.near import MAX_BITS, MAX_GREY, count_different_bits, find_near_pairs, hash_thumbs
from batchseg.doctor.pool import ChunkPool
from batchseg.doctor.report import shorten


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["noise", "areas", "one value", "one pixel"])
def test_values_are_counted_exactly(dtype: type[np.unsignedinteger], kind: str) -> None:
    rng = np.random.default_rng(0)
    raw = {
        "noise": rng.integers(0, np.iinfo(dtype).max + 1, (60, 70)),
        "areas": np.repeat(np.repeat(rng.integers(0, 256, (6, 7)), 10, axis=0), 10, axis=1),
        "one value": np.full((60, 70), 255),
        "one pixel": np.full((1, 1), 3),
    }[kind].astype(dtype)
    values, pixels = count_values(raw)
    expected_values, expected_pixels = np.unique(raw, return_counts=True)
    assert values.tolist() == expected_values.tolist()
    assert pixels.tolist() == expected_pixels.tolist()


def test_colors_are_counted_as_codes() -> None:
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[1:3] = (255, 1, 2)
    values, pixels = count_values(rgb)
    assert (values.tolist(), pixels.tolist()) == ([0, 0xFF0102], [10, 10])


def make_thumbs(count: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Random thumbnails in two groups; the last ones are noisy copies of the first, in the other group."""
    rng = np.random.default_rng(3)
    thumbs = rng.integers(0, 256, (count, 8, 9)).astype(np.uint8)
    noise = rng.integers(-4, 5, (copies, 8, 9))
    thumbs[count - copies :] = np.clip(thumbs[:copies].astype(int) + noise, 0, 255)
    return thumbs, (np.arange(count) >= count - copies).astype(np.uint8)


def test_near_pairs_are_those_of_comparing_all() -> None:
    thumbs, groups = make_thumbs(700, 120)
    hashes = hash_thumbs(thumbs)
    centred = thumbs - thumbs.mean(axis=(1, 2), keepdims=True)
    expected = [
        (i, j)
        for i in range(len(thumbs))
        for j in range(i + 1, len(thumbs))
        if groups[i] != groups[j]
        and count_different_bits(hashes[i : i + 1], hashes[j : j + 1])[0] <= MAX_BITS
        and np.abs(centred[i] - centred[j]).mean() <= MAX_GREY
    ]
    assert len(expected) > 100
    assert [tuple(pair) for pair in find_near_pairs(thumbs, groups).tolist()] == expected


def test_near_pairs_of_equal_and_of_flat_pictures() -> None:
    groups = np.array([0, 0, 1, 1], np.uint8)
    equal = np.repeat(make_thumbs(1, 0)[0], 4, axis=0)
    found = find_near_pairs(equal, groups)
    assert set(found.ravel().tolist()) == {0, 1, 2, 3}, "each has a twin"
    assert len(find_near_pairs(np.full((4, 8, 9), 90, np.uint8), groups)) == 0
    assert len(find_near_pairs(np.zeros((0, 8, 9), np.uint8), groups[:0])) == 0


def work(chunk: list[int], killers: tuple[int, ...]) -> list[int]:
    if any(number in killers for number in chunk):
        os.kill(os.getpid(), signal.SIGSEGV)
    return [number * 10 for number in chunk]


def blame(chunk: list[int], reason: str) -> list[int]:
    assert len(chunk) == 1
    assert "SIGSEGV" in reason
    return [-chunk[0]]


@pytest.mark.parametrize("killers", [(), (0,), (37, 38, 99)])
def test_a_killer_costs_itself_alone(killers: tuple[int, ...]) -> None:
    chunks = [list(range(start, start + 4)) for start in range(0, 100, 4)]
    with ChunkPool(partial(work, killers=killers), blame, 2, is_remote=False) as pool:
        found = sorted(number for result in pool.run(iter(chunks)) for number in result)
    expected = [-number if number in killers else number * 10 for number in range(100)]
    assert found == sorted(expected)


def test_few_chunks_are_held_at_a_time() -> None:
    taken = 0

    def make_chunks() -> Iterator[list[int]]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield [number]

    with ChunkPool(partial(work, killers=()), blame, 2, is_remote=False) as pool:
        for done, _ in enumerate(pool.run(make_chunks())):
            assert taken - done <= 8
    assert taken == 200


def test_what_is_read_over_the_network_runs_in_threads() -> None:
    with ChunkPool(lambda chunk: [os.getpid()], blame, 2, is_remote=True) as pool:
        assert {number for result in pool.run(iter([[1], [2]])) for number in result} == {os.getpid()}


def test_order_of_findings() -> None:
    findings = [
        Finding("a", "remark", "", 9, ""),
        Finding("b", "error", "", 1, ""),
        Finding("c", "warning", "", 5, ""),
        Finding("d", "error", "", 3, ""),
    ]
    assert [finding.kind for finding in sort_findings(findings)] == ["d", "b", "c", "a"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (61_234, "61.2k"), (999_999, "1.00M"), (10**9, "1.00G")],
)
def test_short_numbers(number: int, text: str) -> None:
    assert shorten(number) == text
