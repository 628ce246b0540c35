"""From the command line to the first mask on a Ray that runs already, and what that time is made of.

    python benchmarks/first_mask.py IMAGES --model BUNDLE [--rounds 5] [--cpus 2]

whole: `batchseg segment IMAGES --actors 1`, until its first mask is on disk; a process of its own each time, with new
worker processes, as every job has. Beside it each part, alone and in turn:
  command   Python and the imports of `segment`
  connect   to Ray
  process   until an actor answers: Ray starts a process, which imports Ray
  imports   of Ray Data and batchseg in that actor
  model     TensorFlow, the bundle and its golden image there
  block     the first block of images, read and decoded as well
The parts follow one another. A whole that is longer has waited, or shared its cores with the stages that decode.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before Ray is imported: the Ray of this machine has a token otherwise, which each command would have to be told.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray

from batchseg import cluster
from batchseg.options import SegmentOptions

_LOOK_SECONDS = 0.02
_SETTLE_SECONDS = 5.0  # a Ray that has just started still starts its own processes
_HEAD = """
import sys, ray
from batchseg import cluster
with cluster.connect("local", cpus=int(sys.argv[1])):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
_COMMAND = "import batchseg.cli, batchseg.segment"


class Actor:
    """Does in a new process, one after the other, what the model actor of a job does."""

    def answer(self) -> None:
        """The process is there."""

    def load_rooms(self) -> None:
        """As Ray does, to unpack the actor's class."""
        import batchseg.stream  # noqa: F401

    def load_model(self, bundle: str, threads: int) -> None:
        """And checks its golden image."""
        from batchseg.predict import Predictor

        self._predictor: Any = Predictor(bundle, threads=threads)

    def predict(self, paths: list[str]) -> None:
        """Reads, decodes, and runs the model."""
        self._predictor.predict(paths)


def measure(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure_parts(address: str, paths: list[str], bundle: str, threads: int) -> dict[str, float]:
    """Each part by itself; the actor is of a job of its own, so that its process is new."""
    parts = {"command": measure(lambda: subprocess.run([sys.executable, "-c", _COMMAND], check=True))}
    started = time.perf_counter()
    with cluster.connect(address):
        parts["connect"] = time.perf_counter() - started
        actor = ray.remote(num_cpus=0.9)(Actor).remote()
        parts["process"] = measure(lambda: ray.get(actor.answer.remote()))
        parts["imports"] = measure(lambda: ray.get(actor.load_rooms.remote()))
        parts["model"] = measure(lambda: ray.get(actor.load_model.remote(bundle, threads)))
        parts["block"] = measure(lambda: ray.get(actor.predict.remote(paths)))
    return parts


def measure_whole(address: str, images: str, bundle: str, out: Path) -> float:
    """Seconds from the command to the first file in masks/."""
    command = [sys.executable, "-m", "batchseg", "segment", images, "--model", bundle, "--out", str(out)]
    started, seconds = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [*command, "--actors", "1", "--address", address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not seconds and process.poll() is None:
        time.sleep(_LOOK_SECONDS)
        if (out / "masks").exists() and any((out / "masks").iterdir()):
            seconds = time.perf_counter() - started
    _, errors = process.communicate()
    if process.returncode or not seconds:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {errors}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images; the fewer, the sooner a round has ended")
    parser.add_argument("--model", required=True, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    given = parser.parse_args()
    block = 2 * SegmentOptions().batch_size
    paths = [str(path) for path in sorted(given.images.resolve().iterdir())][:block]
    bundle = str(Path(given.model).resolve())
    rounds: list[dict[str, float]] = []
    head = subprocess.Popen(
        [sys.executable, "-c", _HEAD, str(given.cpus)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert head.stdin
    assert head.stdout
    try:
        address = head.stdout.readline().strip()
        time.sleep(_SETTLE_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(given.rounds):
                whole = measure_whole(address, str(given.images), bundle, Path(folder, str(number)))
                rounds.append({"whole": whole, **measure_parts(address, paths, bundle, given.cpus)})
                print("  ".join(f"{name} {seconds:.1f}" for name, seconds in rounds[-1].items()), flush=True)
    finally:
        head.stdin.close()
        head.wait()
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    parts = sum(medians.values()) - medians["whole"]
    print(
        "median  " + "  ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items()), f" parts {parts:.1f} s"
    )


if __name__ == "__main__":
    main()
