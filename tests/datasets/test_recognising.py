"""A folder without dataset.yaml: what it is taken for, the reason that is given, the classes that are found."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import (
    Scene,
    draw_splits,
    recode,
    save,
    tell_truth,
    write_coco,
    write_instances,
    write_pairs,
    write_panoptic,
)

from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.sample import load_mask
from batchseg.errors import UserError

SPLITS = draw_splits(train=10, val=3)


def count_samples(dataset: Dataset) -> dict[str, int]:
    return {split: len(samples) for split, samples in dataset.splits.items()}


def list_pixels(dataset: Dataset) -> list[int]:
    """Pixels of each class over all masks."""
    counts = np.zeros(256, np.int64)
    for sample in (sample for samples in dataset.splits.values() for sample in samples):
        counts += np.bincount(load_mask(sample, dataset.classes, (48, 64)).ravel(), minlength=256)
    return counts[: len(dataset.classes)].tolist()


def count_truth(scenes: list[Scene]) -> list[int]:
    return np.bincount(np.concatenate([scene.ids.ravel() for scene in scenes]), minlength=256)[:3].tolist()


@pytest.mark.parametrize(
    ("image", "mask", "reason"),
    [
        ("{split}/images/{name}.png", "{split}/masks/{name}.png", "each split has a folder of images and one of masks"),
        (
            "{split}/Images/{name}.png",
            "{split}/Labels/{name}.png",
            "each split has a folder of images and one of masks",
        ),
        (
            "images/{split}/{name}.png",
            "annotations/{split}/{name}.png",
            "images and annotations have a folder for each",
        ),
        ("{split}/{name}.png", "{split}annot/{name}.png", "the folder holds train and trainannot"),
        ("{split}/{name}.png", "{split}_masks/{name}.png", "the folder holds train and train_masks"),
    ],
)
def test_pairs_with_splits(image: str, mask: str, reason: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, SPLITS, image, mask)
    dataset = open_dataset(str(tmp_path))
    assert dataset.format == "pairs"
    assert dataset.reason.startswith(reason)
    assert dataset.reason.endswith("; classes from the values in 13 masks, to be named in a dataset.yaml")
    assert count_samples(dataset) == {"train": 10, "val": 3}
    assert dataset.classes.names == ["class_0", "class_1", "class_2"]
    assert list_pixels(dataset) == count_truth(SPLITS["train"] + SPLITS["val"])


def test_split_names_are_ours(tmp_path: Path) -> None:
    write_pairs(tmp_path, {"training": SPLITS["train"], "Validation": SPLITS["val"]})
    assert count_samples(open_dataset(str(tmp_path))) == {"train": 10, "val": 3}


def test_without_val_a_tenth_of_train_becomes_it(tmp_path: Path) -> None:
    write_pairs(tmp_path, {"": SPLITS["train"]}, "images/{name}.png", "masks/{name}.png")
    dataset = open_dataset(str(tmp_path))
    assert dataset.reason.startswith("the folder holds images and masks; a tenth of train becomes val")
    assert count_samples(dataset) == {"train": 9, "val": 1}


def test_classes_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path, SPLITS)
    (tmp_path / "classes.txt").write_text("ground\nsmall box\nother\nnever seen")
    dataset = open_dataset(str(tmp_path))
    assert dataset.classes.names == ["ground", "small box", "other", "never seen"]
    assert dataset.reason.endswith("class names from classes.txt")


def test_classes_by_value(tmp_path: Path) -> None:
    write_pairs(tmp_path / "gaps", SPLITS, encode=lambda ids: recode(ids, {0: 5, 1: 7}))
    assert [info.values for info in open_dataset(str(tmp_path / "gaps")).classes.classes] == [(2,), (5,), (7,)]
    write_pairs(tmp_path / "binary", SPLITS, encode=lambda ids: recode(ids, {1: 255, 2: 255}))
    binary = open_dataset(str(tmp_path / "binary"))
    assert binary.classes.names == ["background", "foreground"]
    assert binary.classes.lookup == {0: 0, 255: 1}
    colors = np.zeros((256, 3), np.uint8)
    colors[:3] = [(10, 0, 0), (0, 10, 0), (0, 0, 10)]
    colors[255] = 255
    write_pairs(tmp_path / "rgb", SPLITS, encode=lambda ids: colors[ids])
    rgb = open_dataset(str(tmp_path / "rgb"))
    assert rgb.classes.names == ["color_00000a", "color_000a00", "color_0a0000"]
    assert list_pixels(rgb) == count_truth(SPLITS["train"] + SPLITS["val"])[::-1]


def test_a_damaged_mask_does_not_hide_the_classes(tmp_path: Path) -> None:
    write_pairs(tmp_path, SPLITS)
    (tmp_path / "train" / "masks" / f"{SPLITS['train'][0].name}.png").write_bytes(b"no mask")
    assert len(open_dataset(str(tmp_path)).classes) == 3


def test_photos_are_no_masks(tmp_path: Path) -> None:
    for scene in SPLITS["train"]:
        save(tmp_path / "images" / f"{scene.name}.png", scene.image_rgb)
        save(tmp_path / "masks" / f"{scene.name}.png", scene.image_rgb)
    with pytest.raises(UserError, match=r"10 masks looked at hold 0 values and \d+ colors, which do not tell the cla"):
        open_dataset(str(tmp_path))


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, SPLITS)
    dataset = open_dataset(str(tmp_path))
    assert dataset.format == "coco"
    assert dataset.reason == "the folder holds annotations/instances_*.json and the folders of their images"
    assert count_samples(dataset) == {"train": 10, "val": 3}
    assert dataset.classes.names == ["background", "person", "car", "bus", "truck", "cup"]


def test_coco_beside_its_images(tmp_path: Path) -> None:
    write_coco(tmp_path / "made", SPLITS)
    for split, folder in {"train": "train", "val": "valid"}.items():
        (tmp_path / "made" / f"{split}2017").rename(tmp_path / folder)
        page = tmp_path / "made" / "annotations" / f"instances_{split}2017.json"
        page.rename(tmp_path / folder / "_annotations.coco.json")
    dataset = open_dataset(str(tmp_path))
    assert dataset.reason == "each split holds _annotations.coco.json"
    assert count_samples(dataset) == {"train": 10, "val": 3}


def test_panoptic(tmp_path: Path) -> None:
    write_panoptic(tmp_path, SPLITS)
    dataset = open_dataset(str(tmp_path))
    assert dataset.format == "panoptic"
    assert dataset.classes.names == ["person", "grass", "road", "sky"]
    ground, person, road = count_truth(SPLITS["train"] + SPLITS["val"])
    assert list_pixels(dataset) == [person, 0, road, ground]


@pytest.mark.parametrize("inner", ["", "stage1_train"])
def test_instance_masks(inner: str, tmp_path: Path) -> None:
    write_instances(tmp_path / "made", SPLITS)
    root = tmp_path / "made" / "stage1_train" if inner == "" else tmp_path / "made"
    dataset = open_dataset(str(root))
    assert dataset.format == "instance_masks"
    assert "has a folder of images and one of masks; a tenth of train becomes val" in dataset.reason
    assert sum(count_samples(dataset).values()) == 13
    truth = tell_truth(SPLITS, lambda ids: recode(ids, {2: 1, 255: 0}))
    assert list_pixels(dataset)[1] == sum(int((ids == 1).sum()) for ids in truth.values())


def test_voc_without_train_list(tmp_path: Path) -> None:
    write_pairs(tmp_path, SPLITS, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png")
    assert count_samples(open_dataset(str(tmp_path))) == {"train": 12, "val": 1}
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("\n".join(scene.name for scene in SPLITS["train"]))
    (lists / "test.txt").write_text("2008_000001")
    dataset = open_dataset(str(tmp_path))
    assert dataset.reason.endswith("; no train.txt; a tenth of train becomes val")
    assert count_samples(dataset) == {"train": 9, "val": 1}
    (lists / "trainval.txt").rename(lists / "train.txt")
    dataset = open_dataset(str(tmp_path))
    assert dataset.reason.endswith("; test has no masks and is left out")
    assert list(dataset.splits) == ["train", "val"]


def test_voc_with_a_label_map(tmp_path: Path) -> None:
    colors = np.zeros((256, 3), np.uint8)
    colors[1:3] = [(200, 0, 0), (0, 200, 0)]
    colors[255] = 255
    write_pairs(tmp_path, SPLITS, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", lambda ids: colors[ids])
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nground:0,0,0::\nbox:200,0,0::\ncan:0,200,0::"
    )
    dataset = open_dataset(str(tmp_path))
    assert dataset.classes.names == ["ground", "box", "can"]
    assert list_pixels(dataset) == count_truth(SPLITS["train"] + SPLITS["val"])
    (tmp_path / "labelmap.txt").write_text("ground:0,0,0::\nbox:red::\n")
    with pytest.raises(UserError, match=r"labelmap\.txt line 2: 'box:red::' is not `name:red,green,blue::`"):
        open_dataset(str(tmp_path))


def test_a_json_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps({}))
    (tmp_path / "train2017").mkdir()
    with pytest.raises(UserError, match="is of no known format"):
        open_dataset(str(tmp_path))


# --- real ones ---


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "layout", "counts", "classes"),
    [
        ("camvid", "pairs", {"train": 367, "val": 101}, 12),
        ("voc_mini", "voc", {"train": 10, "val": 4}, 21),
        ("coco_tiny", "coco", {"train": 80, "val": 80}, 81),
    ],
)
def test_published_sets(shared_data: Path, name: str, layout: str, counts: dict[str, int], classes: int) -> None:
    dataset = open_dataset(str(shared_data / name))
    assert (dataset.format, count_samples(dataset), len(dataset.classes)) == (layout, counts, classes)
