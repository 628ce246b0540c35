"""Memory of `fit: tile` on very large images: how much more than the loaded model one process needs.

    python benchmarks/tile_memory.py                     # 10,000 x 10,000, a small untrained U-Net, 21 classes
    python benchmarks/tile_memory.py --side 20000 --tile 512 --jpeg
    python benchmarks/tile_memory.py --side 20000 --stream   # the whole of `segment`, over all its processes

Prints the peak of the process (PSS, /proc/self/smaps_rollup, sampled every 50 ms) above what it held when the model was
loaded and had answered once. The image is drawn, and with --jpeg decoded from a JPEG as `segment` does. With --stream
the command runs twice, on a small image and on the large one, and the sums of PSS over the command and all processes
under it, Ray's and their shared memory included, are compared.
Exits with 1 above the limit: 1.5 GiB at 10,000 x 10,000, 4 GiB at 20,000 x 20,000.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from watch import read_kib, run_watched, watch_memory

from batchseg import geometry as geo
from batchseg.bundle import GoldenSample, save_bundle
from batchseg.classes import parse_classes
from batchseg.config import ModelConfig
from batchseg.images import RgbArray, encode_image
from batchseg.runtime import load_tensorflow

CLASSES = 21
LIMITS_GIB = {10_000: 1.5, 20_000: 4.0}


def draw_image(side: int) -> RgbArray:
    """A pattern without an equal neighbourhood, made row by row so that drawing takes no memory of its own."""
    image = np.empty((side, side, 3), np.uint8)
    columns = np.arange(side)
    for row in range(side):
        image[row, :, 0] = (columns + row) >> 3
        image[row, :, 1] = columns * row >> 9
        image[row, :, 2] = columns ^ row
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jpeg", action="store_true", help="decode the image from a JPEG, which counts too")
    parser.add_argument("--overlap", type=int, help="pixels; default half of a tile")
    parser.add_argument("--stream", action="store_true", help="run `segment` and look at all its processes")
    options = parser.parse_args()
    geometry = geo.Geometry(
        (options.tile, options.tile), "tile", 32, options.tile // 2 if options.overlap is None else options.overlap
    )
    above_gib = measure_stream(options, geometry) if options.stream else measure_runner(options, geometry)
    limit = LIMITS_GIB.get(options.side)
    if limit is not None and above_gib > limit:
        sys.exit(f"above the limit of {limit} GiB")


def measure_stream(options: argparse.Namespace, geometry: geo.Geometry) -> float:
    """GiB by which all processes of `segment` together hold more for the large image than for a small one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, peaks = Path(temporary), []
        # In a process of its own, so that TensorFlow does not stay in the one that measures.
        saving = multiprocessing.get_context("spawn").Process(target=save_untrained, args=(temporary, geometry))
        saving.start()
        saving.join()
        for side in (options.tile, options.side):
            image = folder / f"{side}.jpg"
            image.write_bytes(encode_image(draw_image(side), ".jpg"))
            command = [sys.executable, "-m", "batchseg", "segment", str(image), "--model", f"{temporary}/bundle"]
            command += ["--out", f"{temporary}/out-{side}", "--max-megapixels", "500", "--no-sanity-check"]
            command += ["--batch-size", str(options.batch_size)]
            code, seconds, memory = run_watched(command, folder / "log", with_pss=True)
            if code:
                sys.exit((folder / "log").read_text()[-2000:])
            parts = sorted(memory.pss_at_peak.items(), key=lambda item: -item[1])[:5]
            shown = ", ".join(f"{kind[:40]} {held / 2**30:.2f}" for kind, held in parts)
            print(f"{side} x {side}: {seconds:.0f} s, {memory.pss_sum / 2**30:.2f} GiB, of which {shown}", flush=True)
            peaks.append(memory.pss_sum)
    above_gib = (peaks[1] - peaks[0]) / 2**30
    print(f"above the loaded model: {above_gib:.2f} GiB")
    return above_gib


def build_untrained() -> Any:
    from batchseg.models import build_model

    spec = ModelConfig(
        encoder="mobilenet", encoder_width=0.25, encoder_weights="none", decoder_channels=(32, 16, 16, 16)
    )
    return build_model(spec, CLASSES)


def save_untrained(folder: str, geometry: geo.Geometry) -> None:
    """Writes a bundle that nobody has trained."""
    load_tensorflow()
    from batchseg.predict import make_forward

    model, small = build_untrained(), draw_image(64)
    save_bundle(
        f"{folder}/bundle",
        model,
        classes=parse_classes([f"class {number}" for number in range(CLASSES)]),
        geometry=geometry,
        golden=GoldenSample(small, make_forward(model)(small[None])[0][0]),
        facts={"model": {}, "data": {}, "scores": {}},
    )


def measure_runner(options: argparse.Namespace, geometry: geo.Geometry) -> float:
    """GiB that one process with a model holds for the image above what it held before."""
    load_tensorflow(options.threads)
    from batchseg.predict import make_runner

    runner = make_runner(build_untrained(), geometry.stride, options.batch_size)
    data = encode_image(draw_image(options.side), ".jpg") if options.jpeg else b""
    small = np.zeros((options.tile, options.tile, 3), np.uint8)
    list(runner.stream([(None, small, geo.make_plan(small.shape[:2], geometry))]))
    before, started = 1024 * read_kib(Path("/proc/self/smaps_rollup"), "Pss"), time.monotonic()
    with watch_memory(os.getpid(), every_s=0.05, with_pss=True) as memory:
        image = geo.fit_encoded(data, geometry, float("inf")).canvas if options.jpeg else draw_image(options.side)
        plan = geo.make_plan(image.shape[:2], geometry)
        ((_, found),) = runner.stream([(None, image, plan)])
    if isinstance(found, Exception) or plan.grid is None:
        sys.exit(f"failed: {found}")
    above_gib = (memory.pss_sum - before) / 2**30
    kept = {"image": image.nbytes, "mask": found.ids.nbytes, "scores": plan.grid.score_bytes(CLASSES)}
    print(
        f"{options.side} x {options.side}, tiles of {options.tile}, overlap {geometry.tile_overlap}, batch "
        f"{options.batch_size}: {len(plan.grid)} tiles in {time.monotonic() - started:.0f} s; model "
        f"{before / 2**30:.2f} GiB, above it {above_gib:.2f} GiB, of which "
        + ", ".join(f"{name} {size / 2**30:.3f}" for name, size in kept.items())
    )
    return above_gib


if __name__ == "__main__":
    main()
