"""Does a training end with its bundle, each epoch counted once, whatever is killed?

    python benchmarks/train_chaos.py [--runs 10] [--epochs 6] [--seeds 3] [--folder DIR]

Trains the drawn set undisturbed with some seeds, each on two workers and on one, which shows the noise; then in turn:
  worker  a training worker is killed with SIGKILL; Ray Train starts the group again
  driver  the command is killed with SIGKILL, and started again
  resize  on a cluster of two nodes, one worker each, a node vanishes: the group goes on with one worker
at a random moment between the start of the workers and most of the time that an undisturbed run takes. Each run must
have been hit while it ran, end with exit code 0 and a sealed bundle, and hold every epoch once in its metrics.csv; its
best val mIoU is that of the undisturbed run with its seed, up to rounding. After `resize` it may differ from the nearer
one of those on two workers and on one, by no more than seeds differ. Exits with 1 otherwise.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from watch import list_tree, read_kind

from batchseg.bundle import check_weights, read_card
from batchseg.datasets.drawn import draw_dataset
from batchseg.presets import DRAWN_SET

JOB = {**DRAWN_SET, "input.size": "96,128", "training.batch_size": "8", "cluster.max_failures": "10"}
MODES = ("worker", "driver", "resize")
_ROUNDING = 1e-3
_LATEST = 0.7
"""Of the time that an undisturbed run takes from the start of its workers: what comes later may come too late."""


@dataclass(frozen=True)
class Run:
    """One training: its folder, its data, and what its command line adds."""

    out: Path
    data: Path
    options: dict[str, str]

    def start(self, address: str = "local") -> "subprocess.Popen[bytes]":
        """The command as a user starts it."""
        options = {**JOB, **self.options, "data": str(self.data), "out": str(self.out)}
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "batchseg", "train", *flags, "--address", address]
        with self.out.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def wait_for_workers(self, process: "subprocess.Popen[bytes]", root: int | None = None) -> None:
        """Until a training worker is there, or the command has ended. root: of the processes, if it is another one."""
        while process.poll() is None and not find_workers(root or process.pid):
            time.sleep(0.1)


def find_workers(root: int) -> list[int]:
    """The training workers among the descendants of a process."""
    return [pid for pid in list_tree(root) if "TrainWorker" in read_kind(pid)]


def check(run: Run, was_hit: bool, code: int, epochs: int, undisturbed: list[float], spread: float) -> bool:
    """Prints and returns whether a run has ended as it must. undisturbed: scores, of which the nearest counts."""
    rows = list(csv.DictReader((run.out / "metrics.csv").open())) if (run.out / "metrics.csv").exists() else []
    counted = [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    best = max((float(row["val_miou"]) for row in rows if row["val_miou"]), default=float("nan"))
    try:
        check_weights(read_card(str(run.out / "bundle")))
        is_sealed = True
    except Exception as error:
        print(f"    {error}")
        is_sealed = False
    expected = min(undisturbed, key=lambda score: abs(score - best))
    is_right = was_hit and code == 0 and counted and is_sealed and abs(best - expected) <= spread
    print(
        f"{run.out.name:12s} {'hit' if was_hit else 'MISSED'}, exit {code}, "
        f"{len(rows)} epochs {'once each' if counted else 'WRONG'}, "
        f"bundle {'sealed' if is_sealed else 'MISSING'}, best val mIoU {best:.4f} "
        f"({expected:.4f} undisturbed): {'ok' if is_right else 'WRONG'}",
        flush=True,
    )
    return is_right


def kill_worker(run: Run, delay_s: float, chance: random.Random) -> tuple[bool, int]:
    """Kills one training worker. Returns whether there was one, and the exit code of the command."""
    process = run.start()
    run.wait_for_workers(process)
    time.sleep(delay_s)
    victims = find_workers(process.pid) if process.poll() is None else []
    if victims:
        os.kill(chance.choice(victims), signal.SIGKILL)
    return bool(victims), process.wait()


def kill_driver(run: Run, delay_s: float, _: random.Random) -> tuple[bool, int]:
    """Kills the command and starts it again. Returns whether it ran, and the exit code of the second one."""
    process = run.start()
    run.wait_for_workers(process)
    time.sleep(delay_s)
    was_hit = process.poll() is None
    process.kill()
    process.wait()
    return was_hit, run.start().wait()


def shrink(run: Run, delay_s: float, _: random.Random) -> tuple[bool, int]:
    """Takes a node with a worker away. Returns whether the command still ran, and its exit code."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = run.start(cluster.address)
        run.wait_for_workers(process, os.getpid())
        time.sleep(delay_s)
        was_hit = process.poll() is None
        cluster.remove_node(node, allow_graceful=False)
        return was_hit, process.wait()
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="of the undisturbed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="train-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(arguments.seed)
    data = draw_dataset(folder / "data", train=96, val=24, test=4, seed=1)
    epochs = {"training.epochs": str(arguments.epochs)}
    scores: dict[tuple[int, str], float] = {}
    seconds = []
    for workers, seed in product("21", range(arguments.seeds)):
        changes = {"training.seed": str(seed), "cluster.workers": workers}
        run = Run(folder / f"quiet-{workers}-{seed}", data, {**epochs, **changes})
        process = run.start()
        run.wait_for_workers(process)
        started = time.monotonic()
        code = process.wait()
        seconds.append(time.monotonic() - started)
        rows = list(csv.DictReader((run.out / "metrics.csv").open()))
        scores[seed, workers] = max(float(row["val_miou"]) for row in rows)
        print(
            f"{run.out.name:12s} exit {code}, best val mIoU {scores[seed, workers]:.4f}, {seconds[-1]:.0f} s",
            flush=True,
        )
    spreads = {
        workers: np.ptp([score for (_, theirs), score in scores.items() if theirs == workers]) for workers in "21"
    }
    ways = {"worker": kill_worker, "driver": kill_driver, "resize": shrink}
    is_right = True
    for number in range(arguments.runs):
        mode, seed = MODES[number % len(MODES)], (number + number // len(MODES)) % arguments.seeds
        changes = {"cluster.workers": "1,2" if mode == "resize" else "2", "training.seed": str(seed)}
        run = Run(folder / f"{mode}-{number}", data, {**epochs, **changes})
        delay_s = chance.uniform(0, _LATEST * min(seconds))
        was_hit, code = ways[mode](run, delay_s, chance)
        expected = [scores[seed, workers] for workers in ("21" if mode == "resize" else "2")]
        spread = max(spreads.values()) if mode == "resize" else _ROUNDING
        is_right &= check(run, was_hit, code, arguments.epochs, expected, spread)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
