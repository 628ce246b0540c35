"""The drawn landscapes: files, ids, borders, and that colour alone does not give the classes away."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from batchseg.datasets.drawn import BALLOON, CLASSES, IGNORED_ID, LAKE, SIZES_HW, SKY, draw_dataset, draw_scene
from batchseg.errors import UserError

COUNTS = {"train": 60, "val": 2, "test": 20}
Scene = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("drawn"), **COUNTS).parent


@pytest.fixture(scope="module")
def scenes(root: Path) -> dict[str, list[Scene]]:
    return {split: [read_scene(root, split, index) for index in range(count)] for split, count in COUNTS.items()}


def read_scene(root: Path, split: str, index: int) -> Scene:
    image_bgr = cv2.imread(str(root / split / "images" / f"{index:04d}.png"))
    assert image_bgr is not None
    with Image.open(root / split / "masks" / f"{index:04d}.png") as mask:
        assert mask.mode == "P"
        return np.ascontiguousarray(image_bgr[..., ::-1]).astype(np.uint8), np.array(mask, np.uint8)


def read_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def gather_pixels(scenes: list[Scene]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the colours Nx3 and class ids N of all pixels that are not ignored."""
    kept = [(image[ids != IGNORED_ID], ids[ids != IGNORED_ID]) for image, ids in scenes]
    colours, class_ids = (np.concatenate(parts).astype(np.int64) for parts in zip(*kept, strict=True))
    return colours, class_ids


def measure_miou(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> float:
    count = len(CLASSES)
    confusion = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)
    hits = np.diag(confusion)
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


def test_same_seed_draws_the_same_scene() -> None:
    first, again, other = (draw_scene(np.random.default_rng(seed), (128, 160)) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_a_scene_does_not_depend_on_the_number_of_scenes(root: Path, tmp_path: Path) -> None:
    draw_dataset(tmp_path, train=3, val=1, test=2)
    few, many = read_bytes(tmp_path), read_bytes(root)
    assert few["train/images/0002.png"] == many["train/images/0002.png"]
    assert few["test/masks/0001.png"] == many["test/masks/0001.png"]
    assert few["test/images/0000.png"] != few["val/images/0000.png"]


def test_both_sizes_and_only_known_ids(scenes: dict[str, list[Scene]]) -> None:
    for image_rgb, class_ids in scenes["train"]:
        assert image_rgb.shape == (*class_ids.shape, 3)
        assert set(np.unique(class_ids)) <= {*range(len(CLASSES)), IGNORED_ID}
    shapes = [class_ids.shape for _, class_ids in scenes["train"]]
    assert min(shapes.count(size_hw) for size_hw in SIZES_HW) >= len(shapes) // 4
    assert set(shapes) == set(SIZES_HW)


def test_every_class_is_in_most_scenes(scenes: dict[str, list[Scene]]) -> None:
    for class_id, (name, _) in enumerate(CLASSES):
        share = np.mean([(class_ids == class_id).sum() > 100 for _, class_ids in scenes["train"]])
        assert share >= 0.75, f"{name} is in {share:.0%} of the scenes"


def test_classes_touch_only_across_an_ignored_border(scenes: dict[str, list[Scene]]) -> None:
    for _, class_ids in scenes["train"]:
        for one, next_to_it in ((class_ids[1:], class_ids[:-1]), (class_ids[:, 1:], class_ids[:, :-1])):
            differ = one != next_to_it
            assert np.all((one[differ] == IGNORED_ID) | (next_to_it[differ] == IGNORED_ID))
        assert 0.03 < (class_ids == IGNORED_ID).mean() < 0.15


def test_place_tells_sky_from_lake(scenes: dict[str, list[Scene]]) -> None:
    for _, class_ids in scenes["train"]:
        lowest_sky = np.nonzero(class_ids == SKY)[0].max()
        assert np.all(np.nonzero(class_ids == LAKE)[0] > lowest_sky)
        assert np.all(np.nonzero(class_ids == BALLOON)[0] < lowest_sky)


def test_nearest_mean_colour_fails(scenes: dict[str, list[Scene]]) -> None:
    colours, class_ids = gather_pixels(scenes["train"])
    means = np.stack([colours[class_ids == class_id].mean(0) for class_id in range(len(CLASSES))])
    test_colours, truth = gather_pixels(scenes["test"])
    distances = np.stack([((test_colours - mean) ** 2).sum(1) for mean in means])
    assert measure_miou(truth, distances.argmin(0)) < 0.45


@pytest.mark.parametrize("is_balanced", [False, True])
def test_the_best_colour_lookup_fails(scenes: dict[str, list[Scene]], is_balanced: bool) -> None:
    def find_bins(colours: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        bins: npt.NDArray[np.int64] = (colours >> 3) @ np.array([1024, 32, 1])
        return bins

    count = len(CLASSES)
    colours, class_ids = gather_pixels(scenes["train"])
    votes = np.bincount(find_bins(colours) * count + class_ids, minlength=32**3 * count).reshape(-1, count)
    best = (votes / votes.sum(0) if is_balanced else votes).argmax(1)
    test_colours, truth = gather_pixels(scenes["test"])
    assert measure_miou(truth, best[find_bins(test_colours)]) < 0.5


def test_describes_the_set(root: Path) -> None:
    lines = (root / "dataset.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "# drawn by batchseg: train=60 val=2 test=20 seed=0 version=1",
        "format: pairs",
        "root: .",
        "splits:",
        "  train: {images: train/images, masks: train/masks}",
    ]
    assert lines[7:9] == ["classes:", '  - {name: sky, color: "#66ccee"}']
    assert lines[-1] == "ignore: []"
    assert len(lines) == 9 + len(CLASSES)


def test_a_finished_set_is_left_alone(tmp_path: Path) -> None:
    yaml_path = draw_dataset(tmp_path, train=1, val=1, test=1)
    (tmp_path / "val/images/0000.png").unlink()
    assert draw_dataset(tmp_path, train=1, val=1, test=1) == yaml_path
    assert not (tmp_path / "val/images/0000.png").exists()


def test_a_half_drawn_set_is_drawn_again(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train=1, val=1, test=1)
    complete = read_bytes(tmp_path)
    (tmp_path / "dataset.yaml").unlink()
    (tmp_path / "test/masks/0000.png").write_bytes(b"half a fi")
    draw_dataset(tmp_path, train=1, val=1, test=1)
    assert read_bytes(tmp_path) == complete


def test_other_numbers_replace_the_set(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train=3, val=1, test=1)
    draw_dataset(tmp_path, train=1, val=1, test=1, seed=4)
    assert sorted(path.name for path in tmp_path.glob("train/*/*.png")) == ["0000.png"] * 2
    assert "train=1 val=1 test=1 seed=4" in (tmp_path / "dataset.yaml").read_text(encoding="utf-8")


def test_a_foreign_set_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("format: voc\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"was not drawn by batchseg: it opens with 'format: voc'\. Give another"):
        draw_dataset(tmp_path, train=1, val=1, test=1)


def test_pictures_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "train" / "images" / "0000.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my work")
    with pytest.raises(UserError, match=r"holds folders named train, val, test that batchseg did not draw"):
        draw_dataset(tmp_path, train=1, val=1, test=1)
    assert mine.read_bytes() == b"my work"
    with pytest.raises(UserError, match="cannot be written to"):
        draw_dataset(mine / "data", train=1, val=1, test=1)
