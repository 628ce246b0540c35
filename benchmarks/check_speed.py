"""What does `batchseg check` cost beyond reading the data, and does its memory grow with the set?

    python benchmarks/check_speed.py [--pairs 20000] [--folder DIR] [--rounds 3]

Draws pairs (640x480; JPEG of about 60 kB, PNG mask of 8 classes), then in turn and with the same number of processes:

    floor    every mask decoded once (Pillow), every image once (OpenCV, a JPEG at an eighth), nothing else
    threads  the same in threads of one process
    check    `batchseg check`: the table, all findings, check.json, the contact sheet
    tenth    `batchseg check` on the first tenth of the pairs, for its memory

Each run is a process of its own, and the best of some rounds counts: on a machine that others use too, look at the CPU
seconds. Memory is the sum over its processes of the pages that are theirs (PSS, which shares out what forked processes
hold together), looked at five times a second.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image


class Measured(NamedTuple):
    """seconds, CPU seconds of all processes together, their peak in MB."""

    seconds: float
    cpu: float
    peak: float


SIZE_HW = (480, 640)
CLASSES = 8
CHUNK = 16
PAGE = """splits:
  train: {{images: train/images, masks: train/masks}}
  val: {{images: val/images, masks: val/masks}}
classes: [{names}]
"""


def draw_pair(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (SIZE_HW[0] // 24, SIZE_HW[1] // 24, 3), dtype=np.uint8)
    image = cv2.resize(coarse, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, rng.integers(0, 12, image.shape, dtype=np.uint8))
    mask = np.zeros(SIZE_HW, np.uint8)
    for _ in range(10):
        center, axes = rng.integers(0, SIZE_HW[1], 2), rng.integers(20, 160, 2)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), rng.integers(180), 0, 360, int(rng.integers(CLASSES)), -1)
    cv2.imwrite(str(folder / "images" / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    Image.fromarray(mask).save(folder / "masks" / f"{number:06d}.png")


def draw_pairs(job: tuple[Path, range]) -> None:
    for number in job[1]:
        draw_pair(job[0], number)


def draw_set(root: Path, pairs: int) -> None:
    """A fifth of the pairs is val. A set that is there is used again."""
    if (root / "dataset.yaml").exists():
        return
    with ProcessPoolExecutor(count_cores()) as pool:
        for split, numbers in [("val", range(pairs // 5)), ("train", range(pairs // 5, pairs))]:
            for kind in ("images", "masks"):
                (root / split / kind).mkdir(parents=True)
            list(pool.map(draw_pairs, [(root / split, part) for part in cut(numbers)]))
    (root / "dataset.yaml").write_text(PAGE.format(names=", ".join(f"class{i}" for i in range(CLASSES))))


def link_tenth(root: Path, pairs: int) -> Path:
    """A set of a tenth of the pairs, by links."""
    tenth = root / "tenth"
    if tenth.exists():
        return tenth
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tenth / split / kind).mkdir(parents=True)
            for path in sorted((root / split / kind).iterdir())[::10]:
                os.link(path, tenth / split / kind / path.name)
    (tenth / "dataset.yaml").write_text((root / "dataset.yaml").read_text())
    return tenth


def cut(numbers: range) -> Iterable[range]:
    return (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))


def count_cores() -> int:
    return len(os.sched_getaffinity(0))


def decode_chunk(pairs: list[tuple[str, str]]) -> int:
    """The floor: nothing but reading and decoding."""
    for image, mask in pairs:
        cv2.imdecode(np.frombuffer(Path(image).read_bytes(), np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
        with Image.open(mask) as opened:
            np.asarray(opened)
    return len(pairs)


def run_floor(root: Path, make_pool: Callable[[int], Executor]) -> None:
    cv2.setNumThreads(1)
    pairs = [
        (str(path), str(path.parent.parent / "masks" / f"{path.stem}.png"))
        for path in sorted(root.glob("*/images/*.jpg"))
    ]
    with make_pool(count_cores()) as pool:
        done = sum(pool.map(decode_chunk, [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]))
    assert done == len(pairs) > 0


def measure(arguments: list[str]) -> Measured:
    """Runs a command."""
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, sum(read_pss_mb(member) for member in list_tree(process.pid)))
        time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return Measured(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak)


def list_tree(pid: int) -> list[int]:
    """A process and all under it."""
    children: list[str] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split()
    return [pid, *(found for child in children for found in list_tree(int(child)))]


def read_pss_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the set is drawn, or lies already")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["floor", "threads"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp())
    if options.only:
        return run_floor(root, ProcessPoolExecutor if options.only == "floor" else ThreadPoolExecutor)
    draw_set(root, options.pairs)
    check = [sys.executable, "-m", "batchseg", "check", "--out", str(root / "report")]
    own = [sys.executable, __file__, "--folder", str(root), "--only"]
    commands = {
        "floor": [*own, "floor"],
        "threads": [*own, "threads"],
        "check": [*check, str(root / "dataset.yaml")],
        "tenth": [*check, str(link_tenth(root, options.pairs))],
    }
    measured: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(options.rounds):  # in turn, so that whatever else goes on hits all alike
        for name, command in commands.items():
            measured[name].append(measure(command))
    print(f"{options.pairs} pairs of {SIZE_HW[1]}x{SIZE_HW[0]}, {count_cores()} cores, best of {options.rounds}")
    floor = find_best(measured["floor"])
    for name, runs in measured.items():
        best = find_best(runs)
        ratio = (
            f"  {best.seconds / floor.seconds:.2f}, {best.cpu / floor.cpu:.2f} of the floor" if name != "tenth" else ""
        )
        print(f"{name:8} {best.seconds:7.1f} s  {best.cpu:7.1f} CPU s  peak {best.peak:5.0f} MB{ratio}")


def find_best(runs: list[Measured]) -> Measured:
    """The least of each but memory, of which it is the most."""
    return Measured(min(run.seconds for run in runs), min(run.cpu for run in runs), max(run.peak for run in runs))


if __name__ == "__main__":
    main()
