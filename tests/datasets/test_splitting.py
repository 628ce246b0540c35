"""Splits from splits: seeded, stratified, by group, by pattern, by list; written out and repeated."""

from pathlib import Path

import numpy as np
import pytest
from layouts import save, write_layout
from PIL import Image

from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.splitting import write_splits
from batchseg.datasets.stratify import choose_units
from batchseg.errors import UserError

CLASSES = "classes: [a, b, c]\n"


def draw_set(root: Path, classes: list[set[int]], names: list[str] | None = None) -> Path:
    """One image for each set of class ids that its mask is to hold."""
    for index, present in enumerate(classes):
        name = names[index] if names else f"{index:03d}"
        save(root / "images" / f"{name}.png", np.zeros((4, 6, 3), np.uint8))
        save(root / "masks" / f"{name}.png", np.resize(sorted(present), (4, 6)).astype(np.uint8))
    return root


def open_splits(root: Path, **derived: str) -> Dataset:
    lines = "".join(f"  {name}: {entry}\n" for name, entry in derived.items())
    page = f"splits:\n  train: {{images: images, masks: masks}}\n{lines}{CLASSES}"
    (root / "dataset.yaml").write_text(page)
    return open_dataset(str(root))


def list_names(dataset: Dataset, split: str) -> list[str]:
    return [sample.name.removeprefix("images/").removesuffix(".png") for sample in dataset.splits[split]]


def test_a_share_holds_every_class_in_proportion(tmp_path: Path) -> None:
    """Class 2 is in 6 of 60 images, class 1 in 20: a fifth of each."""
    classes = [{0, *({1} if index % 3 == 0 else ()), *({2} if index % 10 == 4 else ())} for index in range(60)]
    draw_set(tmp_path, classes)
    for seed in range(5):
        dataset = open_splits(tmp_path, val=f"{{from: train, fraction: 0.2, seed: {seed}}}")
        chosen = [classes[int(name)] for name in list_names(dataset, "val")]
        assert len(chosen) == 12
        assert sum(1 in present for present in chosen) == 4
        assert sum(2 in present for present in chosen) == 1


def test_a_class_of_two_images_is_in_both_splits(tmp_path: Path) -> None:
    classes = [{0, 2} if index in (7, 8) else {0, 1} for index in range(40)]
    draw_set(tmp_path, classes)
    without = 0
    for seed in range(8):
        stratified = open_splits(tmp_path, val=f"{{from: train, fraction: 0.1, seed: {seed}}}")
        for split in ("train", "val"):
            assert any(2 in classes[int(name)] for name in list_names(stratified, split))
        plain = open_splits(tmp_path, val=f"{{from: train, fraction: 0.1, seed: {seed}, stratify: false}}")
        assert len(list_names(plain, "val")) == 4
        without += not any(2 in classes[int(name)] for name in list_names(plain, "val"))
    assert without, "chance alone would have done: this test says nothing"


def test_a_mask_that_cannot_be_read_does_not_stop_the_split(tmp_path: Path) -> None:
    draw_set(tmp_path, [{0, 1}] * 10)
    (tmp_path / "masks" / "003.png").write_bytes(b"no mask")
    dataset = open_splits(tmp_path, val="{from: train, fraction: 0.3}")
    assert (len(dataset.splits["train"]), len(dataset.splits["val"])) == (7, 3)


def test_groups_stay_together(tmp_path: Path) -> None:
    names = [f"{sequence}_{frame:03d}" for sequence in "ABCDEFGH" for frame in range(5)]
    classes = [{0, 2} if name[0] in "CF" else {0, 1} for name in names]
    draw_set(tmp_path, classes, names)
    for seed in range(5):
        dataset = open_splits(tmp_path, val=f"{{from: train, fraction: 0.25, seed: {seed}, group: '([A-Z])_'}}")
        train, val = ({name[0] for name in list_names(dataset, split)} for split in ("train", "val"))
        assert not train & val
        assert len(list_names(dataset, "val")) == 10
        assert len(val & set("CF")) == 1, "each of the two sequences with class 2 is in another split"


def test_groups_of_unequal_size(tmp_path: Path) -> None:
    names = [f"{'large' if index < 30 else f'small{index % 5}'}_{index:02d}" for index in range(40)]
    draw_set(tmp_path, [{0, 1}] * 40, names)
    val = list_names(open_splits(tmp_path, val="{from: train, fraction: 0.2, group: '/([a-z]+\\d*)_'}"), "val")
    assert 2 <= len(val) <= 10
    assert not any(name.startswith("large") for name in val)


