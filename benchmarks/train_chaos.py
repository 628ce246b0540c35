"""Does a training end with its bundle, each epoch counted once, whatever is killed?

    python benchmarks/train_chaos.py [--runs 10] [--epochs 6] [--folder DIR]

Trains the drawn set undisturbed with three seeds, which shows the noise, and then in turn:
  worker  a training worker is killed with SIGKILL at a random moment; Ray Train starts the group again
  driver  the command is killed with SIGKILL at a random moment and started again
  resize  on a cluster of two nodes, one worker each, a node vanishes: the group goes on with one worker
Each run must end with exit code 0 and a sealed bundle, its metrics.csv must hold every epoch once, and its best val
mIoU must lie within the range of the undisturbed ones, widened by their spread. Exits with 1 otherwise.
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
from pathlib import Path

from watch import list_tree, read_kind

from batchseg.bundle import check_weights, read_card
from batchseg.datasets.drawn import draw_dataset
from batchseg.presets import DRAWN_SET

JOB = {**DRAWN_SET, "input.size": "96,128", "training.batch_size": "8", "cluster.max_failures": "10"}
MODES = ("worker", "driver", "resize")


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

    def wait_for_work(self, process: "subprocess.Popen[bytes]") -> None:
        """Until the first epoch was reported, or the command has ended."""
        while process.poll() is None and not (self.out / "metrics.csv").exists():
            time.sleep(0.2)


def check(run: Run, code: int, epochs: int, low: float, high: float) -> bool:
    """Prints and returns whether a run has ended as it must."""
    rows = list(csv.DictReader((run.out / "metrics.csv").open())) if (run.out / "metrics.csv").exists() else []
    counted = [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    best = max((float(row["val_miou"]) for row in rows if row["val_miou"]), default=float("nan"))
    try:
        check_weights(read_card(str(run.out / "bundle")))
        is_sealed = True
    except Exception as error:
        print(f"    {error}")
        is_sealed = False
    is_right = code == 0 and counted and is_sealed and low <= best <= high
    print(
        f"{run.out.name:12s} exit {code}, {len(rows)} epochs {'once each' if counted else 'WRONG'}, "
        f"bundle {'sealed' if is_sealed else 'MISSING'}, best val mIoU {best:.4f}: {'ok' if is_right else 'WRONG'}",
        flush=True,
    )
    return is_right


def kill_worker(run: Run, chance: random.Random) -> int:
    """Kills one training worker once the first epoch is over. Returns the exit code of the command."""
    process = run.start()
    run.wait_for_work(process)
    time.sleep(chance.uniform(0, 8))
    victims = [pid for pid in list_tree(process.pid) if "TrainWorker" in read_kind(pid)]
    if victims and process.poll() is None:
        os.kill(chance.choice(victims), signal.SIGKILL)
    return process.wait()


def kill_driver(run: Run, chance: random.Random) -> int:
    """Kills the command at a random moment of its work, and starts it again."""
    process = run.start()
    run.wait_for_work(process)
    time.sleep(chance.uniform(0, 8))
    process.kill()
    process.wait()
    return run.start().wait()


def shrink(run: Run, chance: random.Random) -> int:
    """Takes a node with a worker away. Returns the exit code of the command."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = run.start(cluster.address)
        run.wait_for_work(process)
        time.sleep(chance.uniform(0, 8))
        cluster.remove_node(node, allow_graceful=False)
        return process.wait()
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="train-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(arguments.seed)
    data = draw_dataset(folder / "data", train=96, val=24, test=4, seed=1)
    epochs = {"training.epochs": str(arguments.epochs)}
    results = []
    for seed in range(3):
        run = Run(folder / f"quiet-{seed}", data, {**epochs, "training.seed": str(seed), "cluster.workers": "2"})
        code = run.start().wait()
        rows = list(csv.DictReader((run.out / "metrics.csv").open()))
        results.append(max(float(row["val_miou"]) for row in rows))
        print(f"{run.out.name:12s} exit {code}, best val mIoU {results[-1]:.4f}", flush=True)
    spread = max(results) - min(results)
    ways = {"worker": kill_worker, "driver": kill_driver, "resize": shrink}
    is_right = True
    for number in range(arguments.runs):
        mode = MODES[number % len(MODES)]
        workers = "1,2" if mode == "resize" else "2"
        run = Run(folder / f"{mode}-{number}", data, {**epochs, "cluster.workers": workers})
        code = ways[mode](run, chance)
        is_right &= check(run, code, arguments.epochs, min(results) - spread, max(results) + spread)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
