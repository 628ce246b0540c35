"""How long does the ledger think about a million names, and in how much memory?

    python benchmarks/ledger_scale.py [--images 1000000] [--parts 1000] [--folder DIR]

Writes an output folder with a row for every second name (rows without pictures, which the ledger never reads), then
does what `segment` does before its stream starts and after it has ended, each step in the same process. Prints seconds
per step and the peak of the process's own memory (RssAnon, looked at every 5 ms) above what it held at the start.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchseg import ledger
from batchseg.classes import parse_classes
from batchseg.listing import MANIFEST_SCHEMA

SCHEMA = ledger.make_row_schema(parse_classes(["ground", "thing"]))
MODIFIED = datetime(2026, 1, 2, tzinfo=UTC)


def name_image(number: int) -> str:
    return f"camera-{number % 40:02d}/2026-11-{number % 28 + 1:02d}/frame_{number:08d}.jpg"


def write_rows(out: str, numbers: range) -> None:
    """One part."""
    rows = [
        dict.fromkeys(SCHEMA.names)
        | {
            "image_id": name_image(number), "uri": f"s3://bucket/photos/{name_image(number)}", "input_bytes": 200_000,
            "input_modified": MODIFIED, "height": 1080, "width": 1440, "class_pixels": [1_000_000, 555_200],
            "mean_confidence": 0.9, "uncertain_share": 0.1, "run": 1, "seconds": 0.1, "attempts": 1,
        }
        for number in numbers
    ]  # fmt: skip
    ledger.commit_part(out, pa.Table.from_pylist(rows, SCHEMA), "ok", 1)


def make_manifest(images: int) -> pa.Table:
    names = sorted(name_image(number) for number in range(images))
    columns: list[Any] = [
        names, [f"s3://bucket/photos/{name}" for name in names], [200_000] * images, [MODIFIED] * images,
        [None] * images,
    ]  # fmt: skip
    arrays = [pa.array(column, entry.type) for column, entry in zip(columns, MANIFEST_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=MANIFEST_SCHEMA)


def read_memory_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def measure(step: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, peak MB while it ran)."""
    stop, peaks = threading.Event(), [read_memory_mb()]

    def watch() -> None:
        while not stop.wait(0.005):
            peaks.append(read_memory_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - started
    stop.set()
    thread.join()
    return result, seconds, max(*peaks, read_memory_mb())


def show(name: str, seconds: float, peak_mb: float) -> None:
    print(f"{name:28s} {seconds:8.2f} s {peak_mb:8.0f} MB", flush=True)


def run_steps(out: str, images: int) -> None:
    """The steps of a run, one after the other; what one has read, the next ones hold."""
    start_mb = read_memory_mb()
    manifest_file = str(Path(out, ledger.MANIFEST_FILE))
    manifest, seconds, peak = measure(lambda: ledger.read_part(manifest_file))
    show("read the listing", seconds, peak - start_mb)
    index, seconds, peak = measure(lambda: ledger.settle(out))
    show("read and settle the rows", seconds, peak - start_mb)
    work, seconds, peak = measure(lambda: ledger.plan_work(manifest, index))
    show("plan_work", seconds, peak - start_mb)
    assert work.reasons["done"] == len(index)
    assert work.reasons["new"] == images - len(index)
    _, seconds, peak = measure(lambda: ledger.count_rows(index, manifest))
    show("count_rows", seconds, peak - start_mb)
    redone = index["image_id"].combine_chunks()[::10]
    _, seconds, peak = measure(lambda: ledger.subtract(out, index, redone))
    show(f"subtract {len(redone):,} rows", seconds, peak - start_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--folder", help="where the output folder is made; default the temporary folder")
    parser.add_argument("--measure", metavar="OUT", help="only measure, on a folder that is there")
    arguments = parser.parse_args()
    if arguments.measure:
        run_steps(arguments.measure, arguments.images)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as out:
        each = arguments.images // 2 // arguments.parts
        starts = range(0, arguments.parts * each, each)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda start: write_rows(out, range(2 * start, 2 * (start + each), 2)), starts))
        ledger.write_table(str(Path(out, ledger.MANIFEST_FILE)), make_manifest(arguments.images), out)
        print(f"{arguments.images:,} names, {arguments.parts * each:,} of them done, in {arguments.parts:,} parts")
        # A process of its own, so that what wrote the folder does not count.
        run = [sys.executable, __file__, "--images", str(arguments.images), "--measure", out]
        subprocess.run(run, check=True)


if __name__ == "__main__":
    main()
