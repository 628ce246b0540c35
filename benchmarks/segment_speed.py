"""How fast is `segment`, against a plain Keras loop and against the model alone?

    python benchmarks/segment_speed.py BUNDLE IMAGES [--rounds 3]

Three ways over the same images in the same process, in turn, so that a machine that slows down slows all of them:
  segment      the batch job, from the first listing to the last row, start of Ray left out (it runs already)
  plain loop   read, resize, model.predict_on_batch one by one, argmax, write mask and overlay PNG
  model alone  the predictor on canvases that lie in memory, in batches of 8: the floor on this machine
Prints the median images per second of each and its ratio to the plain loop.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import ray

from batchseg import Predictor, bundle, cluster, geometry, segment_images
from batchseg.images import is_image_name


def time_segment(model: str, images: str) -> float:
    """Seconds of a whole job into a new folder."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        segment_images(images, model, f"{out}/segmented")
        return time.perf_counter() - started


def time_plain_loop(model: keras.Model, card: bundle.BundleCard, files: list[Path]) -> float:
    """Seconds of the loop that most people write first."""
    height, width = card.geometry.canvas_hw
    palette = card.classes.palette
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        for number, file in enumerate(files):
            image = cv2.imread(str(file))
            canvas = cv2.cvtColor(cv2.resize(image, (width, height)), cv2.COLOR_BGR2RGB)
            ids = model.predict_on_batch(canvas[None])[0].argmax(-1).astype(np.uint8)
            mask = cv2.resize(ids, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(f"{out}/{number}-mask.png", mask)
            cv2.imwrite(f"{out}/{number}-overlay.png", image // 2 + palette[mask][..., ::-1] // 2)
        return time.perf_counter() - started


def time_model(predictor: Predictor, files: list[Path]) -> float:
    """Seconds of the model on canvases in memory."""
    fitted = [geometry.fit_encoded(f.read_bytes(), predictor.card.geometry) for f in files]
    canvases, plans = [one.canvas for one in fitted], [one.plan for one in fitted]
    started = time.perf_counter()
    predictor.run(canvases, plans)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(file for file in Path(arguments.images).rglob("*") if is_image_name(file.name))
    seconds: dict[str, list[float]] = {"segment": [], "plain loop": [], "model alone": []}
    with cluster.connect("local"):
        cpus = ray.cluster_resources()["CPU"]
        predictor = Predictor(arguments.bundle)
        model = bundle.load_model(predictor.card)
        model.predict_on_batch(np.zeros((1, *predictor.card.geometry.canvas_hw, 3), np.uint8))
        time_model(predictor, files[:8])
        for _ in range(arguments.rounds):
            seconds["segment"].append(time_segment(arguments.bundle, arguments.images))
            seconds["plain loop"].append(time_plain_loop(model, predictor.card, files))
            seconds["model alone"].append(time_model(predictor, files))
    slowest = statistics.median(seconds["plain loop"])
    print(f"{len(files)} images, {cpus:g} CPUs, median of {arguments.rounds} rounds")
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.1f}-{max(values):.1f} s"
        print(f"{name:12s} {len(files) / middle:7.1f} images/s   {slowest / middle:5.2f} x plain loop   {spread}")


if __name__ == "__main__":
    main()
