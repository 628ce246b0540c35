"""The order of samples depends on seed and epoch alone; any number of workers sees the same batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchseg import feed as feed_room
from batchseg.classes import parse_classes
from batchseg.config import AugmentConfig
from batchseg.datasets import Sample
from batchseg.errors import UserError
from batchseg.feed import (
    CachedSample,
    MemoryBudget,
    SampleCache,
    Shard,
    TrainFeed,
    draw_order,
    iterate_val,
    map_batches_ahead,
)
from batchseg.geometry import Geometry, fit_mask

COUNT = 11
GEOMETRY = Geometry((16, 24), "resize", 8)
TILES = Geometry((24, 32), "tile", 8, 8)
CLASSES = parse_classes(["a", "b", "c"])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Pictures of different sizes; picture k has the grey value 10 k, so that a batch tells who is in it."""
    root, rng, found = tmp_path_factory.mktemp("feed"), np.random.default_rng(0), []
    for index in range(COUNT):
        size_hw = (18 + index, 24 + 2 * index)
        image, mask = root / f"{index}.png", root / f"{index}_mask.png"
        Image.new("RGB", size_hw[::-1], (10 * index,) * 3).save(image)
        Image.fromarray(rng.integers(0, 3, size_hw, dtype=np.uint8)).save(mask)
        found.append(Sample(image.name, str(image), str(mask)))
    return found


def make_cache(
    samples: Sequence[Sample], size_bytes: int = 10**7, *, geometry: Geometry = GEOMETRY, fits_masks: bool = True
) -> SampleCache:
    return SampleCache(samples, CLASSES, geometry, MemoryBudget(size_bytes), fits_masks=fits_masks)


