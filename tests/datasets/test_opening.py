"""Data sets on disk: pairs, VOC, dataset.yaml, splits; and errors that say what to mend."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchseg.classes import IGNORE_ID, parse_classes
from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.sample import load_mask, load_sample
from batchseg.datasets.voc import CLASS_NAMES, voc_color
from batchseg.errors import UserError
from batchseg.geometry import Geometry

PAGE = """format: pairs
root: .
splits:
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
classes: [ground, {name: thing, color: "#ff0000", values: [1, 2]}]
ignore: [11]
"""


def draw_image(path: Path, size_hw: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_hw[::-1], (90, 120, 30)).save(path)


def draw_mask(path: Path, size_hw: tuple[int, int] = (6, 8), value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size_hw, np.uint8)
    mask[0] = value
    Image.fromarray(mask).save(path)


def draw_pair(root: Path, split: str, stem: str, value: int = 1) -> None:
    draw_image(root / split / "images" / f"{stem}.png")
    draw_mask(root / split / "masks" / f"{stem}.png", value=value)


def write_page(root: Path, text: str) -> str:
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    return str(root / "dataset.yaml")


def list_names(dataset: Dataset, split: str) -> list[str]:
    return [sample.name for sample in dataset.samples(split)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, stems in {"train": ["a", "b", "sub/ü c"], "val": ["a"]}.items():
        for stem in stems:
            draw_pair(tmp_path, split, stem)
    write_page(tmp_path, PAGE)
    return tmp_path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for index in range(20):
        draw_pair(tmp_path, "train", f"{index:02d}")
    return tmp_path


# --- pairs and dataset.yaml ---


@pytest.mark.parametrize("name", ["", "dataset.yaml"])
def test_folder_and_page_open_the_same(root: Path, name: str) -> None:
    dataset = open_dataset(str(root / name))
    assert dataset.format == "pairs"
    assert ("holds a dataset.yaml" if not name else "the file given") in dataset.reason
    assert list_names(dataset, "train") == ["train/images/a.png", "train/images/b.png", "train/images/sub/ü c.png"]
    assert list_names(dataset, "val") == ["val/images/a.png"]
    sample = dataset.samples("train")[2]
    assert sample.image == str(root / "train/images/sub/ü c.png")
    assert sample.mask == str(root / "train/masks/sub/ü c.png")
    assert dataset.classes.names == ["ground", "thing"]
    assert dataset.classes.ignore == (11,)


def test_a_relative_location_is_made_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert open_dataset(root.name).samples("val")[0].image == str(root / "val/images/a.png")


def test_root_is_relative_to_the_page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("pages")
    page = write_page(elsewhere, PAGE.replace("root: .", f"root: {root}"))
    assert list_names(open_dataset(page), "val") == ["val/images/a.png"]
    page = write_page(elsewhere, PAGE.replace("root: .", f"root: ../{root.name}"))
    assert list_names(open_dataset(page), "val") == ["val/images/a.png"]
    with pytest.raises(UserError, match=r"data .*dataset\.yaml: root .*/nowhere does not exist"):
        open_dataset(write_page(elsewhere, PAGE.replace("root: .", "root: nowhere")))


def test_suffixes_may_differ_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    draw_image(tmp_path / "i" / "a.JPG")
    draw_image(tmp_path / "i" / "._a.JPG")
    (tmp_path / "i" / "notes.txt").write_text("not a picture")
    draw_mask(tmp_path / "m" / "a.png")
    page = write_page(tmp_path, "splits: {train: {images: i, masks: m}}\nclasses: [a, b]\n")
    sample = open_dataset(page).samples("train")[0]
    assert (sample.name, Path(sample.mask).name) == ("i/a.JPG", "a.png")


def test_masks_are_read_as_class_ids(root: Path) -> None:
    draw_mask(root / "train/masks/b.png", value=11)
    dataset = open_dataset(str(root))
    geometry = Geometry((6, 8), "resize", 8)
    a, b, _ = (load_sample(sample, dataset.classes, geometry) for sample in dataset.samples("train"))
    assert a.truth[0].tolist() == [1] * 8
    assert b.truth[0].tolist() == [IGNORE_ID] * 8
    assert not a.truth[1:].any()
    assert a.fitted.canvas.shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["none", "none.yaml"])
def test_missing_data(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"data .*/{name} does not exist"):
        open_dataset(str(tmp_path / name))


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(UserError, match="is empty"):
        open_dataset(str(tmp_path))


def test_unknown_format_shows_the_page_to_write(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"is of no known format: .*Write .*/dataset\.yaml:\nformat: pairs\n"):
        open_dataset(str(tmp_path))


def test_folder_without_images(root: Path) -> None:
    for path in (root / "val/images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"data .*/val/images holds no image; known suffixes are"):
        open_dataset(str(root))


def test_folder_that_is_missing(root: Path) -> None:
    write_page(root, PAGE.replace("val/masks", "val/labels"))
    with pytest.raises(UserError, match=r"data folder .*/val/labels does not exist"):
        open_dataset(str(root))


def test_no_masks_at_all(root: Path) -> None:
    (root / "val/masks/a.png").rename(root / "val/masks/other.png")
    with pytest.raises(UserError, match=r"val/images has no masks: .*first image: a\.png, expected a\.png"):
        open_dataset(str(root))


def test_one_image_without_mask(root: Path) -> None:
    (root / "train/masks/b.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 3 images in train/images have no mask in train/masks, .*is b\.png\. Add"
    ):
        open_dataset(str(root))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ignore:", "ignored:", r"unknown key 'ignored'; did you mean 'ignore'\?"),
        ("format: pairs", "format: coco3", "format is 'coco3'; allowed are pairs, voc"),
        ("classes:", "#", "must name its classes and splits, for example"),
        ("values: [1, 2]", "values: [0]", "one raw value belongs to two classes"),
        ("thing", "ground", "the name 'ground' is given twice"),
        ('"#ff0000"', '"red"', r"color 'red' is not of the form #rrggbb"),
        ('[ground, {name: thing, color: "#ff0000", values: [1, 2]}]', "3", "classes: 3 is given; a list of names"),
        ("ignore: [11]", "ignore: [many]", "classes or ignore cannot be read"),
        (
            "{images: val/images, masks: val/masks}",
            "{images: val/images}",
            r"split val .*pairs needs \{images:, masks:\}",
        ),
        ("{images: val/images, masks: val/masks}", "7", r"split val is 7; allowed are \{images:, masks:\}, a list"),
        ("{images: val/images, masks: val/masks}", "{from: test}", "`from` must be one of train"),
        ("{images: val/images, masks: val/masks}", "{from: train, fraction: 1}", "`fraction` is a share between"),
        ("{images: val/images, masks: val/masks}", "{from: train, fraction: a few}", "split val .*a few"),
        ("{images: val/images, masks: val/masks}", "{from: train, seed: x}", "split val .*x"),
        ("{images: val/images, masks: val/masks}", "val.txt", r"data .*/val\.txt: the list of a split does not exist"),
        ("{images: val/images, masks: val/masks}", "../val.txt", "path '../val.txt' would leave"),
        ("splits:", "splits: [", "is not YAML"),
    ],
)
def test_wrong_pages(root: Path, old: str, new: str, message: str) -> None:
    assert old in PAGE
    page = write_page(root, PAGE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(page)
    assert str(root) in str(caught.value)


def test_splits_must_be_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"splits is \[\]; it must name at least one split"):
        open_dataset(write_page(root, "splits: []\nclasses: [a, b]\n"))


# --- splits ---


def test_unknown_and_empty_split(root: Path) -> None:
    dataset = open_dataset(str(root))
    with pytest.raises(UserError, match="has no split 'test'; it has train, val"):
        dataset.samples("test")
    (root / "empty.txt").write_text("# nothing\n\n")
    page = write_page(root, "splits: {train: empty.txt}\nclasses: [a, b]\n")
    with pytest.raises(UserError, match="split 'train' is empty"):
        open_dataset(page).samples("train")


def test_list_file(root: Path) -> None:
    lines = ["# image mask", "train/images/a.png train/masks/a.png", ""]
    lines += ["train/images/sub/ü c.png\ttrain/masks/sub/ü c.png"]
    (root / "list.txt").write_text("\n".join(lines), encoding="utf-8")  # no newline at the end
    dataset = open_dataset(write_page(root, "splits: {train: list.txt}\nclasses: [a, b]\n"))
    assert list_names(dataset, "train") == ["train/images/a.png", "train/images/sub/ü c.png"]
    for sample in dataset.samples("train"):
        assert load_mask(sample, dataset.classes, (6, 8)).shape == (6, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/images/a.png", r"list\.txt line 2: 'train/images/a\.png' is not `image mask`"),
        ("a b c", r"line 2: 'a b c' is not `image mask`"),
        ("/etc/passwd /etc/passwd", "path '/etc/passwd' would leave"),
    ],
)
def test_wrong_list_file(root: Path, line: str, message: str) -> None:
    (root / "list.txt").write_text(f"# a list\n{line}\n")
    with pytest.raises(UserError, match=message):
        open_dataset(write_page(root, "splits: {train: list.txt}\nclasses: [a, b]\n"))


def split_off(root: Path, derived: str) -> Dataset:
    page = f"splits:\n  val: {derived}\n  train: {{images: train/images, masks: train/masks}}\nclasses: [a, b]\n"
    return open_dataset(write_page(root, page))


def test_derived_split_is_disjoint_and_seeded(many: Path) -> None:
    whole = {f"train/images/{index:02d}.png" for index in range(20)}
    first = split_off(many, "{from: train, fraction: 0.25, seed: 1}")
    train, val = (set(list_names(first, split)) for split in ("train", "val"))
    assert len(val) == 5
    assert not train & val
    assert train | val == whole
    assert set(list_names(split_off(many, "{from: train, fraction: 0.25, seed: 1}"), "val")) == val
    assert set(list_names(split_off(many, "{from: train, fraction: 0.25, seed: 2}"), "val")) != val
    assert len(list_names(split_off(many, "{from: train}"), "val")) == 2
    assert len(list_names(split_off(many, "{from: train, fraction: 0.001}"), "val")) == 1


def test_two_derived_splits_are_disjoint(many: Path) -> None:
    page = (
        "splits:\n  train: {images: train/images, masks: train/masks}\n"
        "  val: {from: train, fraction: 0.2}\n  test: {from: train, fraction: 0.2}\nclasses: [a, b]\n"
    )
    dataset = open_dataset(write_page(many, page))
    names = [name for split in ("train", "val", "test") for name in list_names(dataset, split)]
    assert len(names) == len(set(names)) == 20


def test_fingerprint_knows_names_and_classes(root: Path) -> None:
    before = open_dataset(str(root)).fingerprint()
    assert open_dataset(str(root)).fingerprint() == before
    write_page(root, PAGE.replace("thing", "object"))
    renamed = open_dataset(str(root)).fingerprint()
    write_page(root, PAGE)
    draw_pair(root, "train", "d")
    grown = open_dataset(str(root)).fingerprint()
    assert len({before, renamed, grown}) == 3


# --- one sample ---


def test_mask_with_an_id_outside_the_table(root: Path) -> None:
    draw_mask(root / "train/masks/b.png", value=21)
    dataset = open_dataset(str(root))
    message = (
        r"mask .*/train/masks/b\.png holds class id 21, but the class table has 2 classes \(0-2\) and ignores 11, 255"
    )
    with pytest.raises(UserError, match=message):
        load_mask(dataset.samples("train")[1], dataset.classes, (6, 8))


def test_mask_of_another_size(root: Path) -> None:
    draw_mask(root / "train/masks/b.png", (5, 8))
    dataset = open_dataset(str(root))
    with pytest.raises(UserError, match=r"mask .*/b\.png is 8x5, its image is 8x6 \(width x height"):
        load_sample(dataset.samples("train")[1], dataset.classes, Geometry((6, 8), "resize", 8))


def test_files_that_vanish_or_are_damaged(root: Path) -> None:
    dataset = open_dataset(str(root))
    a, b, c = dataset.samples("train")
    geometry = Geometry((6, 8), "resize", 8)
    Path(a.image).unlink()
    with pytest.raises(UserError, match=r"image .*/train/images/a\.png cannot be used: .*"):
        load_sample(a, dataset.classes, geometry)
    Path(b.image).write_bytes(b"")
    with pytest.raises(UserError, match=r"image .*/b\.png cannot be used: the file is empty"):
        load_sample(b, dataset.classes, geometry)
    Path(c.mask).unlink()
    with pytest.raises(UserError, match=r"mask .*/ü c\.png cannot be read"):
        load_sample(c, dataset.classes, geometry)


# --- VOC ---


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    for stem in ("2007_000032", "2007_000039", "2007_000063"):
        draw_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        ids = np.zeros((6, 8), np.uint8)
        ids[0], ids[1] = 20, 255
        mask = Image.fromarray(ids)
        mask.putpalette([part for i in range(256) for part in bytes.fromhex(voc_color(i)[1:])])
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(tmp_path / "SegmentationClass" / f"{stem}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039")  # no newline at the end
    (lists / "val.txt").write_text("2007_000063\r\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000039\n2007_000063\n")
    (lists / "README").write_text("lists of the challenge\n")
    (tmp_path / "ImageSets" / "README.md").write_text("lists of the challenge\n")
    return tmp_path


def test_voc_is_recognised(voc_root: Path) -> None:
    dataset = open_dataset(str(voc_root))
    assert dataset.format == "voc"
    assert dataset.reason == "the folder holds JPEGImages, SegmentationClass and ImageSets/Segmentation"
    assert list(dataset.splits) == ["train", "val"]
    assert list_names(dataset, "train") == ["JPEGImages/2007_000032.jpg", "JPEGImages/2007_000039.jpg"]
    assert list_names(dataset, "val") == ["JPEGImages/2007_000063.jpg"]
    assert dataset.classes.names == CLASS_NAMES
    truth = load_mask(dataset.samples("val")[0], dataset.classes, (6, 8))
    assert truth[:3, 0].tolist() == [20, IGNORE_ID, 0]


def test_voc_through_a_page(voc_root: Path) -> None:
    (voc_root / "ImageSets/Segmentation/mine.txt").write_text("2007_000039\n")
    page = write_page(voc_root, "format: voc\nsplits: [mine]\nignore: [20]\n")
    dataset = open_dataset(page)
    assert dataset.format == "voc"
    assert list(dataset.splits) == ["mine"]
    truth = load_mask(dataset.samples("mine")[0], dataset.classes, (6, 8))
    assert truth[:3, 0].tolist() == [IGNORE_ID, IGNORE_ID, 0]
    with pytest.raises(UserError, match=r"has no list .*/nothing\.txt"):
        open_dataset(write_page(voc_root, "format: voc\nsplits: [nothing]\n"))


def test_a_folder_that_is_no_voc(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not PASCAL VOC: .*/JPEGImages does not exist"):
        open_dataset(write_page(tmp_path, "format: voc\n"))


def test_voc_colours() -> None:
    # The first and the last of VOClabelcolormap.m, as painted in the published masks.
    known = {0: "#000000", 1: "#800000", 2: "#008000", 4: "#000080", 8: "#400000", 15: "#c08080", 20: "#004080"}
    assert {class_id: voc_color(class_id) for class_id in known} == known
    assert len({voc_color(class_id) for class_id in range(21)}) == 21
    assert parse_classes([{"name": str(i), "color": voc_color(i)} for i in range(21)]).palette[15].tolist() == [
        192,
        128,
        128,
    ]
