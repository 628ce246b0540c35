"""What does it cost to decode in a child process, as `segment` does after a death?

    python benchmarks/isolation_price.py [--side 640] [--rounds 5]

Fits 100 JPEGs in this process, in one child for all of them, and in a child of its own each, in turn. Prints the median
milliseconds per image of each.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from batchseg.datasets.drawn import draw_scene
from batchseg.geometry import Geometry
from batchseg.images import encode_image
from batchseg.isolation import IsolatedFunction
from batchseg.stages import FitStage

IMAGES = 100
_MEMORY, _TIMEOUT_S = 4 * 2**30, 300


def fit_in_one_child(fit: Callable[[bytes], object], data: list[bytes]) -> None:
    with IsolatedFunction(fit, memory_bytes=_MEMORY, timeout_s=_TIMEOUT_S) as child:
        for item in data:
            child(item)


def fit_in_many_children(fit: Callable[[bytes], object], data: list[bytes]) -> None:
    for item in data:
        fit_in_one_child(fit, [item])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    fit = FitStage(Geometry((256, 320), "letterbox", 32, 0), 250, 512).fit_picture
    scenes = [draw_scene(np.random.default_rng(seed), (options.side * 3 // 4, options.side))[0] for seed in range(10)]
    data = [encode_image(scenes[number % len(scenes)], ".jpg") for number in range(IMAGES)]
    ways: dict[str, Callable[[], object]] = {
        "here": lambda: [fit(item) for item in data],
        "one child": partial(fit_in_one_child, fit, data),
        "a child each": partial(fit_in_many_children, fit, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    for name, spent in seconds.items():
        print(f"{name:14s} {1000 * statistics.median(spent) / IMAGES:6.1f} ms per image")


if __name__ == "__main__":
    main()
