"""COCO annotations: what is rasterised, what lies on top, what is refused and how it is named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from layouts import count_runs, draw_splits, write_panoptic
from PIL import Image
from pycocotools import mask as coco

from batchseg.datasets import Dataset, Problem, open_dataset
from batchseg.datasets.sample import load_mask
from batchseg.errors import UserError

PAGE = "format: coco\nsplits:\n  train: {images: images, annotations: train.json}\n"
HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "cup"}]


def box(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotate(category_id: int, segmentation: Any, **others: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category_id, "segmentation": segmentation, "iscrowd": 0, **others}


def write_set(root: Path, *annotations: dict[str, Any], page: str = PAGE, **others: Any) -> str:
    """One image with these annotations, their ids counted from 1."""
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "a.png")
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)]
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    data = {"images": [image], "annotations": numbered, "categories": CATEGORIES, **others}
    (root / "train.json").write_text(json.dumps(data))
    (root / "dataset.yaml").write_text(page)
    return str(root / "dataset.yaml")


def read_mask(dataset: Dataset) -> npt.NDArray[np.uint8]:
    return load_mask(dataset.samples("train")[0], dataset.classes, (HEIGHT, WIDTH))


def test_categories_become_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    dataset = open_dataset(write_set(tmp_path, annotate(18, [box(1, 1, 4, 4)]), annotate(90, [box(10, 10, 3, 3)])))
    assert dataset.classes.names == ["background", "car", "dog", "cup"]
    assert np.bincount(read_mask(dataset).ravel()).tolist() == [HEIGHT * WIDTH - 25, 0, 16, 9]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_smaller_lies_on_top(is_reversed: bool, tmp_path: Path) -> None:
    given = [annotate(18, [box(2, 2, 10, 10)]), annotate(3, [box(4, 4, 4, 4)]), annotate(90, [box(5, 5, 1, 1)])]
    mask = read_mask(open_dataset(write_set(tmp_path, *(given[::-1] if is_reversed else given))))
    assert np.bincount(mask.ravel()).tolist() == [HEIGHT * WIDTH - 100, 15, 84, 1]


def test_area_is_measured_and_not_believed(tmp_path: Path) -> None:
    given = [annotate(3, [box(4, 4, 4, 4)], area=1e6), annotate(18, [box(2, 2, 10, 10)], area=1)]
    assert (read_mask(open_dataset(write_set(tmp_path, *given))) == 1).sum() == 16


def test_a_crowd_is_ignored(tmp_path: Path) -> None:
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:, 15:] = True
    code = {"size": [HEIGHT, WIDTH], "counts": count_runs(crowd)}
    mask = read_mask(open_dataset(write_set(tmp_path, annotate(18, code, iscrowd=1), annotate(3, [box(14, 2, 4, 4)]))))
    assert (mask[:, 18:] == 255).all()
    assert (mask[2:6, 14:18] == 1).all(), "what is drawn within a crowd stands out from it"
    assert (mask[:, :14] == 0).all()


def test_parts_of_several_polygons_are_one(tmp_path: Path) -> None:
    parts = [box(0, 0, 3, 3), box(20, 10, 3, 3), box(1, 1, 3, 3), [5, 5, 9, 9]]  # the last has no area
    assert (read_mask(open_dataset(write_set(tmp_path, annotate(18, parts)))) == 2).sum() == 9 + 9 + 5


@pytest.mark.parametrize("scale", [1, 3.3333333])
def test_polygons_are_rasterised_as_pycocotools_does(scale: float, tmp_path: Path) -> None:
    """Also after packing: in hundredths of a pixel, and where these do not hold the numbers."""
    rng = np.random.default_rng(0)
    for index in range(40):
        polygon = (np.round(rng.random(2 * int(rng.integers(3, 12))) * 19 / scale, 1 + index % 2) * scale).tolist()
        dataset = open_dataset(write_set(tmp_path, annotate(18, [polygon])))
        expected = coco.decode(coco.frPyObjects([polygon], HEIGHT, WIDTH)[0])
        assert np.array_equal(read_mask(dataset) == 2, expected == 1)


def test_negative_coordinates_are_cut_off(tmp_path: Path) -> None:
    mask = read_mask(open_dataset(write_set(tmp_path, annotate(18, [box(-3, -2, 6, 6)]))))
    assert (mask == 2).sum() == 12
    assert (mask[:4, :3] == 2).all()


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    assert not read_mask(open_dataset(write_set(tmp_path))).any()


def test_chosen_and_merged(tmp_path: Path) -> None:
    given = [annotate(18, [box(1, 1, 4, 4)]), annotate(3, [box(10, 1, 5, 5)]), annotate(90, [box(20, 1, 3, 3)])]
    page = PAGE + "classes: [{name: thing, categories: [dog, 3]}, background]\n"
    dataset = open_dataset(write_set(tmp_path, *given, page=page))
    assert np.bincount(read_mask(dataset).ravel()).tolist() == [41, HEIGHT * WIDTH - 41]
    page = PAGE + "classes: [dog, cup]\n"
    mask = read_mask(open_dataset(write_set(tmp_path, *given, page=page)))
    assert np.bincount(mask.ravel(), minlength=256)[[0, 1, 255]].tolist() == [16, 9, HEIGHT * WIDTH - 25]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            "[background, dgo]",
            "class 'dgo' is to take the category 'dgo', which .*/train.json does not have; did you mean",
        ),
        (
            "[background, {name: pet, categories: [19]}]",
            "the category 19, which .* does not have; known are car, dog, cup",
        ),
        ("[dog, {name: pet, categories: [dog, cup]}]", "the category 'dog' belongs to two classes"),
        ("[background, {name: rest, categories: []}]", "'background' and 'rest' both are to take what no category"),
        ("[background, {name: dog, values: [18]}]", "class 'dog' has `values`, but annotations have `categories`"),
        ("[dog]", "1 given; between 2 and 255 are allowed"),
    ],
)
def test_wrong_classes(classes: str, message: str, tmp_path: Path) -> None:
    page = write_set(tmp_path, annotate(18, [box(1, 1, 4, 4)]), page=f"{PAGE}classes: {classes}\n")
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(page)
    assert page in str(caught.value)


def test_splits_with_other_categories(tmp_path: Path) -> None:
    page = write_set(tmp_path, page=PAGE + "  val: {images: images, annotations: val.json}\n")
    data = json.loads((tmp_path / "train.json").read_text())
    data["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "val.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"have different categories; name those that are meant under `classes`"):
        open_dataset(page)
    write_set(tmp_path, page=PAGE + "  val: {images: images, annotations: val.json}\nclasses: [background, dog]\n")
    assert list(open_dataset(page).splits) == ["train", "val"]


# --- what is refused ---

GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "segmentation": [box(1, 1, 4, 4)]}],
    "categories": CATEGORIES,
}


def drop(*path: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def put(*path: Any) -> Callable[[Any], None]:
    """Sets what lies at all but the last to the last."""

    def change(data: Any) -> None:
        for key in path[:-2]:
            data = data[key]
        data[path[-2]] = path[-1]

    return change


def double(key: str) -> Callable[[Any], None]:
    return lambda data: data[key].append(copy.deepcopy(data[key][0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("images"), r"train\.json is no COCO JSON: it must hold lists .*, `images` is missing"),
        (drop("categories"), "`categories` is missing"),
        (put("annotations", {}), "`annotations` is missing"),
        (drop("images", 0, "file_name"), r"entry 0 of `images` \(id 1\) has no `file_name`"),
        (drop("images", 0, "id"), "entry 0 of `images` has no `id`"),
        (drop("images", 0, "height"), "image id 1 has height None and width 30; whole numbers of pixels are needed"),
        (put("images", 0, "width", 0), "image id 1 has height 20 and width 0"),
        (put("images", 0, "file_name", "../a.png"), r"image id 1: path '\.\./a\.png' would leave"),
        (put("images", 0, "id", [1]), r"entry 0 of `images` has id \[1\]; give a number"),
        (double("images"), "the id 1 is given twice in `images`"),
        (drop("categories", 1, "name"), r"entry 1 of `categories` \(id 3\) has no `name`"),
        (double("categories"), "the id 18 is given twice in `categories`"),
        (put("categories", 1, "name", "dog"), "two categories are named 'dog'"),
        (put("categories", 1, "id", "3"), "a category has the id '3'; a whole number is allowed"),
        (double("annotations"), "the id 7 is given twice in `annotations`"),
        (drop("annotations", 0, "category_id"), r"entry 0 of `annotations` \(id 7\) has no `category_id`"),
        (drop("annotations", 0, "image_id"), r"entry 0 of `annotations` \(id 7\) has no `image_id`"),
        (put("annotations", 0, "image_id", 2), "annotation id 7 has image_id 2, which no image has"),
        (put("annotations", 0, "category_id", 5), "annotation id 7 has category_id 5, which no category has"),
        (put("annotations", 0, "category_id", {}), r"entry 0 of `annotations` has category_id \{\}; give a number"),
        (put("annotations", 0, 5), "entry 0 of `annotations` has no `image_id`"),
    ],
)
def test_broken_structure(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    page = write_set(tmp_path)
    data = copy.deepcopy(GOOD)
    change(data)
    (tmp_path / "train.json").write_text(json.dumps(data))
    for problems in (None, []):
        with pytest.raises(UserError, match=message) as caught:
            open_dataset(page, problems)
        assert "train.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n  {"id": 1,}\n]}', r"train\.json is not JSON: .* line 2 column 12"),
        ("[]", "holds a list, not a mapping"),
        ("\xff", "is not JSON"),
    ],
)
def test_no_json(text: str, message: str, tmp_path: Path) -> None:
    page = write_set(tmp_path)
    (tmp_path / "train.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        open_dataset(page)
    (tmp_path / "train.json").unlink()
    with pytest.raises(UserError, match=r"train\.json cannot be read"):
        open_dataset(page)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has no segmentation"),
        ([], "has no segmentation"),
        ([box(30, 2, 4, 4)], "lies outside its image of 30x20 pixels"),
        ([box(2, -9, 4, 4)], "lies outside its image"),
        ([[1, 1, 5, 5, 9]], "has a polygon with an odd number of coordinates"),
        ([["a", "b", "c", "d"]], "has a segmentation that is no list of numbers"),
        ([5, None], "has a segmentation that is no list of numbers"),
        ({"size": [30, 20], "counts": "abc"}, r"run-length code of size \[30, 20\]; its image is \[20, 30\]"),
        ({"size": [20, 30], "counts": [1, 2, 3]}, "whose counts do not add up to 20 x 30"),
        ({"size": [20, 30], "counts": [601, -1]}, "whose counts do not add up to 20 x 30"),
        ({"size": [20, 30]}, "has a run-length code without `counts`"),
    ],
)
def test_an_annotation_that_cannot_be_used(segmentation: Any, message: str, tmp_path: Path) -> None:
    page = write_set(tmp_path, annotate(3, [box(1, 1, 2, 2)]), annotate(18, segmentation))
    with pytest.raises(UserError, match=rf"/train\.json: annotation id 2 of image images/a\.png .*{message}"):
        open_dataset(page)
    problems: list[Problem] = []
    dataset = open_dataset(page, problems)
    assert [(problem.kind, problem.split, problem.file) for problem in problems] == [
        ("bad_annotation", "train", "images/a.png")
    ]
    assert np.bincount(read_mask(dataset).ravel()).tolist() == [HEIGHT * WIDTH - 4, 4]
    (tmp_path / "dataset.yaml").write_text(PAGE.replace("train.json}", "train.json}\nexclude: [images/a.png]"))
    assert open_dataset(page).splits == {"train": []}


@pytest.mark.parametrize("counts", ["zzzz", "1" * 1000, "PPPPP", "T;", "0"])
def test_a_damaged_code_is_found_when_read(counts: str, tmp_path: Path) -> None:
    page = write_set(tmp_path, annotate(18, {"size": [HEIGHT, WIDTH], "counts": counts}))
    with pytest.raises(UserError, match=r"train\.json image id 1 has a damaged run-length code: .* do not add up"):
        read_mask(open_dataset(page))


def test_json_and_image_differ_in_size(tmp_path: Path) -> None:
    page = write_set(tmp_path, annotate(18, [box(2, 2, 4, 4)]))
    sample = open_dataset(page).samples("train")[0]
    dataset = open_dataset(page)
    with pytest.raises(UserError, match=r"mask .*/train\.json image id 1 is 30x20, its image is 60x40"):
        load_mask(sample, dataset.classes, (2 * HEIGHT, 2 * WIDTH))
    (tmp_path / "dataset.yaml").write_text(PAGE + "resize_masks: nearest\n")
    dataset = open_dataset(page)
    assert (load_mask(dataset.samples("train")[0], dataset.classes, (2 * HEIGHT, 2 * WIDTH)) == 2).sum() == 64


def test_fingerprint_knows_the_annotations(tmp_path: Path) -> None:
    before = open_dataset(write_set(tmp_path, annotate(18, [box(2, 2, 4, 4)]))).fingerprint()
    assert open_dataset(write_set(tmp_path, annotate(18, [box(2, 2, 4, 4)]))).fingerprint() == before
    assert open_dataset(write_set(tmp_path, annotate(18, [box(2, 2, 4, 5)]))).fingerprint() != before


# --- panoptic ---

PANOPTIC = "format: panoptic\nsplits:\n  train: {images: train2017, masks: panoptic_train2017, annotations: annotations/panoptic_train2017.json}\n"  # noqa: E501


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("annotations", 0, "segments_info"), "entry 0 of `annotations` has no `segments_info`"),
        (drop("annotations", 0, "segments_info", 1, "id"), "image id 7: a segment has no `id` or no `category_id`"),
        (put("annotations", 0, "segments_info", 1, "category_id", 5), "image id 7: segment 140007 has category_id 5"),
        (
            lambda d: d["annotations"][0]["segments_info"].append(d["annotations"][0]["segments_info"][0]),
            "70007 is given",
        ),
        (double("annotations"), "image id 7 is annotated twice"),
        (drop("annotations", 0), r"image id 7 \(train2017/seq01_0000\.jpg\) has no annotation"),
        (put("annotations", 0, "file_name", "../x.png"), r"path '\.\./x\.png' would leave"),
    ],
)
def test_broken_panoptic(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    write_panoptic(tmp_path, draw_splits(2, 1))
    (tmp_path / "dataset.yaml").write_text(PANOPTIC)
    location = tmp_path / "annotations" / "panoptic_train2017.json"
    data = json.loads(location.read_text())
    change(data)
    location.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        open_dataset(str(tmp_path))


def test_panoptic_png_and_its_json_disagree(tmp_path: Path) -> None:
    write_panoptic(tmp_path, draw_splits(2, 1))
    (tmp_path / "dataset.yaml").write_text(PANOPTIC)
    location = tmp_path / "annotations" / "panoptic_train2017.json"
    data = json.loads(location.read_text())
    del data["annotations"][0]["segments_info"][1]
    data["annotations"][1]["segments_info"][1]["iscrowd"] = 1
    location.write_text(json.dumps(data))
    dataset = open_dataset(str(tmp_path))
    first, second = dataset.samples("train")
    with pytest.raises(UserError, match=r"seq01_0000\.png holds the segment id 140007, which its JSON does not list"):
        load_mask(first, dataset.classes, (48, 64))
    scene = draw_splits(2, 1)["train"][1]
    assert np.array_equal(load_mask(second, dataset.classes, (48, 64)) == 255, (scene.ids == 255) | (scene.ids == 1))
    Image.new("L", (64, 48)).save(str(first.mask))
    with pytest.raises(UserError, match=r"is no panoptic PNG: it must be RGB"):
        load_mask(first, dataset.classes, (48, 64))


# --- a published set ---


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "val"])
def test_area_agrees_with_the_json(shared_data: Path, split: str, tmp_path: Path) -> None:
    """`area` is that within the outline, ours a count of pixels: they differ by at most half the length of the border.

    Of crowds COCO's `area` is up to 80 % more than its own run-length code holds; there the code counts.
    """
    given = json.loads((shared_data / "coco_tiny" / "annotations" / f"instances_{split}2017.json").read_text())
    images = {image["id"]: image for image in given["images"]}
    total = drawn = 0.0
    for annotation in given["annotations"]:
        image = images[annotation["image_id"]]
        data = {**given, "images": [image], "annotations": [annotation]}
        (tmp_path / "train.json").write_text(json.dumps(data))
        (tmp_path / "dataset.yaml").write_text(PAGE)
        dataset = open_dataset(str(tmp_path))
        mask = load_mask(dataset.samples("train")[0], dataset.classes, (image["height"], image["width"]))
        pixels = int((mask != 0).sum())
        if annotation["iscrowd"]:
            assert pixels == sum(annotation["segmentation"]["counts"][1::2])
            assert (mask[mask != 0] == 255).all()
            continue
        assert abs(pixels - annotation["area"]) <= measure_outline(annotation["segmentation"]) / 2 + 1, annotation["id"]
        total, drawn = total + annotation["area"], drawn + pixels
    assert drawn == pytest.approx(total, rel=0.005)


def measure_outline(polygons: list[list[float]]) -> float:
    length = 0.0
    for polygon in polygons:
        corners = np.asarray(polygon).reshape(-1, 2)
        length += float(np.hypot(*(corners - np.roll(corners, 1, axis=0)).T).sum())
    return length
