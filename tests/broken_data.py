"""A small good data set, and every way to break it that the doctor must find."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE_HW = (48, 64)
PAGE = """format: pairs
splits:
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
classes: [ground, thing, sky]
"""
NAMES = {"train": ("ada", "bob", "cyd", "dan", "eve", "fay"), "val": ("gus", "hal", "ivy")}
_ORIENTATION = 0x0112


def draw_image(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Soft blots of colour, of another shape for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC))


def draw_mask(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Classes 0, 1 and 2, and a line of 255 between them."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size_hw, np.uint8)
    mask[: size_hw[0] // 3] = 2
    mask[size_hw[0] // 3] = 255
    top, left = rng.integers(20, 30), rng.integers(5, 40)
    mask[top : top + 12, left : left + 15] = 1
    return mask


def write_pair(
    root: Path, split: str, name: str, seed: int, *, suffix: str = ".png", mask: np.ndarray | None = None
) -> tuple[Path, Path]:
    image_path, mask_path = root / split / "images" / f"{name}{suffix}", root / split / "masks" / f"{name}.png"
    for path in (image_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_image(seed)).save(image_path)
    Image.fromarray(draw_mask(seed) if mask is None else mask).save(mask_path)
    return image_path, mask_path


def draw_good(root: Path) -> Path:
    """dataset.yaml of a set without findings."""
    seed = 0
    for split, names in NAMES.items():
        for name in names:
            seed += 1
            write_pair(root, split, name, seed, suffix=".jpg" if seed % 2 else ".png")
    (root / "dataset.yaml").write_text(PAGE)
    return root / "dataset.yaml"


def list_masks(root: Path) -> list[Path]:
    return sorted(root.glob("*/masks/*.png"))


def change_masks(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> list[Path]:
    for path in list_masks(root):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
    return list_masks(root)


def lose_mask(root: Path) -> list[Path]:
    (root / "train/masks/bob.png").unlink()
    return [root / "train/images/bob.png"]


def lose_image(root: Path) -> list[Path]:
    (root / "train/images/bob.png").unlink()
    return [root / "train/masks/bob.png"]


def cut_image(root: Path) -> list[Path]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (root / "train/images/cyd.jpg").write_bytes(buffer.getvalue()[:1500])
    (root / "val/images/hal.png").write_bytes(b"")
    return [root / "train/images/cyd.jpg", root / "val/images/hal.png"]


def cut_mask(root: Path) -> list[Path]:
    path = root / "train/masks/cyd.png"
    path.write_bytes(path.read_bytes()[:80])
    return [path]


def stray_value(root: Path) -> list[Path]:
    mask = draw_mask(7)
    mask[0, :3] = 77
    return [write_pair(root, "val", "gus", 7, suffix=".jpg", mask=mask)[1]]


def missing_class(root: Path) -> list[Path]:
    mask = draw_mask(1)
    mask[30:] = 3
    return [write_pair(root, "train", "ada", 1, suffix=".jpg", mask=mask)[1]]


def smooth_masks(root: Path) -> list[Path]:
    """Values between those that mean something: resized by other than nearest."""

    def soften(mask: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(mask * 80, (31, 31), 0))

    return change_masks(root, soften)


def only_0_and_255(root: Path) -> list[Path]:
    (root / "dataset.yaml").write_text(PAGE.replace("[ground, thing, sky]", "[ground, thing]"))
    return change_masks(root, lambda mask: np.where(mask == 1, 255, 0).astype(np.uint8))


def some_of_0_and_255(root: Path) -> list[Path]:
    (root / "dataset.yaml").write_text(PAGE.replace("[ground, thing, sky]", "[ground, thing]"))
    paths = change_masks(root, lambda mask: (mask == 1).astype(np.uint8))
    for path in paths[:2]:
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    return paths[:2]


def off_by_one(root: Path) -> list[Path]:
    return change_masks(root, lambda mask: np.where(mask == 255, 255, mask + 1).astype(np.uint8))


def off_by_one_with_0(root: Path) -> list[Path]:
    """As ADE20K does: 0 is unlabelled."""
    (root / "dataset.yaml").write_text(PAGE.replace("ground", "field"))
    return change_masks(root, lambda mask: np.where(mask == 255, 0, mask + 1).astype(np.uint8))


def off_by_one_below(root: Path) -> list[Path]:
    classes = "[{name: ground, values: [1]}, {name: thing, values: [2]}, {name: sky, values: [3]}]"
    (root / "dataset.yaml").write_text(PAGE.replace("[ground, thing, sky]", classes))
    return list_masks(root)


def rgb_masks(root: Path) -> list[Path]:
    palette = np.zeros((256, 3), np.uint8)
    palette[[0, 1, 2, 255]] = [(128, 64, 0), (255, 0, 0), (0, 128, 255), (255, 255, 255)]
    return change_masks(root, lambda mask: palette[mask])


def grey_rgb_masks(root: Path) -> list[Path]:
    return change_masks(root, lambda mask: np.stack([mask] * 3, axis=-1))


def jpeg_mask(root: Path) -> list[Path]:
    path = root / "train/masks/eve.png"
    Image.fromarray(draw_mask(5)).save(path, "JPEG")
    return [path]


def other_size(root: Path) -> list[Path]:
    return [write_pair(root, "train", "fay", 6, mask=draw_mask(6, (24, 32)))[1]]


def turned_image(root: Path) -> list[Path]:
    """The photo is turned by 90 degrees when shown; its mask was drawn on the stored pixels."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.fromarray(draw_image(5)).save(root / "train/images/eve.jpg", exif=exif)
    return [root / "train/masks/eve.png"]


