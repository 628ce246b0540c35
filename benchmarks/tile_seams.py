"""Do seams show? A trained model on an enlarged picture, in tiles against as a whole.

    python benchmarks/tile_seams.py runs/camvid/bundle data/camvid/test/0001TP_008550.png

The picture is enlarged three times. The bundle's input size is the tile, whatever its fit is; the overlap is half
of the smaller side. Prints the share of pixels on which tiled and untiled differ, within 16 pixels of a seam (the line
where one tile hands over to the next, in the middle of an overlap) and elsewhere, and their quotient.
Exits with 1 above a quotient of 1.5.
"""

import argparse
import sys

import cv2
import numpy as np

from batchseg import bundle as bundles
from batchseg import geometry as geo
from batchseg import images, storage
from batchseg.classes import MaskArray
from batchseg.images import RgbArray
from batchseg.runtime import load_tensorflow
from batchseg.tiling import TileGrid

NEAR_PIXELS = 16
MOST = 1.5


def find_seams(grid: TileGrid) -> np.ndarray:
    """bool HxW: True within NEAR_PIXELS of the middle of an overlap."""
    is_near = np.zeros(grid.image_hw, bool)
    for axis, view in enumerate((is_near, is_near.T)):
        for place in range(1, grid.shape[axis]):
            middle = place * (grid.tile_hw[axis] - grid.overlap) + grid.overlap // 2
            view[max(0, middle - NEAR_PIXELS) : middle + NEAR_PIXELS] = True
    return is_near


def predict(runner: object, image: RgbArray, geometry: geo.Geometry) -> tuple[MaskArray, geo.Plan]:
    plan = geo.make_plan(image.shape[:2], geometry)
    ((_, found),) = runner.stream([(None, geo.fit_image(image, plan), plan)])  # type: ignore[attr-defined]
    if isinstance(found, Exception):
        sys.exit(f"failed: {found}")
    return geo.restore_mask(found.ids, plan), plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("image", nargs="+")
    parser.add_argument("--enlarge", type=int, default=3)
    parser.add_argument("--overlap", type=int, help="pixels; default half of the tile's smaller side")
    options = parser.parse_args()
    load_tensorflow()
    from batchseg.predict import make_runner

    card = bundles.read_card(options.bundle)
    size_hw, stride = card.geometry.size_hw, card.geometry.stride
    tiles = geo.Geometry(size_hw, "tile", stride, min(size_hw) // 2 if options.overlap is None else options.overlap)
    runner = make_runner(bundles.load_model(card), stride, batch_size=2)
    near, elsewhere = np.zeros(2), np.zeros(2)
    for location in options.image:
        data = storage.read_bytes(location)
        image = images.decode_image(data, images.probe_image(data))
        image = np.asarray(
            cv2.resize(image, None, fx=options.enlarge, fy=options.enlarge, interpolation=cv2.INTER_CUBIC), np.uint8
        )
        tiled, plan = predict(runner, image, tiles)
        whole, _ = predict(runner, image, geo.Geometry(image.shape[:2], "resize", stride))
        assert plan.grid is not None
        is_near, differs = find_seams(plan.grid), tiled != whole
        near += differs[is_near].sum(), is_near.sum()
        elsewhere += differs[~is_near].sum(), (~is_near).sum()
    shares = near[0] / near[1], elsewhere[0] / elsewhere[1]
    quotient = shares[0] / shares[1] if shares[1] else float("inf") if shares[0] else 1.0
    print(
        f"{len(options.image)} pictures x {options.enlarge}, tile {tiles.canvas_hw[0]}x{tiles.canvas_hw[1]}, overlap "
        f"{tiles.tile_overlap}: differing within {NEAR_PIXELS} px of a seam {shares[0]:.3%}, "
        f"elsewhere {shares[1]:.3%}, "
        f"quotient {quotient:.2f}"
    )
    if quotient > MOST:
        sys.exit(f"above {MOST}")


if __name__ == "__main__":
    main()
