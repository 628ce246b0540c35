"""Picture and mask move in step, and the same state of the generator gives the same pair."""

import hashlib

import cv2
import numpy as np
import pytest

from batchseg.augment import augment_pair, mix_pair
from batchseg.config import AugmentConfig

STEP = 40
"""A pixel of class k has the grey value STEP * k, so that the picture tells its own mask."""


def make_config(**values: object) -> AugmentConfig:
    return AugmentConfig(**{"scale": (1.0, 1.0), "flip": 0.0, "color": 0.0, **values})  # type: ignore[arg-type]


def draw_pair() -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 24 pixels in five classes, and the picture that shows their ids."""
    mask = np.kron(np.random.default_rng(0).integers(0, 5, (3, 4), dtype=np.uint8), np.ones((24, 24), np.uint8))
    return np.repeat((mask * STEP)[..., None], 3, axis=2), mask


def find_inner(mask: np.ndarray, distance: int = 3) -> np.ndarray:
    """True where all pixels around have the same id."""
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, window) == 0


@pytest.mark.parametrize("seed", range(12))
def test_picture_and_mask_stay_in_step(seed: int) -> None:
    image, mask = draw_pair()
    config = make_config(scale=(0.5, 2.0), flip=0.5)
    warped, ids = augment_pair(image, mask, np.random.default_rng(seed), config, (64, 80))
    assert (warped.shape, ids.shape) == ((64, 80, 3), (64, 80))
    assert (warped.dtype, ids.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(ids)) <= {0, 1, 2, 3, 4, 255}
    inner = find_inner(ids) & (ids != 255)
    assert inner.mean() > 0.05
    assert np.array_equal(np.rint(warped[..., 0] / STEP)[inner], ids[inner])


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.0, 1.3, 2.0])
def test_borders_of_picture_and_mask_agree_to_half_a_pixel(zoom: float) -> None:
    # Left half class 0, right half class 2: the grey value 40 is the border in the picture.
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 2
    image = np.repeat((mask * STEP)[..., None], 3, axis=2)
    for seed in range(5):
        config = make_config(scale=(zoom, zoom), flip=0.5)
        warped, ids = augment_pair(image, mask, np.random.default_rng(seed), config, (48, 64))
        valid = ids != 255
        in_picture = warped[..., 0] >= STEP
        disagree = (in_picture != (ids == 2)) & valid
        assert disagree.sum(axis=1).max() <= 1


def test_what_is_off_draws_nothing() -> None:
    """The pairs of the four first knobs, as they were before there were others."""
    image, mask = draw_pair()
    digest = hashlib.sha256()
    for seed in range(5):
        for part in augment_pair(image, mask, np.random.default_rng(seed), AugmentConfig(), (64, 80)):
            digest.update(part.tobytes())
    assert digest.hexdigest()[:16] == "dc4decd84ed08cbe"


@pytest.mark.parametrize("seed", range(6))
def test_rotation_keeps_picture_and_mask_in_step(seed: int) -> None:
    image, mask = draw_pair()
    config = make_config(rotation=40.0, scale=(0.8, 1.5), flip=0.5)
    warped, ids = augment_pair(image, mask, np.random.default_rng(seed), config, (64, 80))
    inner = find_inner(ids) & (ids != 255)
    assert inner.mean() > 0.05
    assert np.array_equal(np.rint(warped[..., 0] / STEP)[inner], ids[inner])


def test_a_turn_of_a_quarter_is_one() -> None:
    """180 degrees at most: of many draws some are near 90, where rows have become columns."""
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    mask[:20] = 1
    angles = set()
    for seed in range(60):
        _, ids = augment_pair(image, mask, np.random.default_rng(seed), make_config(rotation=180.0), (40, 40))
        rows, columns = np.nonzero(ids == 1)
        angles.add(round(np.degrees(np.arctan2(rows.mean() - 19.5, columns.mean() - 19.5)) / 90) % 4)
    assert angles == {0, 1, 2, 3}


def test_rare_crops_find_a_small_thing() -> None:
    image, mask = np.zeros((200, 300, 3), np.uint8), np.zeros((200, 300), np.uint8)
    mask[150:154, 7:11] = 3
    mask[:, 250:] = 255

    def count_finds(share: float) -> int:
        config = make_config(rare_crops=share)
        crops = [augment_pair(image, mask, np.random.default_rng(seed), config, (50, 50))[1] for seed in range(100)]
        assert all(set(np.unique(ids)) <= {0, 3, 255} for ids in crops)
        return sum(bool((ids == 3).any()) for ids in crops)

    assert count_finds(0.0) < 15
    assert 35 < count_finds(1.0) < 70, "every other crop is around the other class"
    mask[:] = 255
    _, ids = augment_pair(image, mask, np.random.default_rng(0), make_config(rare_crops=1.0), (50, 50))
    assert (ids == 255).all()


@pytest.mark.parametrize("knob", ["blur", "noise", "jpeg"])
def test_pixels_change_and_masks_do_not(knob: str) -> None:
    mask = np.zeros((48, 64), np.uint8)
    image = np.random.default_rng(9).integers(90, 120, (48, 64, 3), np.uint8)
    before = image.copy()
    for seed in range(5):
        config = make_config(**{knob: 1.0})
        changed, ids = augment_pair(image, mask, np.random.default_rng(seed), config, mask.shape)
        assert np.array_equal(ids, mask)
        difference = np.abs(changed.astype(int) - image)
        assert 0 < difference.mean() < 15
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)


def test_jpeg_keeps_colours_in_their_channels() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    changed, _ = augment_pair(
        image, np.zeros((32, 32), np.uint8), np.random.default_rng(0), make_config(jpeg=1.0), (32, 32)
    )
    assert np.abs(changed.astype(int) - image).max() < 12


def test_class_mix_takes_whole_classes_of_the_donor() -> None:
    image, mask = draw_pair()
    donor_mask = np.full_like(mask, 255)
    donor_mask[:20, :20], donor_mask[40:60, 40:60], donor_mask[:20, 60:] = 7, 8, 9
    donor = (np.full_like(image, 250), donor_mask)
    seen = set()
    for seed in range(12):
        mixed, ids = mix_pair((image, mask), lambda: donor, np.random.default_rng(seed), make_config(class_mix=1.0))
        pasted = set(np.unique(ids)) & {7, 8, 9}
        assert len(pasted) == 2, "half of three, rounded up"
        seen |= pasted
        from_donor = np.isin(donor_mask, sorted(pasted))
        assert np.array_equal(ids, np.where(from_donor, donor_mask, mask))
        assert (mixed[from_donor] == 250).all()
        assert np.array_equal(mixed[~from_donor], image[~from_donor])
    assert seen == {7, 8, 9}


def test_cutout_is_ignored() -> None:
    image, mask = draw_pair()
    for seed in range(5):
        cut, ids = mix_pair((image, mask), lambda: (image, mask), np.random.default_rng(seed), make_config(cutout=1.0))
        is_cut = ids == 255
        assert 0.005 < is_cut.mean() < 0.35
        assert len(np.unique(cut[is_cut])) == 1
        assert np.array_equal(cut[~is_cut], image[~is_cut])
        assert not (mask == 255).any()


def test_strength_scales_all_but_crops() -> None:
    config = AugmentConfig(
        strength=2.0, crop=(8, 8), rare_crops=0.5, scale=(0.5, 2.0), rotation=10, color=0.3, blur=0.1, cutout=0.8
    ).apply_strength()
    assert config.scale == pytest.approx((0.25, 4.0))
    assert (config.rotation, config.color, config.blur, config.cutout) == pytest.approx((20, 0.6, 0.2, 1.0))
    assert (config.crop, config.rare_crops, config.strength) == ((8, 8), 0.5, 1.0)
    none = AugmentConfig(strength=0.0, rotation=10, jpeg=0.5).apply_strength()
    assert none == AugmentConfig(scale=(1, 1), flip=0, color=0)


def test_same_state_same_pair() -> None:
    image, mask = draw_pair()
    config = AugmentConfig()
    one, same, other = (
        augment_pair(image, mask, np.random.default_rng([1, 2, seed]), config, (64, 80)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one[0], same[0])
    assert np.array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_off_is_no_change() -> None:
    image, mask = draw_pair()
    image[..., 1] = np.random.default_rng(0).integers(0, 256, mask.shape)
    warped, ids = augment_pair(image, mask, np.random.default_rng(0), make_config(), mask.shape)
    assert np.array_equal(warped, image)
    assert np.array_equal(ids, mask)


def test_flip() -> None:
    image, mask = draw_pair()
    warped, ids = augment_pair(image, mask, np.random.default_rng(0), make_config(flip=1.0), mask.shape)
    assert np.array_equal(warped, image[:, ::-1])
    assert np.array_equal(ids, mask[:, ::-1])


def test_flip_share() -> None:
    image, mask = draw_pair()
    config = make_config(flip=0.25)
    flipped = [
        not np.array_equal(augment_pair(image, mask, np.random.default_rng(seed), config, mask.shape)[1], mask)
        for seed in range(200)
    ]
    assert 0.15 < np.mean(flipped) < 0.35


def test_beyond_the_edge_is_ignored_and_mirrored() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    warped, ids = augment_pair(
        image, np.ones((40, 40), np.uint8), np.random.default_rng(0), make_config(scale=(0.5, 0.5)), (40, 40)
    )
    assert (ids == 1).sum() == pytest.approx(400, abs=45)
    assert set(np.unique(ids)) == {1, 255}
    # The whole small picture is inside, as one rectangle.
    rows, columns = np.nonzero(ids == 1)
    assert np.ptp(rows) in (19, 20)
    assert np.ptp(columns) in (19, 20)
    assert (warped == 200).all()


def test_ignored_pixels_stay_ignored() -> None:
    image, mask = draw_pair()
    mask[:] = 255
    for seed in range(3):
        _, ids = augment_pair(image, mask, np.random.default_rng(seed), AugmentConfig(), (64, 80))
        assert (ids == 255).all()


def test_a_crop_is_cut_from_anywhere() -> None:
    image, mask = draw_pair()
    corners = set()
    for seed in range(30):
        warped, ids = augment_pair(image, mask, np.random.default_rng(seed), make_config(), (24, 24))
        assert (ids != 255).all()
        corners.add(warped.tobytes())
    assert len(corners) > 20


def test_colour_leaves_the_mask_and_the_input_alone() -> None:
    image, mask = draw_pair()
    image_before, mask_before = image.copy(), mask.copy()
    changed = []
    for seed in range(5):
        warped, ids = augment_pair(image, mask, np.random.default_rng(seed), make_config(color=1.0), mask.shape)
        assert np.array_equal(ids, mask)
        assert (warped.shape, warped.dtype) == (image.shape, np.uint8)
        changed.append(np.abs(warped.astype(int) - image).mean())
    assert min(changed) > 1
    assert np.array_equal(image, image_before)
    assert np.array_equal(mask, mask_before)


def test_more_colour_changes_more() -> None:
    image = np.random.default_rng(0).integers(40, 200, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)

    def measure_change(strength: float) -> float:
        pairs = [
            augment_pair(image, mask, np.random.default_rng(seed), make_config(color=strength), (32, 32))
            for seed in range(20)
        ]
        return float(np.mean([np.abs(warped.astype(int) - image).mean() for warped, _ in pairs]))

    assert 0 < measure_change(0.1) < measure_change(0.3) < measure_change(1.0)
