"""What a training worker eats: sample order, decode cache, augmentation, prefetch.

The order is a pure function of seed and step, so one number resumes it and every worker count sees the same batches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from batchseg import geometry as geo
from batchseg.augment import augment_pair, mix_pair
from batchseg.classes import ClassTable, MaskArray
from batchseg.config import AugmentConfig
from batchseg.datasets import Sample
from batchseg.datasets.sample import load_sample
from batchseg.images import RgbArray

Item = TypeVar("Item")
Result = TypeVar("Result")

_PREFETCHED_BATCHES = 3
_VAL_IMAGES_AHEAD = 32
_VAL_BYTES_AHEAD = 256 * 2**20


@dataclass(frozen=True)
class Shard:
    """Worker `rank` of `world_size`."""

    rank: int
    world_size: int

    def take(self, indices: Sequence[Item]) -> Sequence[Item]:
        """The items k, k+W, … of a list that all workers share."""
        return indices[self.rank :: self.world_size]


def draw_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order of samples in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class MemoryBudget:
    """Bytes that the caches of one worker may keep, all of them together."""

    def __init__(self, size_bytes: int):
        self._free_bytes, self._lock = size_bytes, Lock()

    def take(self, size_bytes: int) -> bool:
        """True, and the bytes are taken, if they are still there."""
        with self._lock:
            if size_bytes > self._free_bytes:
                return False
            self._free_bytes -= size_bytes
            return True


@dataclass(frozen=True)
class CachedSample:
    """canvas: uint8 HxWx3. mask: uint8, at the size of the canvas for training, of the image for val. With `fit: tile`
    both are as large as the image.
    """

    canvas: RgbArray
    mask: MaskArray
    plan: geo.Plan


class SampleCache:
    """Decoded and fitted samples, kept as uint8 while the budget lasts.

    fits_masks: True keeps masks as training eats them, False at the image's own size, where val scores.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: ClassTable,
        geometry: geo.Geometry,
        budget: MemoryBudget,
        *,
        fits_masks: bool,
    ):
        self._samples, self._classes, self._geometry = samples, classes, geometry
        self._budget, self._fits_masks = budget, fits_masks
        self._kept: dict[int, CachedSample] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> CachedSample:
        """Raises UserError naming a file that cannot be used."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        loaded = load_sample(self._samples[index], self._classes, self._geometry)
        plan = loaded.fitted.plan
        mask = geo.fit_mask(loaded.truth, plan) if self._fits_masks else loaded.truth
        sample = CachedSample(loaded.fitted.canvas, mask, plan)
        if self._budget.take(sample.canvas.nbytes + mask.nbytes):
            self._kept[index] = sample
        return sample


@dataclass(frozen=True)
class TrainFeed:
    """Batches of one worker. `batch_size` is global; a worker's share differs by one where it does not divide."""

    cache: SampleCache
    shard: Shard
    batch_size: int
    seed: int
    augment: AugmentConfig
    crop_hw: tuple[int, int]
    threads: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: what is left over is another part of the split in every epoch."""
        return len(self.cache) // self.batch_size

    def batch_indices(self, epoch: int, step: int) -> list[int]:
        """The samples of all workers in one step."""
        start = step * self.batch_size
        return draw_order(self.seed, epoch, len(self.cache))[start : start + self.batch_size].tolist()

    def iterate_epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[RgbArray, MaskArray]]:
        """Yields (images uint8 nxHxWx3, masks uint8 nxHxW) for the steps of the epoch from `first_step` on, n being
        this worker's share.
        """
        order = draw_order(self.seed, epoch, len(self.cache))
        jobs = (
            [(epoch, index) for index in self.shard.take(order[start : start + self.batch_size].tolist())]
            for start in range(first_step * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size)
        )
        for pairs in map_batches_ahead(self._make_pair, jobs, self.threads):
            yield np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])

    def _make_pair(self, job: tuple[int, int]) -> tuple[RgbArray, MaskArray]:
        epoch, index = job
        sample = self.cache.load(index)
        if not self.augment.enabled:
            return geo.crop_center(sample.canvas, sample.mask, self.crop_hw)
        # Of nothing but these, so that any worker makes the same pair of a sample.
        rng = np.random.default_rng([self.seed, epoch, index])

        def augment(source: CachedSample) -> tuple[RgbArray, MaskArray]:
            return augment_pair(source.canvas, source.mask, rng, self.augment, self.crop_hw)

        pair = augment(sample)
        return mix_pair(pair, lambda: augment(self.cache.load(int(rng.integers(len(self.cache))))), rng, self.augment)


def iterate_val(cache: SampleCache, shard: Shard, threads: int) -> Iterator[CachedSample]:
    """This worker's share of the val split, image by image; together the workers see every image once.

    A few images are loaded ahead: as many as are cheap to hold, which of large ones (`fit: tile`) is one per thread.
    """
    mine = deque(shard.take(range(len(cache))))
    waiting: deque[Future[CachedSample]] = deque()
    ahead = threads
    with ThreadPoolExecutor(threads, thread_name_prefix="val") as pool:
        try:
            while mine or waiting:
                while mine and len(waiting) < ahead:
                    waiting.append(pool.submit(cache.load, mine.popleft()))
                sample = waiting.popleft().result()
                ahead = min(_VAL_IMAGES_AHEAD, max(threads, _VAL_BYTES_AHEAD // sample.canvas.nbytes))
                yield sample
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def map_batches_ahead(
    function: Callable[[Item], Result], batches: Iterator[list[Item]], threads: int
) -> Iterator[list[Result]]:
    """Applies `function` to every item in threads (OpenCV and Pillow release the lock), a few batches ahead."""
    waiting: deque[list[Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:
        try:
            for batch in batches:
                waiting.append([pool.submit(function, item) for item in batch])
                if len(waiting) > _PREFETCHED_BATCHES:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
