"""What does the engine itself cost: the whole stream with a model that costs nothing, and the time to the first mask?

    python benchmarks/engine_speed.py [--images 2000] [--actors 1,2,4] [--rounds 3] [--batch-size N]

Trains a 1x1 convolution on the set that batchseg draws, then segments copies of its pictures (160x128 PNG in, mask PNG
and overlay PNG out) on a Ray of this machine that runs already, for each number of actors in turn. Prints for each the
median of
  first mask   seconds from the call to the first mask on disk
  images/s     from then to the last row
  per image    milliseconds in Fit, Predict and Write (summed over their processes), and of the driver's own CPU time,
               from the first mask on
One thread of the driver feeds everything, so 1 / its time per image is what a cluster of any size can reach at most.
Actors beyond the cores of this machine share them: there only the price per image says something. At the end the time
from the command line to the first mask, in a process of its own on that Ray.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import ray

from batchseg import cluster, load_config, segment_images, train_model
from batchseg.datasets.drawn import draw_dataset
from batchseg.ledger import read_run
from batchseg.options import SegmentOptions

_CPUS = 8
"""That Ray counts, so that four actors and their stages find a place on any machine."""


@dataclass(frozen=True)
class Round:
    """One job: seconds to the first mask, images per second after it, milliseconds per image of stages and driver."""

    first_mask: float
    rate: float
    stages: dict[str, float]
    driver: float


def train_free_model(page: Path, classes: int, folder: Path) -> str:
    """The bundle of a model that does next to nothing."""
    inputs = keras.Input((None, None, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    given = folder / "free.keras"
    keras.Model(inputs, keras.layers.Conv2D(classes, 1)(scaled)).save(given)
    overrides = {
        "data": str(page),
        "out": str(folder / "train"),
        "model.architecture": str(given),
        "input.size": "128,160",
        "training.epochs": "1",
        "cluster.workers": "1",
    }
    return train_model(load_config(None, overrides)).bundle


@contextmanager
def watch_for_masks(out: Path) -> Iterator[list[tuple[float, float]]]:
    """Yields a list that gets the time of the first mask, and the CPU time of this process then."""
    found: list[tuple[float, float]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05) and not found:
            if (out / "masks").exists() and any((out / "masks").iterdir()):
                found.append((time.perf_counter(), time.process_time()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def run_command(photos: Path, bundle: str, out: Path) -> float:
    """Seconds from the command line to its first mask."""
    command = [sys.executable, "-m", "batchseg", "segment", str(photos), "--model", bundle, "--out", str(out)]
    address = ray.get_runtime_context().gcs_address
    started = time.perf_counter()
    with watch_for_masks(out) as found:
        subprocess.run([*command, "--actors", "1", "--address", address], check=True, capture_output=True)
    return found[0][0] - started


def run_job(photos: Path, bundle: str, out: Path, images: int, options: SegmentOptions) -> Round:
    """Segments once, and looks for the first mask meanwhile."""
    started = time.perf_counter()
    with watch_for_masks(out) as found:
        segment_images(str(photos), bundle, str(out), options=options)
    (first, cpu_before), cpu = found[0], time.process_time()
    speed = (read_run(str(out)) or {})["speed"]
    stages = {name: 1000 * entry["busy_seconds"] / images for name, entry in speed["stages"].items()}
    rate = images / (time.perf_counter() - first)
    return Round(first - started, rate, stages, 1000 * (cpu - cpu_before) / images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--actors", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=SegmentOptions().batch_size)
    given = parser.parse_args()
    counts = [int(word) for word in given.actors.split(",")]
    with tempfile.TemporaryDirectory() as temporary, cluster.connect("local", cpus=_CPUS):
        folder = Path(temporary)
        page = draw_dataset(folder / "data", train=32, val=8, test=8, seed=0)
        bundle = train_free_model(page, 6, folder)
        sources = sorted((page.parent / "train" / "images").iterdir())
        photos = folder / "photos"
        photos.mkdir()
        for number in range(given.images):
            (photos / f"{number:06d}.png").symlink_to(sources[number % len(sources)])
        rounds: dict[int, list[Round]] = {count: [] for count in counts}
        for number in range(given.rounds):
            for count in counts:
                out = folder / f"out-{number}-{count}"
                options = SegmentOptions(actors=count, batch_size=given.batch_size, sanity_check=False)
                rounds[count].append(run_job(photos, bundle, out, given.images, options))
        for count, seen in rounds.items():
            stages = {name: statistics.median(one.stages[name] for one in seen) for name in seen[0].stages}
            print(
                f"{count} actors  first mask {statistics.median(one.first_mask for one in seen):.1f} s  then "
                f"{statistics.median(one.rate for one in seen):.1f} images/s  per image "
                + "  ".join(f"{name} {value:.2f} ms" for name, value in stages.items())
                + f"  driver {statistics.median(one.driver for one in seen):.2f} ms",
                flush=True,
            )
        commands = [run_command(photos, bundle, folder / f"command-{number}") for number in range(given.rounds)]
        print(f"1 actor, from the command line: first mask {statistics.median(commands):.1f} s")


if __name__ == "__main__":
    main()
