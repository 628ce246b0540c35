"""What is wrong with single files: the first that does harm raises, or all are collected; what may be skipped."""

from pathlib import Path

import numpy as np
import pytest
from layouts import save

from batchseg.datasets import Dataset, Problem, open_dataset
from batchseg.datasets.patterns import FilePattern
from batchseg.errors import UserError

IMAGE, MASK = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
PAGE = "splits: {train: {images: i, masks: m}}\nclasses: [a, b]\n"
VOC = "format: voc\nsplits: [train]\n"


def draw(root: Path, *names: str) -> None:
    for name in names:
        save(root / name, MASK if name.startswith(("m/", "SegmentationClass")) else IMAGE)


def open_page(root: Path, page: str = PAGE, problems: list[Problem] | None = None) -> Dataset:
    (root / "dataset.yaml").write_text(page)
    return open_dataset(str(root), problems)


def list_names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.splits["train"]]


@pytest.mark.parametrize(
    ("files", "kind", "file", "message", "kept"),
    [
        (("i/b.png",), "image_without_mask", "i/b.png", "1 of 2 images in i have no mask in m, the first is b.png", []),
        (("m/b.png",), "mask_without_image", "m/b.png", None, []),
        (("i/a.jpg",), "duplicate_stem", "i/a.png", "i/a.jpg and i/a.png are images with the same mask", []),
        (("m/a.gif",), "duplicate_stem", "m/a.png", "m/a.gif and m/a.png are masks of the same image", []),
        (("i/A.png", "m/A.png"), "case_collision", "i/a.png", None, ["i/A.png"]),
    ],
)
def test_pairs(
    files: tuple[str, ...], kind: str, file: str, message: str | None, kept: list[str], tmp_path: Path
) -> None:
    draw(tmp_path, "i/a.png", "m/a.png", *files)
    if message is None:
        assert len(list_names(open_page(tmp_path))) == 1 + len(kept)
    else:
        with pytest.raises(UserError, match=message):
            open_page(tmp_path)
    problems: list[Problem] = []
    dataset = open_page(tmp_path, problems=problems)
    assert [(problem.kind, problem.split, problem.file) for problem in problems] == [(kind, "train", file)]
    assert len(dataset.splits["train"]) == 1 + len(kept)
    name = {"i/A.png": "i/A.png"}.get(file, file if file.startswith("i/") else None)
    if name:
        problems = []
        excluded = open_page(tmp_path, f"{PAGE}exclude: [{name}]\n", problems)
        assert problems == []
        assert name not in list_names(excluded)


