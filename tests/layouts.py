"""Draws one small set of scenes in every layout that the README shows, and knows what each mask must come back as."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

README = Path(__file__).parents[1] / "README.md"
SIZE_HW = (48, 64)
VOID = 255

Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A picture of ground (0), two kinds of boxes (1, 2) that do not overlap, and unlabelled pixels (255)."""

    name: str
    image_rgb: npt.NDArray[np.uint8]
    ids: Ids
    boxes: tuple[tuple[int, int, int, int, int], ...]  # class id, x, y, width, height


Splits = dict[str, list[Scene]]
Truth = dict[str, Ids]  # by the name of the scene


def draw_scene(name: str, seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    ids = np.zeros(SIZE_HW, np.uint8)
    boxes = []
    for index in range(4):  # one in each quarter, so that they never touch
        width, height = (int(side) for side in rng.integers(6, 20, 2))
        x, y = 3 + index % 2 * 32 + int(rng.integers(0, 6)), 2 + index // 2 * 24 + int(rng.integers(0, 2))
        boxes.append((1 + index % 2, x, y, width, min(height, 20)))
        ids[y : y + boxes[-1][4], x : x + width] = boxes[-1][0]
    ids[:2, :5] = VOID
    paint = np.array([[60, 90, 50], [200, 80, 60], [70, 110, 220]])
    image = paint[np.where(ids == VOID, 0, ids)] + rng.integers(-20, 20, (*SIZE_HW, 3))
    return Scene(name, image.clip(0, 255).astype(np.uint8), ids, tuple(boxes))


def draw_splits(train: int = 8, val: int = 4) -> Splits:
    """`seq01_0001` and so on: four scenes to a sequence."""
    counts, splits, number = {"train": train, "val": val}, {}, 0
    for split, count in counts.items():
        splits[split] = [draw_scene(f"seq{(number + i) // 4 + 1:02d}_{i:04d}", 100 + number + i) for i in range(count)]
        number += count
    return splits


def save(path: Path, pixels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def recode(ids: Ids, values: dict[int, int]) -> Ids:
    table = np.arange(256, dtype=np.uint8)
    for class_id, value in values.items():
        table[class_id] = value
    return table[ids]


def keep(ids: Ids) -> Ids:
    return ids


def write_pairs(
    root: Path,
    splits: Splits,
    image: str = "{split}/images/{name}.png",
    mask: str = "{split}/masks/{name}.png",
    encode: Callable[[Ids], npt.NDArray[Any]] = keep,
) -> None:
    for split, scenes in splits.items():
        for scene in scenes:
            save(root / image.format(split=split, name=scene.name), scene.image_rgb)
            save(root / mask.format(split=split, name=scene.name), encode(scene.ids))


def tell_truth(splits: Splits, expected: Callable[[Ids], Ids] = keep) -> Truth:
    return {scene.name: expected(scene.ids) for scenes in splits.values() for scene in scenes}


def write_folders(root: Path, splits: Splits) -> Truth:
    def encode(ids: Ids) -> Ids:
        raw = recode(ids, {VOID: 9})
        raw[::2][ids[::2] == 2] = 3  # two raw values of one class
        return raw

    write_pairs(root, splits, encode=encode)
    return tell_truth(splits)


def write_binary(root: Path, splits: Splits) -> Truth:
    write_pairs(
        root, splits, "images/{name}.png", "masks/{name}.png", lambda ids: recode(ids, {1: 255, 2: 255, VOID: 0})
    )
    return tell_truth(splits, lambda ids: recode(ids, {2: 1, VOID: 0}))


def write_rgb(root: Path, splits: Splits) -> Truth:
    colors = np.zeros((256, 3), np.uint8)
    colors[:3] = [(0x80, 0x40, 0), (0, 255, 0), (0, 200, 0)]
    write_pairs(root, splits, "{split}/rgb/{name}.png", "{split}/color/{name}.png", lambda ids: colors[ids])
    return tell_truth(splits, lambda ids: recode(ids, {2: 1}))


def write_small(root: Path, splits: Splits) -> Truth:
    write_pairs(root, splits, encode=lambda ids: ids[::2, ::2])
    save(root / "train/images/lonely.png", splits["train"][0].image_rgb)
    for left_out in ("train/{}/blurred.png", "val/{}/2020/a_old.png"):
        for folder in ("images", "masks"):
            path = root / left_out.format(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no picture")
    return tell_truth(splits, lambda ids: ids[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))


def write_cityscapes(root: Path, splits: Splits) -> Truth:
    city = "{split}/ulm/{name}"
    write_pairs(
        root,
        splits,
        f"leftImg8bit/{city}_leftImg8bit.png",
        f"gtFine/{city}_gtFine_labelIds.png",
        lambda ids: recode(ids, {0: 7, 1: 26, 2: 33, VOID: 3}),
    )
    write_pairs(root, splits, f"leftImg8bit/{city}_leftImg8bit.png", f"gtFine/{city}_gtFine_instanceIds.png")
    return tell_truth(splits, lambda ids: recode(ids, {1: 13, 2: 18}))


def write_ade20k(root: Path, splits: Splits) -> Truth:
    folders = {"training": splits["train"], "validation": splits["val"]}
    write_pairs(
        root,
        folders,
        "images/{split}/{name}.jpg",
        "annotations/{split}/{name}.png",
        lambda ids: (ids + 1).astype(np.uint8),  # 255 becomes 0
    )
    return tell_truth(splits)


def write_lists(root: Path, splits: Splits) -> Truth:
    write_pairs(root, splits, "images/{name}.png", "masks/{name}.png")
    (root / "lists").mkdir()
    for split, scenes in splits.items():
        text = "\n".join(f"images/{scene.name}.png masks/{scene.name}.png" for scene in scenes)
        (root / "lists" / f"{split}.txt").write_text(text)
    return tell_truth(splits)


def write_name_lists(root: Path, splits: Splits) -> Truth:
    write_pairs(root, splits, "images/{name}.png", "masks/{name}.png")
    (root / "lists").mkdir()
    spellings = ("{}", "{}.png", "images/{}.png")
    for split, scenes in splits.items():
        lines = [spellings[index % 3].format(scene.name) for index, scene in enumerate(scenes)]
        (root / "lists" / f"{split}.txt").write_text("# names\n" + "\r\n".join(lines))
    return tell_truth(splits)


def write_voc(root: Path, splits: Splits) -> Truth:
    write_pairs(root, splits, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png")
    save(root / "JPEGImages/unlabelled.jpg", splits["train"][0].image_rgb)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = {split: [scene.name for scene in scenes] for split, scenes in splits.items()}
    (lists / "trainval.txt").write_text("\n".join([*names["train"], *names["val"], "2007_absent"]))
    (lists / "val.txt").write_text("\n".join(names["val"]) + "\n")
    (lists / "README").write_text("lists of the challenge\n")
    return tell_truth(splits)


def write_coco(root: Path, splits: Splits) -> Truth:
    """Class 1 is `person` as a polygon, class 2 `car` or `bus`; unlabelled pixels are a crowd; a cup is not chosen."""
    (root / "annotations").mkdir(parents=True)
    categories = [(1, "person"), (3, "car"), (6, "bus"), (8, "truck"), (47, "cup")]
    for split, scenes in splits.items():
        images, annotations = [], []
        for image_id, scene in enumerate(scenes, 7):
            save(root / f"{split}2017" / f"{scene.name}.jpg", scene.image_rgb)
            height, width = SIZE_HW
            images.append({"id": image_id, "file_name": f"{scene.name}.jpg", "height": height, "width": width})
            for index, segmentation in enumerate(list_segmentations(scene)):
                annotations.append({"id": 100 * image_id + index, "image_id": image_id, **segmentation})
        page = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in categories],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(page))
    return tell_truth(splits)


def list_segmentations(scene: Scene) -> list[dict[str, Any]]:
    """A polygon, two polygons in one, a compressed and an uncompressed run-length code, and what lies under them."""
    found: list[dict[str, Any]] = []
    for (_, x, y, width, height), category in zip(scene.boxes, (1, 3, 1, 8), strict=True):
        box = [x, y, x + width, y, x + width, y + height, x, y + height]
        inside = np.zeros(SIZE_HW, np.uint8)
        inside[y : y + height, x : x + width] = 1
        code = coco.encode(np.asfortranarray(inside))
        segmentation: Any = [[float(number) for number in box]]
        if category == 3:
            half = x + width // 2
            left = [x, y, half, y, half, y + height, x, y + height]
            segmentation = [left, [half, y, x + width, y, x + width, y + height, half, y + height]]
        elif category == 8:
            segmentation = {"size": list(SIZE_HW), "counts": code["counts"].decode()}
        found.append({"category_id": category, "segmentation": segmentation, "iscrowd": 0})
        if category == 3:  # a bus hides behind the car, and is of the same class; a cup stands before both
            found.append({"category_id": 6, "segmentation": [box], "iscrowd": 0})
            found.append({"category_id": 47, "segmentation": [box], "iscrowd": 0})
    void = count_runs(scene.ids == VOID)
    found.append({"category_id": 1, "segmentation": {"size": list(SIZE_HW), "counts": void}, "iscrowd": 1})
    return found


def count_runs(inside: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed code: lengths of runs by columns, of zeros first."""
    flat = np.concatenate([[False], inside.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges.tolist(), inside.size]).tolist()


def write_panoptic(root: Path, splits: Splits) -> Truth:
    (root / "annotations").mkdir(parents=True)
    names = {10: "person", 21: "grass", 30: "road", 99: "sky"}
    category_of = {0: 99, 1: 10, 2: 30}
    for split, scenes in splits.items():
        images, annotations = [], []
        for image_id, scene in enumerate(scenes, 7):
            save(root / f"{split}2017" / f"{scene.name}.jpg", scene.image_rgb)
            segment_of = {class_id: 70000 * (class_id + 1) + image_id for class_id in category_of}
            codes = np.zeros(SIZE_HW, np.uint32)
            for class_id, segment_id in segment_of.items():
                codes[scene.ids == class_id] = segment_id
            save(root / f"panoptic_{split}2017" / f"{scene.name}.png", np.stack(
                [codes & 255, codes >> 8 & 255, codes >> 16], axis=-1).astype(np.uint8),
            )  # fmt: skip
            images.append({"id": image_id, "file_name": f"{scene.name}.jpg", "height": 48, "width": 64})
            segments = [
                {"id": segment_of[class_id], "category_id": category, "iscrowd": 0}
                for class_id, category in category_of.items()
            ]
            annotations.append({"image_id": image_id, "file_name": f"{scene.name}.png", "segments_info": segments})
        page = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in names.items()],
        }
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(page))
    return tell_truth(splits)


def write_instances(root: Path, splits: Splits) -> Truth:
    for scene in (scene for scenes in splits.values() for scene in scenes):
        folder = root / "stage1_train" / scene.name
        save(folder / "images" / f"{scene.name}.png", scene.image_rgb)
        for index, (_, x, y, width, height) in enumerate(scene.boxes):
            inside = np.zeros(SIZE_HW, np.uint8)
            inside[y : y + height, x : x + width] = 255
            save(folder / "masks" / f"{index:02x}.png", inside)
    return tell_truth(splits, lambda ids: recode(ids, {2: 1, VOID: 0}))


def write_frames(root: Path, splits: Splits) -> Truth:
    scenes = [draw_scene(f"seq{index // 4 + 1:02d}_{index % 4:04d}", index) for index in range(20)]
    write_pairs(root, {"train": scenes}, "frames/{name}.png", "masks/{name}.png")
    return tell_truth({"train": scenes})


LAYOUTS: dict[str, Callable[[Path, Splits], Truth]] = {
    "folders": write_folders,
    "binary masks": write_binary,
    "RGB masks": write_rgb,
    "masks of another size": write_small,
    "Cityscapes": write_cityscapes,
    "ADE20K": write_ade20k,
    "list files": write_lists,
    "lists of names": write_name_lists,
    "PASCAL VOC": write_voc,
    "COCO": write_coco,
    "COCO panoptic": write_panoptic,
    "a mask for each instance": write_instances,
    "splits by group": write_frames,
}


def read_examples() -> dict[str, str]:
    """The pages under `Your own data` in the README, by the comment in their first line."""
    section = README.read_text(encoding="utf-8").split("\n## Your own data\n")[1].split("\n## ")[0]
    pages = re.findall(r"```yaml\n# (.*?)\n(.*?)```", section, re.DOTALL)
    return dict(pages)


def write_layout(name: str, root: Path, splits: Splits | None = None) -> tuple[str, Truth]:
    """Draws a layout under root with the README's page for it; returns the location of the page, and the truth."""
    truth = LAYOUTS[name](root, splits or draw_splits())
    page = root / "dataset.yaml"
    page.write_text(read_examples()[name], encoding="utf-8")
    return str(page), truth