def upside_down_image(root: Path) -> list[Path]:
    exif = Image.Exif()
    exif[_ORIENTATION] = 3
    Image.fromarray(draw_image(5)).save(root / "train/images/eve.jpg", exif=exif)
    return [root / "train/masks/eve.png"]


def same_image(root: Path) -> list[Path]:
    write_pair(root, "train", "zoe", 8)
    (root / "train/images/zoe.png").write_bytes((root / "val/images/hal.png").read_bytes())
    return [root / "train/images/zoe.png"]


def near_image(root: Path) -> list[Path]:
    """The same picture, smaller, a little lighter, as another file type."""
    write_pair(root, "train", "zoe", 8)
    (root / "train/images/zoe.png").unlink()
    picture = np.clip(draw_image(8).astype(np.int16) + 6, 0, 255).astype(np.uint8)
    small = cv2.resize(picture, (48, 36), interpolation=cv2.INTER_AREA)
    Image.fromarray(small).save(root / "train/images/zoe.jpg", quality=70)
    Image.fromarray(draw_mask(8, (36, 48))).save(root / "train/masks/zoe.png")
    return [root / "train/images/zoe.jpg"]


def copy_in_split(root: Path) -> list[Path]:
    write_pair(root, "train", "zoe", 2)
    return [root / "train/images/zoe.png"]


def video(root: Path) -> list[Path]:
    """Two scenes that change slowly; every fourth frame of one is val."""
    for scene in (1, 2):
        first, last = draw_image(100 + scene).astype(np.float32), draw_image(200 + scene).astype(np.float32)
        for frame in range(24):
            split = "val" if scene == 1 and frame % 4 == 0 else "train"
            image, _ = write_pair(root, split, f"scene{scene}_{frame:04d}", frame)
            Image.fromarray((first + (last - first) * frame / 24).astype(np.uint8)).save(image)
    return [root / "val/images/scene1_0000.png"]


def erase_class(masks: Path) -> None:
    """Class 1 becomes class 0 in every mask of a folder."""
    for path in masks.iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == 1] = 0
        Image.fromarray(mask).save(path)


def class_nowhere(root: Path) -> list[Path]:
    (root / "dataset.yaml").write_text(PAGE.replace("sky]", "sky, sea]"))
    return []


