"""Is training through Ray as fast as Keras alone, and does the feed keep up?

    python benchmarks/train_speed.py [CONFIG.yaml] [--steps 12] [--rounds 3] [--key.sub value …]

Each in a process of its own with as many TensorFlow threads, in turn, so that a machine that slows down slows all:
  keras fit   model.fit of the same model on batches that lie in memory, the plain way: Keras' own AdamW, and
              cross-entropy alone, without the Dice, clipping and average of weights that training has
  ray train   steps of the training worker under Ray Train with one worker, feed and augmentation included
  feed        the batches of that worker alone, without the model, over two epochs of which the second is cached
Prints the median steps per second of each and the ratios that matter: ray train / keras fit, and feed / ray train.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import ray

from batchseg import board as boards
from batchseg import cluster
from batchseg.config import TrainConfig, load_config
from batchseg.datasets import open_dataset
from batchseg.feed import Shard, TrainFeed
from batchseg.train_opening import find_model_files
from batchseg.train_task import TrainTask

WARM_UP_STEPS = 3


def make_task(config: TrainConfig, threads: int, board: Any = None) -> TrainTask:
    """One worker's task, without class weights; model files are named as a worker in another folder finds them."""
    config = config.model_copy(update={"model": find_model_files(config.model)})
    dataset = open_dataset(config.data)
    splits = dataset.samples("train"), dataset.samples("val")
    return TrainTask(config, dataset.classes, *splits, None, threads, board, dataset.fingerprint())


def take_steps(feed: TrainFeed, steps: int) -> Any:
    """So many batches, epoch after epoch."""
    epochs = (feed.iterate_epoch(epoch) for epoch in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


def time_fit(config: TrainConfig, steps: int, threads: int) -> float:
    """Steps per second of a plain Keras script, its data in memory. In a process of its own."""
    from batchseg.models import build_model
    from batchseg.runtime import load_tensorflow
    from batchseg.train_worker import Worker

    tf = load_tensorflow(threads)
    import keras
    import numpy as np

    feed = Worker(make_task(config, threads), Shard(0, 1)).feed
    batches = list(take_steps(feed, WARM_UP_STEPS))
    keras.config.set_dtype_policy(config.training.precision)
    model = build_model(config.model, len(open_dataset(config.data).classes))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile(keras.optimizers.AdamW(1e-3), loss)
    images, masks = (np.concatenate([batch[index] for batch in batches]) for index in (0, 1))
    data = tf.data.Dataset.from_tensor_slices((images, masks)).batch(config.training.batch_size).repeat()
    model.fit(data, steps_per_epoch=WARM_UP_STEPS, epochs=1, verbose=0)
    started = time.perf_counter()
    model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
    return steps / (time.perf_counter() - started)


def run_timed_worker(loop_config: dict[str, Any]) -> None:
    """The loop of Ray Train: some steps to warm up, then timed ones; then the feed alone."""
    from batchseg.train_worker import Worker

    task, steps = loop_config["task"], loop_config["steps"]
    worker = Worker(task, Shard(0, 1))
    batches = take_steps(worker.feed, WARM_UP_STEPS + steps)
    for images, masks in itertools.islice(batches, WARM_UP_STEPS):
        worker.step(images, masks)
    started = time.perf_counter()
    for images, masks in batches:
        float(worker.step(images, masks))
    trained = steps / (time.perf_counter() - started)
    ray.get(task.board.put.remote(trained=trained, fed=time_feed(worker.feed)))


def time_feed(feed: TrainFeed) -> float:
    """Batches per second of the second epoch, which the cache holds if it is large enough."""
    for _ in feed.iterate_epoch(0):
        pass
    started = time.perf_counter()
    count = sum(1 for _ in feed.iterate_epoch(1))
    return count / (time.perf_counter() - started)


def time_ray(config: TrainConfig, steps: int, threads: int) -> tuple[float, float]:
    """(training steps, batches of the feed) per second of one worker under Ray Train. In a process of its own."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    with tempfile.TemporaryDirectory() as folder, cluster.connect("local"):
        board = boards.start_board()
        TensorflowTrainer(
            run_timed_worker,
            train_loop_config={"task": make_task(config, threads, board), "steps": steps},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": threads}),
            run_config=RunConfig(storage_path=folder, name="speed"),
        ).fit()
        state = ray.get(board.read.remote())
    return state["trained"], state["fed"]


def ask_process(arguments: list[str], way: str) -> list[float]:
    """This script again, in a process of its own, for one way."""
    command = [sys.executable, __file__, *arguments, "--way", way]
    # Ray gives its workers a niceness of 15; beside other work only one side of the comparison would feel it.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split("RESULT")[1].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=("fit", "ray"))
    arguments, rest = parser.parse_known_args()
    config = load_config(arguments.config, dict(zip([key[2:] for key in rest[::2]], rest[1::2], strict=True)))
    threads = len(os.sched_getaffinity(0))
    if arguments.way == "fit":
        print("RESULT", time_fit(config, arguments.steps, threads))
    elif arguments.way == "ray":
        print("RESULT", *time_ray(config, arguments.steps, threads))
    else:
        rounds = [(ask_process(sys.argv[1:], "fit"), ask_process(sys.argv[1:], "ray")) for _ in range(arguments.rounds)]
        fit = statistics.median(one[0] for one, _ in rounds)
        trained, fed = (statistics.median(other[index] for _, other in rounds) for index in (0, 1))
        print(f"{threads} threads, median of {arguments.rounds} rounds of {arguments.steps} steps, in steps per second")
        print(f"keras fit {fit:.3f}   ray train {trained:.3f} ({trained / fit:.2f} x)   feed {fed:.2f}", end="")
        print(f" ({fed / trained:.1f} x ray train)")


if __name__ == "__main__":
    main()