def make_feed(
    samples: Sequence[Sample], rank: int = 0, world_size: int = 1, *, batch_size: int = 4, enabled: bool = True
) -> TrainFeed:
    return TrainFeed(
        cache=make_cache(samples),
        shard=Shard(rank, world_size),
        batch_size=batch_size,
        seed=5,
        augment=AugmentConfig(enabled=enabled),
        crop_hw=(16, 16) if enabled else GEOMETRY.canvas_hw,
        threads=2,
    )


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert draw_order(1, 2, 50).tolist() == draw_order(1, 2, 50).tolist()
    assert sorted(draw_order(1, 2, 50).tolist()) == list(range(50))
    orders = {tuple(draw_order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


ALL_ON = AugmentConfig(rotation=20, rare_crops=0.5, blur=0.5, noise=0.5, jpeg=0.5, class_mix=0.8, cutout=0.5)


@pytest.mark.parametrize("augment", [AugmentConfig(), ALL_ON], ids=["default", "all"])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_workers_sees_the_same_batches(
    samples: list[Sample], world_size: int, augment: AugmentConfig
) -> None:
    def list_batches(rank: int = 0, size: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(replace(make_feed(samples, rank, size), augment=augment).iterate_epoch(3))

    alone, together = list_batches(), [list_batches(rank, world_size) for rank in range(world_size)]
    assert len(alone) == COUNT // 4
    for step, (images, masks) in enumerate(alone):
        assert (images.shape, masks.shape) == ((4, 16, 16, 3), (4, 16, 16))
        for rank in range(world_size):
            # Bit for bit, augmentation and all.
            share_images, share_masks = together[rank][step]
            assert np.array_equal(share_images, images[rank::world_size])
            assert np.array_equal(share_masks, masks[rank::world_size])


def test_uneven_shares(samples: list[Sample]) -> None:
    shares = [[len(images) for images, _ in make_feed(samples, rank, 3).iterate_epoch(0)] for rank in range(3)]
    assert shares == [[2, 2], [1, 1], [1, 1]]


def test_batches_hold_the_samples_of_batch_indices(samples: list[Sample]) -> None:
    feed = make_feed(samples, enabled=False)
    assert feed.steps_per_epoch == 2
    for epoch in (0, 1):
        seen = []
        for step, (images, _) in enumerate(feed.iterate_epoch(epoch)):
            assert (images[:, 0, 0, 0] // 10).tolist() == feed.batch_indices(epoch, step)
            seen += feed.batch_indices(epoch, step)
        assert len(set(seen)) == 8


def test_epochs_differ_and_repeat(samples: list[Sample]) -> None:
    first, again, other = (list(make_feed(samples).iterate_epoch(epoch)) for epoch in (0, 0, 1))
    for (images, masks), (images_again, masks_again) in zip(first, again, strict=True):
        assert np.array_equal(images, images_again)
        assert np.array_equal(masks, masks_again)
    assert not np.array_equal(first[0][0], other[0][0])


def test_augmentation_of_a_sample_changes_with_the_epoch(samples: list[Sample]) -> None:
    feed = make_feed(samples, batch_size=COUNT)
    masks = []
    for epoch in (0, 1):
        _, batch = next(iter(feed.iterate_epoch(epoch)))
        masks.append(batch[feed.batch_indices(epoch, 0).index(4)])
    assert not np.array_equal(*masks)


def test_without_augmentation_the_whole_canvas(samples: list[Sample]) -> None:
    feed = make_feed(samples, enabled=False)
    images, masks = next(iter(feed.iterate_epoch(0)))
    assert images.shape == (4, 16, 24, 3)
    index = feed.batch_indices(0, 0)[0]
    assert np.array_equal(images[0], feed.cache.load(index).canvas)
    assert set(np.unique(masks)) <= {0, 1, 2}


def test_fewer_samples_than_a_batch(samples: list[Sample]) -> None:
    feed = make_feed(samples, batch_size=COUNT + 1)
    assert feed.steps_per_epoch == 0
    assert list(feed.iterate_epoch(0)) == []


@pytest.mark.parametrize("geometry", [GEOMETRY, TILES], ids=["resize", "tile"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_val_shards_cover_every_image_once(samples: list[Sample], world_size: int, geometry: Geometry) -> None:
    seen = []
    for rank in range(world_size):
        cache = make_cache(samples, 0, geometry=geometry, fits_masks=False)
        mine = []
        for sample in iterate_val(cache, Shard(rank, world_size), threads=2):
            index = int(sample.canvas[0, 0, 0]) // 10
            assert sample.mask.shape == sample.plan.image_hw == (18 + index, 24 + 2 * index)
            assert sample.canvas.shape == (*sample.plan.canvas_hw, 3)
            mine.append(index)
        assert mine == list(range(COUNT))[rank::world_size]  # in order, though threads load them
        seen += mine
    assert sorted(seen) == list(range(COUNT))


def test_large_val_images_are_not_loaded_far_ahead(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    class CountingCache(SampleCache):
        def load(self, index: int) -> CachedSample:
            loaded.append(index)
            return super().load(index)

    for budget_bytes, most in ((0, 2), (feed_room._VAL_BYTES_AHEAD, COUNT)):
        monkeypatch.setattr(feed_room, "_VAL_BYTES_AHEAD", budget_bytes)
        loaded.clear()
        cache = CountingCache(samples, CLASSES, TILES, MemoryBudget(0), fits_masks=False)
        images = iterate_val(cache, Shard(0, 1), threads=2)
        for taken in range(1, 4):
            next(images)
            assert len(loaded) <= taken + most
        images.close()


# --- tiles ---


def test_training_with_tiles_keeps_samples_at_their_own_size(samples: list[Sample]) -> None:
    cache = make_cache(samples, geometry=TILES)
    for index in (0, 7):
        sample = cache.load(index)
        assert sample.canvas.shape[:2] == sample.mask.shape == (18 + index, 24 + 2 * index)
        assert cache.load(index) is sample


@pytest.mark.parametrize("enabled", [True, False])
def test_training_with_tiles_eats_crops(samples: list[Sample], enabled: bool) -> None:
    """All of one size, whatever the sizes of the images; where an image is smaller, the rest is ignored."""
    feed = replace(
        make_feed(samples, enabled=enabled, batch_size=COUNT), cache=make_cache(samples, geometry=TILES),
        crop_hw=TILES.canvas_hw,
    )  # fmt: skip
    images, masks = next(feed.iterate_epoch(0))
    assert (images.shape, masks.shape) == ((COUNT, 24, 32, 3), (COUNT, 24, 32))
    assert set(np.unique(masks)) <= {0, 1, 2, 255}
    if enabled:
        return
    for row, index in enumerate(feed.batch_indices(0, 0)):
        own = feed.cache.load(index)
        height, width = min(24, 18 + index), min(32, 24 + 2 * index)
        assert (masks[row, height:] == 255).all()
        assert (masks[row, :, width:] == 255).all()
        top, left = (own.mask.shape[0] - height) // 2, (own.mask.shape[1] - width) // 2
        assert np.array_equal(masks[row, :height, :width], own.mask[top : top + height, left : left + width])
        assert (images[row] == 10 * index).all()


def test_native_samples_stay_in_their_budget(samples: list[Sample]) -> None:
    size_bytes = 18 * 24 * 4  # image and mask of the first, and nothing after it
    cache = make_cache(samples, size_bytes, geometry=TILES)
    first = cache.load(0)
    assert cache.load(1) is not cache.load(1)
    assert cache.load(0) is first


@pytest.mark.parametrize("fits_masks", [True, False])
@pytest.mark.parametrize("budget", [0, 10**7])
def test_cache_gives_the_same_with_any_budget(samples: list[Sample], budget: int, fits_masks: bool) -> None:
    cache, plain = (make_cache(samples, size, fits_masks=fits_masks) for size in (budget, 0))
    assert len(cache) == COUNT
    for index in (0, 3, 3, 0):
        sample, expected = cache.load(index), plain.load(index)
        assert np.array_equal(sample.canvas, expected.canvas)
        assert np.array_equal(sample.mask, expected.mask)
        assert sample.plan == expected.plan
    assert (cache.load(3) is cache.load(3)) == bool(budget)


def test_masks_are_kept_as_they_are_eaten(samples: list[Sample]) -> None:
    for index in (0, 5):
        fitted, own = (make_cache(samples, fits_masks=fits).load(index) for fits in (True, False))
        assert fitted.mask.shape == fitted.canvas.shape[:2] == GEOMETRY.canvas_hw
        assert own.mask.shape == own.plan.image_hw == (18 + index, 24 + 2 * index)
        assert np.array_equal(fitted.mask, fit_mask(own.mask, own.plan))
        assert fitted.mask.dtype == own.mask.dtype == np.uint8


def test_cache_stays_in_its_budget(samples: list[Sample]) -> None:
    # 16 x 24 x 3 of canvas and 18 x 24 of mask: the first sample fits, and nothing after it.
    cache = make_cache(samples, 16 * 24 * 3 + 18 * 24, fits_masks=False)
    first = cache.load(0)
    assert cache.load(1) is not cache.load(1)
    assert cache.load(0) is first


def test_memory_budget() -> None:
    budget = MemoryBudget(10)
    assert [budget.take(size) for size in (6, 5, 4, 1, 0)] == [True, False, True, False, True]


def test_threads_do_not_overdraw_a_budget() -> None:
    budget = MemoryBudget(1000)
    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(budget.take, [7] * 500))
    assert taken == 1000 // 7


@pytest.mark.parametrize("size_bytes", [0, 1535, 5000, 20_000, 10**7])
def test_two_caches_never_exceed_their_shared_budget(samples: list[Sample], size_bytes: int) -> None:
    budget = MemoryBudget(size_bytes)
    train = SampleCache(samples, CLASSES, GEOMETRY, budget, fits_masks=True)
    val = SampleCache(samples, CLASSES, GEOMETRY, budget, fits_masks=False)
    jobs = [(cache, index) for index in range(COUNT) for cache in (train, val)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: job[0].load(job[1]), jobs))
    # What is kept is the same object each time.
    kept = [cache.load(index) for cache, index in jobs if cache.load(index) is cache.load(index)]
    used = sum(sample.canvas.nbytes + sample.mask.nbytes for sample in kept)
    assert used <= size_bytes
    assert (len(kept) == len(jobs)) == (size_bytes == 10**7)
    assert bool(kept) == (size_bytes > 1535)  # a canvas and its fitted mask are 1536 bytes


def test_augmentation_does_not_change_the_cache(samples: list[Sample]) -> None:
    feed = make_feed(samples)
    before = [feed.cache.load(index).canvas.copy() for index in range(COUNT)]
    for epoch in range(2):
        for images, masks in feed.iterate_epoch(epoch):
            images[:] = 0
            masks[:] = 0
    for index in range(COUNT):
        assert np.array_equal(feed.cache.load(index).canvas, before[index])


def test_a_damaged_sample_is_named(samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with_broken = [*samples[:3], Sample("broken.png", str(broken), samples[0].mask)]
    with pytest.raises(UserError, match=r"image .*/broken\.png cannot be used: the file is empty"):
        list(make_feed(with_broken, batch_size=4).iterate_epoch(0))


def test_batches_come_in_order_and_not_too_far_ahead() -> None:
    taken: list[int] = []

    def draw_batches() -> Iterator[list[int]]:
        for index in range(20):
            taken.append(index)
            yield [index, index + 100]

    batches = map_batches_ahead(lambda value: value * 2, draw_batches(), threads=2)
    assert next(batches) == [0, 200]
    assert len(taken) <= 5
    assert list(batches) == [[2 * index, 2 * index + 200] for index in range(1, 20)]


def test_shard_takes_every_wth() -> None:
    assert [list(Shard(rank, 3).take(range(7))) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
