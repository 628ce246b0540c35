"""The doctor finds each file that will not do, by its name, and counts what is there."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchseg.console import Console
from batchseg.datasets import Sample
from batchseg.doctor import Diagnosis, check_dataset, check_samples, show_diagnosis

PAGE = """splits:
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
classes: [ground, thing, never]
"""
SIZE_HW = (10, 12)


def draw_pair(root: Path, split: str, name: str, grey: int = 100) -> tuple[Path, Path]:
    """An image of one grey, and a mask with 12 pixels of class 1, 12 ignored and 96 of class 0."""
    image, mask = root / split / "images" / name, root / split / "masks" / f"{Path(name).stem}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE_HW[::-1], (grey, grey, grey)).save(image)
    write_mask(mask)
    return image, mask


def write_mask(path: Path, first: int = 1, second: int = 255, size_hw: tuple[int, int] = SIZE_HW) -> None:
    ids = np.zeros(size_hw, np.uint8)
    ids[0], ids[1] = first, second
    Image.fromarray(ids).save(path)


def find_messages(diagnosis: Diagnosis, level: str) -> list[str]:
    return [finding.message for finding in diagnosis.findings if finding.level == level]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, grey in [("a.png", 50), ("b.jpg", 150)]:
        draw_pair(tmp_path, "train", name, grey)
    draw_pair(tmp_path, "val", "c.png", 100)
    (tmp_path / "dataset.yaml").write_text(PAGE)
    return tmp_path


def test_counts(root: Path) -> None:
    dataset, diagnosis = check_dataset(str(root))
    assert diagnosis.class_pixels == {"train": [192, 24, 0], "val": [96, 12, 0]}
    assert diagnosis.checked == {"train": 2, "val": 1}
    assert diagnosis.sizes == {SIZE_HW: 3}
    assert diagnosis.brightness["mean"] == pytest.approx(100, abs=1)
    assert diagnosis.brightness["p1"] < 60
    assert diagnosis.brightness["p99"] > 140
    assert diagnosis.errors == []
    assert len(dataset.samples("train")) == 2


def test_absent_and_rare_classes_are_warnings(root: Path) -> None:
    _, diagnosis = check_dataset(str(root))
    assert find_messages(diagnosis, "warning") == [
        "split train: no pixel of class never",
        "split val: no pixel of class never",
    ]
    big = np.zeros((200, 200), np.uint8)
    big[0, 0] = 2
    Image.fromarray(big).save(root / "val/masks/c.png")
    Image.new("RGB", (200, 200)).save(root / "val/images/c.png")
    _, diagnosis = check_dataset(str(root))
    assert "split val: class never is 2.5e-05 of the pixels" in find_messages(diagnosis, "warning")


def test_every_broken_file_is_named(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    broken = {}
    for name, data in {"cut.jpg": buffer.getvalue()[:1500], "empty.png": b"", "text.png": b"hello, world"}.items():
        image, _ = draw_pair(root, "train", name)
        image.write_bytes(data)
        broken[str(image)] = "cannot be used"
    for name, change in {
        "size.png": lambda path: write_mask(path, size_hw=(9, 12)),
        "id.png": lambda path: write_mask(path, first=7),
        "jpeg.png": lambda path: Image.new("L", SIZE_HW[::-1]).save(path, "JPEG"),
        "damaged.png": lambda path: path.write_bytes(b"\x89PNG nothing"),
    }.items():
        _, mask = draw_pair(root, "train", name)
        change(mask)
        broken[str(mask)] = {
            "size.png": "is 12x9, its image is 12x10",
            "id.png": "holds class id 7",
            "jpeg.png": "is a JPEG",
            "damaged.png": "cannot be read",
        }[name]
    _, diagnosis = check_dataset(str(root))
    messages = find_messages(diagnosis, "error")
    assert len(messages) == len(broken) == 7
    for path, what in broken.items():
        assert sum(path in message and what in message for message in messages) == 1, (path, messages)
    # The broken ones count nowhere; the good ones still do.
    assert diagnosis.class_pixels["train"] == [192, 24, 0]
    assert diagnosis.checked["train"] == 9


def test_missing_files_of_a_list(root: Path) -> None:
    (root / "list.txt").write_text("train/images/a.png none.png\nnone.png train/masks/a.png\n")
    (root / "dataset.yaml").write_text("splits: {train: list.txt}\nclasses: [a, b]\n")
    _, diagnosis = check_dataset(str(root))
    messages = find_messages(diagnosis, "error")
    assert len(messages) == 2
    assert f"mask {root}/none.png cannot be read" in messages[0]
    assert f"image {root}/none.png cannot be used" in messages[1]


def test_mask_with_nothing_valid(root: Path) -> None:
    write_mask(root / "val/masks/c.png", 255, 255)
    Image.fromarray(np.full(SIZE_HW, 255, np.uint8)).save(root / "val/masks/c.png")
    _, diagnosis = check_dataset(str(root))
    assert any("val/masks/c.png has no valid pixel" in message for message in find_messages(diagnosis, "warning"))
    assert diagnosis.class_pixels["val"] == [0, 0, 0]


def test_an_image_in_two_splits(root: Path) -> None:
    text = PAGE.replace("val/images", "train/images").replace("val/masks", "train/masks")
    (root / "dataset.yaml").write_text(text)
    _, diagnosis = check_dataset(str(root))
    shared = [message for message in find_messages(diagnosis, "warning") if "in the splits train and val" in message]
    assert len(shared) == 2


@pytest.mark.parametrize(("count", "limit"), [(10, 4), (7, 4), (5, 4), (4, 4), (3, 4)])
def test_at_most_limit_samples_are_looked_at(root: Path, count: int, limit: int) -> None:
    dataset, _ = check_dataset(str(root))
    sample = dataset.samples("train")[0]
    samples = [Sample(str(index), sample.image, sample.mask) for index in range(count)]
    diagnosis = check_samples({"train": samples}, dataset.classes, limit=limit)
    assert min(count, limit) // 2 <= diagnosis.checked["train"] <= limit


def test_what_check_prints(root: Path) -> None:
    write_mask(root / "val/masks/c.png", first=7)
    stream = io.StringIO()
    show_diagnosis(Console(stream), *check_dataset(str(root)))
    text = stream.getvalue()
    assert f"{root}/dataset.yaml: format pairs" in text
    assert "88.89%" in text
    assert "11.11%" in text
    assert "12x10 (2)" in text
    assert f"error: mask {root}/val/masks/c.png holds class id 7" in text
    assert "1 errors, 1 warnings" in text


def test_many_findings_are_cut(root: Path) -> None:
    for index in range(60):
        draw_pair(root, "train", f"x{index}.png")[0].write_bytes(b"")
    stream = io.StringIO()
    show_diagnosis(Console(stream), *check_dataset(str(root)))
    assert stream.getvalue().count("cannot be used") <= 50
    assert "60 errors" in stream.getvalue()
    assert "more not shown" in stream.getvalue()
