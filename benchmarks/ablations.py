"""What each part of the CamVid recipe buys: short trainings that differ from the recipe in one thing.

    python benchmarks/ablations.py CAMVID_ROOT [--epochs 8] [--folder DIR] [--only NAME ...]

Each trains jobs/camvid.yaml without sequence 0006R0 and is scored on that sequence, which no picture of the train split
resembles; val of the published split is a sequence that train also holds, and flatters. The recipe itself is trained
with three seeds: their spread is the noise, and a difference within it says nothing. A run that is in DIR already is
not run again. One after the other, so that all have the machine alike; about four minutes each on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
HELD_OUT = "0006R0_"
VARIANTS: dict[str, dict[str, str]] = {
    "recipe": {},
    "recipe, seed 1": {"training.seed": "1"},
    "recipe, seed 2": {"training.seed": "2"},
    "from scratch": {"model.encoder_weights": "none", "training.encoder_rate": "1"},
    "encoder at the full rate": {"training.encoder_rate": "1"},
    "encoder at a tenth of the rate": {"training.encoder_rate": "0.1"},
    "no average of weights": {"training.average_epochs": "0"},
    "cross-entropy alone": {"training.losses": "cross_entropy=1"},
    "Lovász in place of Dice": {"training.losses": "cross_entropy=1,lovasz=0.5"},
    "hard pixels beside": {"training.losses": "cross_entropy=1,dice=0.5,hard_pixels=0.5"},
    "no class weights": {"training.class_weights": "none"},
    "no colour": {"augment.color": "0"},
    "colour 0.5": {"augment.color": "0.5"},
    "no zoom": {"augment.scale": "1,1"},
    "no flip": {"augment.flip": "0"},
    "rotation up to 10 degrees": {"augment.rotation": "10"},
    "class mix on half": {"augment.class_mix": "0.5"},
    "rare crops on half": {"augment.rare_crops": "0.5"},
    "blur, noise and JPEG on a fifth": {"augment.blur": "0.2", "augment.noise": "0.2", "augment.jpeg": "0.2"},
    "no weight decay": {"training.weight_decay": "0"},
    "no dropout": {"model.dropout": "0"},
    # No part of the recipe: the same on more workers, which must stay within the noise of the seeds.
    "on two workers": {"cluster.workers": "2"},
    "on three workers": {"cluster.workers": "3"},
    "on two workers, seed 1": {"cluster.workers": "2", "training.seed": "1"},
    "on three workers, seed 1": {"cluster.workers": "3", "training.seed": "1"},
}


def write_page(root: Path, folder: Path) -> Path:
    """dataset.yaml of the train split, with one sequence of it as val."""
    page = yaml.safe_load((PROJECT / "jobs" / "data" / "camvid.yaml").read_text())
    page["root"] = str(root.resolve())
    page["splits"] = {"train": page["splits"]["train"], "val": {"from": "train", "match": HELD_OUT}}
    location = folder / "held_out.yaml"
    location.write_text(yaml.safe_dump(page, sort_keys=False))
    return location


def train(out: Path, page: Path, epochs: int, changes: dict[str, str]) -> float:
    """Trains one variant as a user would. Returns its seconds."""
    options = {
        "data": str(page),
        "out": str(out),
        "training.epochs": str(epochs),
        "training.val_every": str(epochs),
        "training.picture_every": "0",
        **changes,
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "batchseg", "train", "jobs/camvid.yaml", *flags, "--address", "local"]
    started = time.perf_counter()
    with out.with_suffix(".log").open("ab") as log:
        subprocess.run(command, cwd=PROJECT, stdout=log, stderr=log, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train and trainannot")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    page = write_page(given.root, folder)
    base: float | None = None
    for name in given.only or VARIANTS:
        out = folder / "".join(letter if letter.isalnum() else "_" for letter in name)
        seconds = 0.0 if (out / "scores.json").exists() else train(out, page, given.epochs, VARIANTS[name])
        scores = json.loads((out / "scores.json").read_text())
        base = scores["miou"] if name == "recipe" else base
        change = "" if base is None else f"  {scores['miou'] - base:+.3f}"
        classes = " ".join(f"{entry['name']} {entry['iou']:.2f}" for entry in scores["classes"])
        print(f"{name:32s} {scores['miou']:.4f}{change}  {classes}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
