"""Does memory grow with the number of images? Peak RssAnon of the driver and of each worker of `segment`.

    python benchmarks/stream_memory.py BUNDLE [--images 1000,20000] [--folder DIR]

Draws small photos, segments the first N of them for each N with a Ray of its own, and prints the peak of each kind of
process (the largest of its kind) and the quotient of last to first. Exits with 1 when the driver or a worker grew by
more than 10 %; Ray's own processes, which keep a record of tasks, are shown beside them.
BUNDLE should be a tiny one.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from watch import Memory, run_watched

from batchseg.datasets.drawn import draw_scene

_SCENES = 40
_MOST = 1.1
_OURS = ("driver", "MapBatches", "MapWorker", "StreamingRepartition", "commit_blocks", "ProgressBoard", "IDLE")


def draw_photos(folder: Path, count: int) -> None:
    """JPEGs of 160x128 in folders of 1,000."""
    scenes = [draw_scene(np.random.default_rng(seed), (128, 160))[0] for seed in range(min(count, _SCENES))]
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        image = np.roll(scenes[number % len(scenes)], number % 160, axis=1)
        (place / f"{number:06d}.jpg").write_bytes(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())


def find_peaks(memory: Memory) -> dict[str, int]:
    """Bytes by kind: `driver`, the stages and the board."""
    peaks: dict[str, int] = {}
    driver = min(memory.rss_anon)
    for pid, held in memory.rss_anon.items():
        kind = "driver" if pid == driver else memory.kinds[pid]
        peaks[kind] = max(peaks.get(kind, 0), held)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", default="1000,20000", help="two numbers of images")
    parser.add_argument("--folder", type=Path, help="where it works; default a temporary folder")
    arguments = parser.parse_args()
    counts = [int(number) for number in arguments.images.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.folder or Path(temporary)
        draw_photos(folder / "photos", max(counts))
        peaks = []
        for count in counts:
            command = [sys.executable, "-m", "batchseg", "segment", str(folder / "photos"), "--model"]
            command += [arguments.bundle, "--out", str(folder / f"out-{count}"), "--limit", str(count)]
            code, seconds, memory = run_watched(command, folder / f"out-{count}.log")
            print(f"{count} images: {seconds:.0f} s, exit code {code}", flush=True)
            if code != 0:
                sys.exit((folder / f"out-{count}.log").read_text()[-2000:])
            peaks.append(find_peaks(memory))
    grown = False
    for kind in sorted(set(peaks[0]) | set(peaks[-1])):
        first, last = (found.get(kind, 0) / 2**20 for found in (peaks[0], peaks[-1]))
        quotient = last / first if first else float("nan")
        is_ours = kind.startswith(_OURS)
        grown |= is_ours and quotient > _MOST
        print(f"{kind[:60]:60s} {first:8.0f} {last:8.0f} MiB  {quotient:5.2f}{'' if is_ours else '  of Ray'}")
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
