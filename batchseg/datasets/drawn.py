"""Draws a small labelled set of landscapes, to try training and prediction without downloading anything.

Colour alone does not give the class away: each of the pairs sky and lake, meadow and tree, barn and balloon is painted
from the same colours and textures, so a network has to learn shape and place. Coordinates are in image pixels, x to
the right and y down; the canvas painted on is SUPERSAMPLE times as large, for smooth edges.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from batchseg.errors import UserError

CLASSES: tuple[tuple[str, str], ...] = (  # Paul Tol's "bright" scheme, safe for colour-blind readers.
    ("sky", "#66ccee"),
    ("lake", "#4477aa"),
    ("meadow", "#ccbb44"),
    ("tree", "#228833"),
    ("barn", "#ee6677"),
    ("balloon", "#aa3377"),
)
SKY, LAKE, MEADOW, TREE, BARN, BALLOON = range(len(CLASSES))
IGNORED_ID = 255
SIZES_HW = ((128, 160), (120, 192))
SUPERSAMPLE = 2
HEADER = "# drawn by batchseg:"
MARKER_FILE = ".drawn-by-batchseg"
TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 240, 40, 40
VERSION = 1  # Raise it when the drawing changes, so that sets drawn before are drawn again.

FloatArray = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]
Points = list[tuple[float, float]] | npt.NDArray[np.float64]

# RGB under plain light. A scene shifts each family as a whole, so that no class of a pair has colours of its own.
PAINTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "blue": {"deep": (74, 138, 200), "pale": (176, 212, 232), "cloud": (240, 243, 244)},
    "green": {"shadow": (52, 88, 40), "dark": (66, 112, 48), "light": (136, 172, 74)},
    "red": {"brick": (178, 66, 50), "roof": (116, 42, 40), "cream": (232, 208, 168), "brown": (74, 46, 38)},
}


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass
class _Canvas:
    """The scene while it is painted: float32 RGB and uint8 class ids, SUPERSAMPLE times as large as the image."""

    image_rgb: FloatArray
    class_ids: Uint8Array
    sky_rgb: FloatArray  # Mirrored at the horizon, so that the lake can show it.
    grass_rgb: FloatArray
    paint: dict[str, FloatArray]

    def fill(self, outline_xy: Points, colour: FloatArray, class_id: int) -> None:
        cv2.fillPoly(self.image_rgb, [_to_canvas(outline_xy)], colour.tolist(), shift=4)
        cv2.fillPoly(self.class_ids, [_to_canvas(outline_xy)], (class_id,), shift=4)

    def line(self, points_xy: Points, colour: FloatArray, width: float, is_closed: bool = False) -> None:
        thickness = round(width * SUPERSAMPLE)
        cv2.polylines(self.image_rgb, [_to_canvas(points_xy)], is_closed, colour.tolist(), thickness, shift=4)

    def find_pixels(self, outline_xy: Points) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Returns the rows and the columns of the canvas pixels inside an outline."""
        points, drawn = _to_canvas(outline_xy), np.zeros_like(self.class_ids)
        cv2.fillPoly(drawn, [points], (1,), shift=4)
        top = max(0, int(points[:, 1].min()) // 16 - 1)
        rows, cols = np.nonzero(drawn[top : points[:, 1].max() // 16 + 2])
        return rows + top, cols

    def shade(self, outline_xy: Points, strength: float) -> None:
        """Lights the upper left of a shape and darkens its lower right, as the sun would."""
        y, x = self.find_pixels(outline_xy)
        down, right = ((axis - axis.mean()) / (np.ptp(axis) / 2 + 1) for axis in (y, x))
        self.image_rgb[y, x] *= (1 - strength * (0.6 * right + 0.4 * down))[:, None]


def draw_dataset(
    root: Path, *, train: int = TRAIN_IMAGES, val: int = VAL_IMAGES, test: int = TEST_IMAGES, seed: int = 0
) -> Path:
    """Draws a set under root and returns its root/dataset.yaml; does nothing if the same set is there already.

    Writes root/{train,val,test}/{images,masks}/0000.png and on. A set drawn here with other numbers is replaced.
    Raises UserError if root cannot be written to, or holds images that were not drawn here.
    """
    counts = {"train": train, "val": val, "test": test}
    header = f"{HEADER} train={train} val={val} test={test} seed={seed} version={VERSION}"
    yaml_path = root / "dataset.yaml"
    found = yaml_path.read_text(encoding="utf-8").partition("\n")[0] if yaml_path.exists() else ""
    if found == header:
        return yaml_path
    _claim_folder(root, counts, found)
    yaml_path.unlink(missing_ok=True)
    for split_index, (split, count) in enumerate(counts.items()):
        _draw_split(root / split, count, (seed, split_index))
    lines = [header, "format: pairs", "root: .", "splits:"]
    lines += [f"  {split}: {{images: {split}/images, masks: {split}/masks}}" for split in counts]
    lines += ["classes:", *(f'  - {{name: {name}, color: "{colour}"}}' for name, colour in CLASSES), "ignore: []"]
    # Last, and in one step: a set without its dataset.yaml is half drawn and will be drawn again.
    unfinished = root / "dataset.yaml.tmp"
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.replace(yaml_path)
    return yaml_path


def _claim_folder(root: Path, splits: Iterable[str], header: str) -> None:
    """Marks root as ours before the first file, so that a half-drawn set is known again, and no other is touched."""
    marker = root / MARKER_FILE
    if header and not header.startswith(HEADER):
        page = root / "dataset.yaml"
        raise UserError(f"{page} was not drawn by batchseg: it opens with {header!r}. Give another folder.")
    if not header and not marker.exists() and any((root / split).exists() for split in splits):
        names = ", ".join(splits)
        raise UserError(f"{root} holds folders named {names} that batchseg did not draw. Give another folder.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UserError(f"the drawn set cannot be written to {root}: {error}") from None


def draw_scene(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[Uint8Array, Uint8Array]:
    """Draws one landscape, of about 120x160 pixels or more.

    Returns image_rgb uint8 HxWx3 and class_ids uint8 HxW: indices into CLASSES, and 255 at the border between classes.
    """
    height, width = size_hw
    canvas, horizon_y = _paint_ground(rng, size_hw)
    taken: list[_Box] = []
    if rng.random() < 0.92:
        _paint_lake(canvas, rng, taken, _Box(0, horizon_y.max() + 12, width, height - 2))
    if rng.random() < 0.94:
        _paint_balloon(canvas, rng, taken, _Box(3, 3, width - 3, horizon_y.min() - 3))
    _paint_standing(canvas, rng, taken, _Box(2, horizon_y.max() + 4, width - 2, height - 4))
    image_rgb = cv2.resize(canvas.image_rgb, (width, height), interpolation=cv2.INTER_AREA)
    noisy = image_rgb + 4.0 * rng.standard_normal(image_rgb.shape, dtype=np.float32)
    # Every second pixel, never an average: averaging two class ids invents a third class.
    class_ids = canvas.class_ids[::SUPERSAMPLE, ::SUPERSAMPLE].copy()
    class_ids[cv2.morphologyEx(class_ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = IGNORED_ID
    return np.clip(noisy, 0, 255).astype(np.uint8), class_ids


def _draw_split(folder: Path, count: int, seed: tuple[int, int]) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for old in (folder / kind).glob("[0-9][0-9][0-9][0-9].png"):
            old.unlink()
    for index in range(count):
        rng = np.random.default_rng((*seed, index))
        image_rgb, class_ids = draw_scene(rng, SIZES_HW[int(rng.integers(len(SIZES_HW)))])
        image_path = folder / "images" / f"{index:04d}.png"
        if not cv2.imwrite(str(image_path), image_rgb[..., ::-1]):
            raise OSError(f"could not write {image_path}")
        _write_mask(folder / "masks" / f"{index:04d}.png", class_ids)


def _write_mask(path: Path, class_ids: Uint8Array) -> None:
    palette = bytearray(b"\xff" * 768)
    palette[: 3 * len(CLASSES)] = bytes.fromhex("".join(colour[1:] for _, colour in CLASSES))
    mask = Image.fromarray(class_ids)
    mask.putpalette(palette)
    mask.save(path)


def _draw_paints(rng: np.random.Generator) -> dict[str, FloatArray]:
    light = rng.uniform(0.86, 1.08) * rng.uniform([0.97, 0.99, 0.94], [1.05, 1.01, 1.03])
    shifts = dict(zip(PAINTS, rng.normal(0, 5, (len(PAINTS), 3)), strict=True))
    lit = {name: (rgb + shifts[kind]) * light for kind, family in PAINTS.items() for name, rgb in family.items()}
    return {name: rgb.astype(np.float32) for name, rgb in lit.items()}


def _paint_ground(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[_Canvas, npt.NDArray[np.float64]]:
    """Paints sky and meadow; also returns the row where the meadow begins, for each column of the canvas."""
    paint, (height, width) = _draw_paints(rng), size_hw
    along = np.linspace(0, 2 * np.pi, width * SUPERSAMPLE)
    hills = 2.5 * np.sin(rng.uniform(0.6, 1.2) * along + rng.uniform(0, 7))
    hills += np.sin(rng.uniform(1.8, 3.0) * along + rng.uniform(0, 7))
    horizon_y = height * rng.uniform(0.42, 0.48) + hills
    # Textures are made at image size, four times faster, for they have no edges to smooth.
    rise = np.abs(np.arange(height) - round(float(horizon_y.mean())))
    bands = 0.14 * _noise(rng, size_hw, (5, 20)) + np.linspace(0, 1.8, height, dtype=np.float32)[:, None]
    puffs = 0.8 * _noise(rng, size_hw, (8, 26)) + 0.4 * _noise(rng, size_hw, (4, 10)) - 0.3
    sky = _mix(_mix(paint["pale"], paint["deep"], bands), paint["cloud"], np.minimum(puffs, 0.85))[rise]
    tufts = 0.55 + 0.18 * _noise(rng, size_hw, (3, 1)) + 0.2 * _noise(rng, size_hw, (9, 18))
    grass = _mix(paint["dark"], paint["light"], tufts)
    canvas_wh = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    sky_rgb, grass_rgb = (cv2.resize(texture, canvas_wh).astype(np.float32, copy=False) for texture in (sky, grass))
    is_meadow = (np.arange(canvas_wh[1])[:, None] >= horizon_y * SUPERSAMPLE).astype(np.uint8)
    image_rgb = cv2.copyTo(grass_rgb, is_meadow, sky_rgb.copy()).astype(np.float32, copy=False)
    return _Canvas(image_rgb, SKY + (MEADOW - SKY) * is_meadow, sky_rgb, grass_rgb, paint), horizon_y


def _paint_lake(canvas: _Canvas, rng: np.random.Generator, taken: list[_Box], meadow: _Box) -> None:
    """Paints a lake that mirrors the sky."""
    width, height = rng.uniform(66, 92), rng.uniform(26, 32)
    x0, y0 = rng.uniform(-0.2 * width, meadow.x1 - 0.8 * width), rng.uniform(meadow.y0, meadow.y1 - height)
    box = _Box(x0, y0, x0 + width, y0 + height)
    taken.append(box)
    shore = _round(box, rng.uniform(-0.08, 0.08, 4))
    canvas.line(shore, canvas.paint["shadow"], 3.0, is_closed=True)
    y, x = canvas.find_pixels(shore)
    canvas.image_rgb[y, x], canvas.class_ids[y, x] = canvas.sky_rgb[y, x], LAKE


def _paint_balloon(canvas: _Canvas, rng: np.random.Generator, taken: list[_Box], sky: _Box) -> None:
    """Paints a striped hot-air balloon with its basket, wholly in the sky."""
    width = rng.uniform(25, 29)
    box = _place(rng, taken, (width, 1.32 * width), sky._replace(y0=sky.y0 + 1.32 * width))
    if box is None:
        return
    paint, middle, radius = canvas.paint, (box.x0 + box.x1) / 2, (box.x1 - box.x0) / 2
    down = np.linspace(0, 1, 24)
    dome = np.sqrt(np.clip(1 - (1 - down / 0.44) ** 2, 0, 1))
    half = radius * np.where(down < 0.44, dome, 1 - 0.62 * np.clip((down - 0.44) / 0.56, 0, 1) ** 1.6)
    y = box.y0 + 0.8 * down * (box.y1 - box.y0)
    stripe = paint["cream" if rng.random() < 0.45 else "roof"]
    for index, (left, right) in enumerate(itertools.pairwise(np.sin(np.linspace(-np.pi / 2, np.pi / 2, 8)))):
        gore = np.concatenate([np.c_[middle + left * half, y], np.c_[middle + right * half, y][::-1]])
        canvas.fill(gore, stripe if index % 2 else paint["brick"], BALLOON)
    canvas.shade(np.concatenate([np.c_[middle - half, y], np.c_[middle + half, y][::-1]]), 0.18)
    canvas.fill(_quad(middle, y[-1] - 0.5, half[-1], box.y1 - 4, 0.3 * radius), paint["roof"], BALLOON)
    canvas.fill(_quad(middle, box.y1 - 5, 0.34 * radius, box.y1, 0.3 * radius), paint["brown"], BALLOON)


def _paint_standing(canvas: _Canvas, rng: np.random.Generator, taken: list[_Box], meadow: _Box) -> None:
    """Paints a barn and trees that stand on the meadow, the far ones first."""
    barn_wh, trees = (rng.uniform(38, 46), rng.uniform(25, 30)), []
    barn = _place(rng, taken, barn_wh, meadow._replace(y1=meadow.y0 + 24)) if rng.random() < 0.95 else None
    for _ in range(int(rng.integers(2, 5))):
        tree_width = rng.uniform(24, 30)
        trees.append(_place(rng, taken, (tree_width, rng.uniform(1.25, 1.4) * tree_width), meadow))
    for box in sorted((box for box in [barn, *trees] if box is not None), key=lambda box: box.y1):
        y, x = canvas.find_pixels(_round(_Box(box.x0 + 3, box.y1 - 5, box.x1 + 5, box.y1 + 3)))
        canvas.image_rgb[y, x] *= np.where(canvas.class_ids[y, x] == MEADOW, 0.78, 1.0)[:, None]
        (_paint_barn if box is barn else _paint_tree)(canvas, rng, box)


def _paint_barn(canvas: _Canvas, rng: np.random.Generator, box: _Box) -> None:
    """Paints a barn of boards: a gable wall with its door, a long wall beside it, and the roof."""
    paint, (x0, y0, x1, y1) = canvas.paint, box
    eaves, corner = y0 + 0.45 * (y1 - y0), x0 + 0.45 * (x1 - x0)
    ridge = (x0 + corner) / 2
    canvas.fill([(corner, eaves), (x1, eaves), (x1, y1), (corner, y1)], 0.86 * paint["brick"], BARN)
    canvas.fill([(x0, y1), (x0, eaves), (ridge, y0), (corner, eaves), (corner, y1)], paint["brick"], BARN)
    for x in np.arange(x0 + 3, x1 - 1, rng.uniform(3.5, 4.5)):
        canvas.line([(x, eaves), (x, y1)], paint["roof"], 0.5)
    canvas.fill([(ridge, y0), (x1 - 5, y0), (x1, eaves + 1), (corner, eaves + 1)], paint["roof"], BARN)
    canvas.line([(x0 + 1, eaves), (ridge, y0 + 1), (corner, eaves)], paint["cream"], 1.0)
    door = _quad(ridge, y1 - 0.42 * (y1 - y0), 4.5, y1, 4.5)
    canvas.fill(door, paint["brown"], BARN)
    canvas.line(door, paint["cream"], 1.0)
    for x in np.linspace(corner, x1, 4)[1:-1]:
        canvas.fill(_quad(x, eaves + 4, 2.2, eaves + 9, 2.2), paint["cream"], BARN)


def _paint_tree(canvas: _Canvas, rng: np.random.Generator, box: _Box) -> None:
    """Paints a round tree or a fir, its crown filled with grass from elsewhere on the meadow."""
    middle, half, foot = (box.x0 + box.x1) / 2, (box.x1 - box.x0) / 2, box.y1 - 5
    canvas.fill(_quad(middle, foot - 6, 3, box.y1, 3.6), canvas.paint["brown"], TREE)
    crown = _round(box._replace(y1=box.y1 - 7), rng.uniform(-0.06, 0.06, 5))
    if rng.random() < 0.4:
        across, down = (0, 0.55, 0.38, 0.8, 0.6, 1), (0, 0.36, 0.36, 0.68, 0.68, 1)
        side = np.c_[half * np.array(across), box.y0 + (foot - box.y0) * np.array(down)]
        crown = np.array([middle, 0]) + np.concatenate([side, side[:0:-1] * (-1, 1)])
    y, x = canvas.find_pixels(crown)
    elsewhere = x - int(rng.integers(20, 200))  # Negative columns count from the right edge.
    canvas.image_rgb[y, x], canvas.class_ids[y, x] = canvas.grass_rgb[y, elsewhere], TREE
    canvas.shade(crown, 0.25)
    canvas.line(crown, canvas.paint["shadow"], 1.0, is_closed=True)


def _place(rng: np.random.Generator, taken: list[_Box], size_wh: tuple[float, float], feet: _Box) -> _Box | None:
    """Finds free room for an object whose foot stands within the feet box, and takes it; None if there is none."""
    width, height = size_wh
    for _ in range(40 if feet.y0 <= feet.y1 else 0):
        x, y = rng.uniform(feet.x0, feet.x1 - width), rng.uniform(feet.y0, feet.y1)
        box = _Box(x, y - height, x + width, y)
        if all(max(box.x0 - b.x1, b.x0 - box.x1, box.y0 - b.y1, b.y0 - box.y1) >= 3 for b in taken):
            taken.append(box)
            return box
    return None


def _noise(rng: np.random.Generator, size_hw: tuple[int, int], cell_hw: tuple[int, int]) -> FloatArray:
    """Returns smooth noise of float32 HxW, about -2 to 2, with spots about as large as a cell."""
    cells = rng.standard_normal([side // cell for side, cell in zip(size_hw, cell_hw, strict=True)], dtype=np.float32)
    return np.asarray(cv2.resize(cells, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _mix(start: FloatArray, end: FloatArray, share: FloatArray) -> FloatArray:
    return start + np.clip(share, 0, 1)[..., None] * (end - start)


def _round(box: _Box, bumps: npt.ArrayLike = ()) -> npt.NDArray[np.float64]:
    """Returns an oval that fills the box; bumps are the heights of waves round it, as a share of the radius."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    swell = 1 + np.asarray(bumps, np.float64) @ np.cos(np.arange(2, 2 + np.size(bumps))[:, None] * angle)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centre, radius = np.add(box[2:], box[:2]) / 2, np.subtract(box[2:], box[:2]) / 2
    return np.asarray(centre + radius * swell[:, None] * circle, np.float64)


def _quad(x: float, top: float, top_half: float, bottom: float, bottom_half: float) -> Points:
    return [(x - bottom_half, bottom), (x - top_half, top), (x + top_half, top), (x + bottom_half, bottom)]


def _to_canvas(points_xy: Points) -> npt.NDArray[np.int32]:
    """Converts image pixels to the fixed-point numbers of OpenCV, 4 bits after the point."""
    return np.round(np.asarray(points_xy) * SUPERSAMPLE * 16).astype(np.int32)