def test_patterns_to_exclude(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{folder}/{name}.png" for folder in "im" for name in ("a", "b_old", "x/a", "x/b_old", "x/y/c")))
    for patterns, left in {
        "[i/a.png]": ["i/b_old.png", "i/x/a.png", "i/x/b_old.png", "i/x/y/c.png"],
        "['i/*.png']": ["i/x/a.png", "i/x/b_old.png", "i/x/y/c.png"],
        "['**/*_old.png', i/x/y/]": ["i/a.png", "i/x/a.png"],
        "['*_old.png']": ["i/a.png", "i/b_old.png", "i/x/a.png", "i/x/b_old.png", "i/x/y/c.png"],
    }.items():
        assert list_names(open_page(tmp_path, f"{PAGE}exclude: {patterns}\n")) == left


def test_a_name_with_wildcards_in_it_is_a_name(tmp_path: Path) -> None:
    draw(tmp_path, "i/[1].png", "m/[1].png", "i/1.png", "m/1.png")
    assert list_names(open_page(tmp_path, f"{PAGE}exclude: ['i/[1].png']\n")) == ["i/1.png"]


def test_unpaired_may_be_skipped(tmp_path: Path) -> None:
    draw(tmp_path, "i/a.png", "m/a.png", "i/b.png")
    assert list_names(open_page(tmp_path, f"{PAGE}unpaired: skip\n")) == ["i/a.png"]


def test_list_of_pairs(tmp_path: Path) -> None:
    draw(tmp_path, "i/a.png", "m/a.png", "i/b.png", "m/b.png")
    (tmp_path / "train.txt").write_text("i/a.png m/a.png\ni/b.png m/b.png\ni/a.png m/a.png\n")
    page = "splits: {train: train.txt}\nclasses: [a, b]\n"
    with pytest.raises(UserError, match=r"train\.txt line 3: i/a\.png stands there twice"):
        open_page(tmp_path, page)
    problems: list[Problem] = []
    assert list_names(open_page(tmp_path, page, problems)) == ["i/a.png", "i/b.png"]
    assert [problem.kind for problem in problems] == ["duplicate_name"]
    assert list_names(open_page(tmp_path, f"{page}exclude: [i/a.png]\n")) == ["i/b.png"]


def draw_voc(root: Path, listed: str) -> None:
    draw(root, "JPEGImages/a.jpg", "SegmentationClass/a.png", "JPEGImages/b.jpg", "SegmentationClass/c.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(listed)


def test_voc_lists_that_name_what_is_not_there(tmp_path: Path) -> None:
    draw_voc(tmp_path, "a\nb\nc\nd")
    with pytest.raises(
        UserError, match=r"3 of 4 names in ImageSets/Segmentation/train\.txt .* in line 2: b is not in Seg"
    ):
        open_page(tmp_path, VOC)
    problems: list[Problem] = []
    assert list_names(open_page(tmp_path, VOC, problems)) == ["JPEGImages/a.jpg"]
    assert [(problem.kind, problem.file) for problem in problems] == [
        ("image_without_mask", "JPEGImages/b.jpg"),
        ("missing_file", "JPEGImages/c.jpg"),
        ("missing_file", "JPEGImages/d.jpg"),
    ]
    assert list_names(open_page(tmp_path, f"{VOC}unpaired: skip\n")) == ["JPEGImages/a.jpg"]
    page = f"{VOC}exclude: [JPEGImages/b.jpg, JPEGImages/c.jpg, JPEGImages/d.jpg]\n"
    assert list_names(open_page(tmp_path, page)) == ["JPEGImages/a.jpg"]


def test_untidy_voc_lists(tmp_path: Path) -> None:
    draw_voc(tmp_path, "\ufeff  a  \r\n\r\n# b\nJPEGImages/a.jpg SegmentationClass/a.png\na.jpg")
    assert list_names(open_page(tmp_path, VOC)) == ["JPEGImages/a.jpg"]


def test_a_list_that_chooses(tmp_path: Path) -> None:
    draw(tmp_path, "i/a b.png", "m/a b.png", "i/c.png", "m/c.png")
    page = "splits: {train: {images: i, masks: m, list: LIST}}\nclasses: [a, b]\n"
    (tmp_path / "train.txt").write_text("a b\nc m/c.png\n")
    assert list_names(open_page(tmp_path, page.replace("LIST", "train.txt"))) == ["i/a b.png", "i/c.png"]
    assert len(list_names(open_page(tmp_path, page.replace("LIST", str(tmp_path / "train.txt"))))) == 2
    (tmp_path / "train.txt").write_text("c\nd\n")
    with pytest.raises(UserError, match=r"train\.txt line 2: no image with a mask is named 'd'"):
        open_page(tmp_path, page.replace("LIST", "train.txt"))
    assert list_names(open_page(tmp_path, page.replace("LIST", "train.txt") + "unpaired: skip\n")) == ["i/c.png"]


# --- patterns ---


@pytest.mark.parametrize(
    ("pattern", "path", "key"),
    [
        ("a/{stem}.png", "a/x.y.png", ("x.y",)),
        ("a/{stem}.png", "a/b/x.png", None),
        ("a/**/{stem}.png", "a/x.png", ("x",)),
        ("a/**/{stem}.png", "a/b/c/x.png", ("x",)),
        ("a/*/{stem}_l.png", "a/b/x_l.png", ("x",)),
        ("a/*/{stem}_l.png", "a/x_l.png", None),
        ("{stem}/images/{stem}.png", "x/images/x.png", ("x",)),
        ("{stem}/images/{stem}.png", "x/images/y.png", None),
        ("{b}/{a}_?.png", "x/y_1.png", ("y", "x")),
        ("a", "a/b/x.png", ("b/x",)),
        ("./a/", "a/x.y.png", ("x.y",)),
        (".", "x.png", ("x",)),
        ("a+b/{stem}.png", "a+b/x.png", ("x",)),
        ("a+b/{stem}.png", "aab/x.png", None),
    ],
)
def test_patterns(pattern: str, path: str, key: tuple[str, ...] | None) -> None:
    assert FilePattern.parse(pattern, "images").match(path) == key


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("i/*.png", "m", r"images: 'i/\*\.png' has wildcards, but no \{stem\}"),
        ("i/{stem}.png", "m/{name}.png", r"must have the same placeholders; they have \['stem'\] and \['name'\]"),
        ("i/{stem.png", "m", "holds a brace that closes no"),
        ("../i/{stem}.png", "m", r"path '\.\./i/\{stem\}\.png' would leave"),
        ("/i", "m", "path '/i' would leave"),
        ("i", "i", "images and masks are both 'i'"),
        ("n/{stem}.png", "m/{stem}.png", "data folder .*/n does not exist"),
        ("i/{stem}.bmp", "m/{stem}.png", r"i/\{stem\}\.bmp holds no image"),
    ],
)
def test_wrong_patterns(images: str, masks: str, message: str, tmp_path: Path) -> None:
    draw(tmp_path, "i/a.png", "m/a.png")
    with pytest.raises(UserError, match=message):
        open_page(tmp_path, f"images: '{images}'\nmasks: '{masks}'\nsplits: [train]\nclasses: [a, b]\n")