def class_not_in_val(root: Path) -> list[Path]:
    erase_class(root / "val/masks")
    return []


def class_not_in_train(root: Path) -> list[Path]:
    erase_class(root / "train/masks")
    return []


def rare_class(root: Path) -> list[Path]:
    erase_class(root / "train/masks")
    mask = draw_mask(1)
    mask[mask == 1] = 0
    mask[40, 40] = 1
    write_pair(root, "train", "ada", 1, suffix=".jpg", mask=mask)
    return []


def all_ignored(root: Path) -> list[Path]:
    return [write_pair(root, "val", "ivy", 9, suffix=".jpg", mask=np.full(SIZE_HW, 255, np.uint8))[1]]


def single_class(root: Path) -> list[Path]:
    return [write_pair(root, "val", "ivy", 9, suffix=".jpg", mask=np.full(SIZE_HW, 2, np.uint8))[1]]


def small_image(root: Path) -> list[Path]:
    image, mask = write_pair(root, "train", "dan", 4)
    Image.fromarray(draw_image(4, (9, 12))).save(image)
    Image.fromarray(np.repeat(np.uint8([0, 1, 2]), 36).reshape(9, 12)).save(mask)
    return [image]


def large_image(root: Path) -> list[Path]:
    image, mask = write_pair(root, "train", "dan", 4)
    Image.fromarray(draw_image(4, (480, 640))).save(image)
    Image.fromarray(draw_mask(4, (480, 640))).save(mask)
    return [image]


def duplicate_stem(root: Path) -> list[Path]:
    Image.fromarray(draw_image(30)).save(root / "train/images/bob.jpg")
    return [root / "train/images/bob.png"]


def case_collision(root: Path) -> list[Path]:
    write_pair(root, "train", "Bob", 31)
    return [root / "train/images/bob.png"]


@dataclass(frozen=True)
class Break:
    """One way to break the set. kind, severity: of the finding. is_mended: its lines, pasted, take the finding away."""

    make: Callable[[Path], list[Path]]
    kind: str
    severity: str
    is_mended: bool = True


BREAKS = [
    Break(lose_mask, "image_without_mask", "error"),
    Break(lose_image, "mask_without_image", "remark", False),
    Break(cut_image, "image_unreadable", "error"),
    Break(cut_mask, "mask_unreadable", "error"),
    Break(stray_value, "unknown_value", "error"),
    Break(missing_class, "unknown_value", "error"),
    Break(smooth_masks, "unknown_value", "error", False),
    Break(only_0_and_255, "only_0_and_255", "error"),
    Break(some_of_0_and_255, "only_0_and_255", "warning"),
    Break(off_by_one, "off_by_one", "error"),
    Break(off_by_one_with_0, "off_by_one", "error"),
    Break(off_by_one_below, "off_by_one", "error"),
    Break(rgb_masks, "unknown_color", "error"),
    Break(grey_rgb_masks, "unknown_color", "error"),
    Break(jpeg_mask, "mask_jpeg", "error"),
    Break(other_size, "size_differs", "error"),
    Break(turned_image, "not_turned", "error"),
    Break(upside_down_image, "maybe_not_turned", "remark"),
    Break(same_image, "same_image", "warning"),
    Break(near_image, "near_image", "warning"),
    Break(copy_in_split, "copy_in_split", "remark"),
    Break(video, "video_across_splits", "warning"),
    Break(class_nowhere, "class_absent", "warning"),
    Break(class_not_in_val, "class_not_in_val", "warning", False),
    Break(class_not_in_train, "class_not_in_train", "warning", False),
    Break(rare_class, "rare_class_in_train", "remark", False),
    Break(all_ignored, "all_ignored", "warning"),
    Break(single_class, "single_class", "remark", False),
    Break(small_image, "small_image", "remark"),
    Break(large_image, "large_image", "remark"),
    Break(duplicate_stem, "duplicate_stem", "error"),
    Break(case_collision, "case_collision", "warning"),
]