def test_what_matches_is_taken(tmp_path: Path) -> None:
    names = [f"{sequence}_{frame}" for sequence in ("0006R0", "0016E5", "01TP") for frame in range(4)]
    draw_set(tmp_path, [{0, 1}] * 12, names)
    dataset = open_splits(tmp_path, val="{from: train, match: /0006R0_}")
    assert list_names(dataset, "val") == names[:4]
    assert list_names(dataset, "train") == names[4:]


def test_what_a_list_names_is_taken(tmp_path: Path) -> None:
    draw_set(tmp_path, [{0, 1}] * 6)
    (tmp_path / "val.txt").write_text("\ufeff003\n\nimages/001.png\n# 002", encoding="utf-8")
    dataset = open_splits(tmp_path, val="{from: train, list: val.txt}")
    assert list_names(dataset, "val") == ["001", "003"]
    (tmp_path / "val.txt").write_text("003\n077\n")
    with pytest.raises(UserError, match=r"val\.txt line 2: no image with a mask is named '077'"):
        open_dataset(str(tmp_path))


def test_a_name_in_two_folders_must_be_written_in_full(tmp_path: Path) -> None:
    draw_set(tmp_path, [{0, 1}] * 4, ["a/1", "b/1", "a/2", "b/2"])
    (tmp_path / "val.txt").write_text("images/b/1.png\n")
    assert list_names(open_splits(tmp_path, val="{from: train, list: val.txt}"), "val") == ["b/1"]
    (tmp_path / "val.txt").write_text("images/b/1.png\n2\n")
    with pytest.raises(UserError, match=r"line 2: '2' may be images/a/2\.png or images/b/2\.png; write it in full"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{from: train, group: '([A-Z]+)'}",
            r"split val: group '\(\[A-Z\]\+\)' is not found in the name images/000\.png",
        ),
        ("{from: train, group: images}", r"group 'images' puts all 4 images into one group \('images'\)"),
        ("{from: train, group: '('}", r"split val: group '\(' is no regular expression"),
        ("{from: train, match: nowhere}", "match 'nowhere' is found in no name of train"),
        ("{from: train, match: '['}", r"match '\[' is no regular expression"),
        ("{from: train, list: val.txt}", r"val\.txt: the list of a split does not exist"),
        ("{from: train, list: ../val.txt}", r"path '\.\./val\.txt' would leave"),
        ("{from: test}", "split val is taken from 'test'; `from` must be one of train"),
        ("{from: train, match: a, fraction: 0.1}", r"split val is .*allowed are"),
        ("{from: train, images: images}", "split val is .*allowed are"),
        ("{from: train, seed: -1}", "`seed` a whole number"),
        ("{from: train, stratify: perhaps}", "split val is .*'perhaps'"),
    ],
)
def test_wrong_entries(entry: str, message: str, tmp_path: Path) -> None:
    draw_set(tmp_path, [{0, 1}] * 4)
    with pytest.raises(UserError, match=message) as caught:
        open_splits(tmp_path, val=entry)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["binary masks", "PASCAL VOC", "a mask for each instance", "splits by group"])
def test_splits_are_written_out_and_repeated(name: str, tmp_path: Path) -> None:
    page, _ = write_layout(name, tmp_path / "data")
    dataset = open_dataset(page)
    out = tmp_path / "out" / "splits"
    write_splits(dataset, str(out))
    for split, samples in dataset.splits.items():
        assert (out / f"{split}.txt").read_text().splitlines() == [sample.name for sample in samples]
    again = open_dataset(str(out))
    assert {split: set(samples) for split, samples in again.splits.items()} == {
        split: set(samples) for split, samples in dataset.splits.items()
    }
    assert again.fingerprint() == dataset.fingerprint()


def test_coco_annotations_are_stratified_by_what_they_draw(tmp_path: Path) -> None:
    page, _ = write_layout("COCO", tmp_path)
    text = Path(page).read_text()
    Path(page).write_text(
        text.replace("{images: val2017, annotations: annotations/instances_val2017.json}", "{from: train}")
    )
    dataset = open_dataset(page)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 7, "val": 1}


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_no_side_is_empty(count: int) -> None:
    presence = np.ones((count, 2), np.int64)
    for fraction in (0.001, 0.5, 0.999):
        taken = int(choose_units(np.ones(count, np.int64), presence, fraction, 0).sum())
        assert 1 <= taken <= count - 1 or count == 1


def test_an_image_without_mask_is_no_part_of_a_split(tmp_path: Path) -> None:
    draw_set(tmp_path, [{0, 1}] * 4)
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "lonely.png")
    (tmp_path / "dataset.yaml").write_text(
        f"splits:\n  train: {{images: images, masks: masks}}\n  val: {{from: train}}\nunpaired: skip\n{CLASSES}"
    )
    dataset = open_dataset(str(tmp_path))
    assert sorted(list_names(dataset, "train") + list_names(dataset, "val")) == ["000", "001", "002", "003"]