def test_masks_beside_their_images(tmp_path: Path) -> None:
    draw(tmp_path, "i/a.png", "i/a_mask.png", "i/b.png", "i/b_mask.png")
    page = "splits: {train: {images: 'i/{stem}.png', masks: 'i/{stem}_mask.png'}}\nclasses: [a, b]\n"
    dataset = open_page(tmp_path, page)
    assert list_names(dataset) == ["i/a.png", "i/b.png"]
    assert [Path(str(sample.mask)).name for sample in dataset.splits["train"]] == ["a_mask.png", "b_mask.png"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("format: coco\nsplits: {train: {images: i, masks: m}}\n", r"format coco needs \{annotations:, images:\}"),
        ("format: coco\nsplits: {train: train.txt}\n", "split train is 'train.txt'; format coco needs"),
        ("splits: {train: {images: i, annotations: m}}\nclasses: [a, b]\n", r"format pairs needs \{images:, masks:\}"),
        ("splits: {train: {images: i, mask: m}}\nclasses: [a, b]\n", r"split train is \{'images': 'i', 'mask': 'm'\}"),
        ("splits: {train: {}}\nclasses: [a, b]\n", r"split train is \{\}; allowed are"),
        ("splits: {train: {images: i, masks: m}}\n", "must name its classes and splits"),
        ("classes: [a, b]\n", "must name its classes and splits"),
        (PAGE + "resize_masks: linear\n", "resize_masks is 'linear': Input should be 'refuse' or 'nearest'"),
        (PAGE + "exclude: a.png\n", "exclude is 'a.png': Input should be a valid list"),
        (PAGE + "exlude: [a.png]\n", "unknown key 'exlude'; did you mean 'exclude'"),
        (
            PAGE.replace("[a, b]", "[a, {name: b, value: 3}]"),
            r"classes: entry 1 is \{'name': 'b', 'value': 3\}; allowed",
        ),
        (PAGE.replace("[a, b]", "[a, {name: b, categories: [c]}]"), "class 'b' has `categories`, which format pairs"),
        ("splits: {train: {images: i, masks: m}\nclasses: [a, b]\n", r"is not YAML: (.|\n)*line \d"),
    ],
)
def test_wrong_pages(page: str, message: str, tmp_path: Path) -> None:
    draw(tmp_path, "i/a.png", "m/a.png")
    with pytest.raises(UserError, match=message) as caught:
        open_page(tmp_path, page)
    assert "dataset.yaml" in str(caught.value)
