"""What check counts, prints and writes, and what training asks of it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broken_data import SIZE_HW, cut_image, cut_mask, draw_good, draw_image, jpeg_mask, other_size, stray_value
from PIL import Image

from batchseg.cli import run_cli
from batchseg.console import Console
from batchseg.datasets import Sample
from batchseg.datasets.page import read_page
from batchseg.doctor import Diagnosis, check_dataset, check_samples, show_diagnosis, write_report

CAMVID_CLASSES = "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"


def count_masks(masks: list[Path], ignored: set[int], num_classes: int) -> tuple[list[int], list[int], int]:
    """(pixels of each class, masks that hold it, ignored pixels), from the files themselves."""
    pixels, held, nothing = [0] * num_classes, [0] * num_classes, 0
    for path in masks:
        values, counts = np.unique(np.asarray(Image.open(path)), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value in ignored:
                nothing += count
            else:
                pixels[value] += count
                held[value] += 1
    return pixels, held, nothing


def read_counts(report: Path, split: str) -> tuple[list[int], list[int], int]:
    found = json.loads((report / "check.json").read_text())["splits"][split]
    classes = found["classes"]
    return [entry["pixels"] for entry in classes], [entry["images"] for entry in classes], found["ignored_pixels"]


def find_kinds(diagnosis: Diagnosis) -> dict[str, int]:
    return {finding.kind: finding.count for finding in diagnosis.findings}


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    dataset, diagnosis = check_dataset(str(page))
    write_report(str(tmp_path / "report"), dataset, diagnosis)
    for split in ("train", "val"):
        masks = sorted((tmp_path / split / "masks").iterdir())
        assert read_counts(tmp_path / "report", split) == count_masks(masks, {255}, 3)
        assert diagnosis.class_pixels[split] == count_masks(masks, {255}, 3)[0]
    assert diagnosis.checked == {"train": 6, "val": 3}
    means = [np.asarray(Image.open(path).convert("L")).mean() for path in tmp_path.glob("*/images/*")]
    assert diagnosis.brightness["mean"] == pytest.approx(np.mean(means), abs=1)
    assert diagnosis.brightness["p1"] == pytest.approx(np.percentile(means, 1), abs=1)
    assert diagnosis.brightness["p99"] == pytest.approx(np.percentile(means, 99), abs=1)


def test_all_that_is_broken_at_once(tmp_path: Path) -> None:
    """Each file counts under its own trouble, and none of them in the table."""
    page = draw_good(tmp_path)
    for make in (cut_image, cut_mask, stray_value, jpeg_mask, other_size):
        make(tmp_path)
    _, diagnosis = check_dataset(str(page))
    found = find_kinds(diagnosis)
    expected = {"image_unreadable": 2, "mask_unreadable": 1, "unknown_value": 1, "mask_jpeg": 1, "size_differs": 1}
    assert {kind: found[kind] for kind in expected} == expected
    assert len(diagnosis.errors) == len(expected)
    good = [tmp_path / f"train/masks/{name}.png" for name in ("ada", "bob", "dan")]
    assert diagnosis.class_pixels["train"] == count_masks(good, {255}, 3)[0]
    assert diagnosis.class_pixels["val"] == count_masks([tmp_path / "val/masks/ivy.png"], {255}, 3)[0]


def test_a_set_that_is_broken_throughout(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    for path in tmp_path.glob("*/images/*"):
        path.write_bytes(b"")
    dataset, diagnosis = check_dataset(str(page))
    assert find_kinds(diagnosis)["image_unreadable"] == 9
    assert len(diagnosis.findings[0].files) == 5
    written = write_report(str(tmp_path / "report"), dataset, diagnosis)
    assert [Path(location).name for location in written] == ["check.json"], "there is nothing to draw"
    assert diagnosis.brightness == {}


def test_listed_files_that_are_not_there(tmp_path: Path) -> None:
    draw_good(tmp_path)
    (tmp_path / "list.txt").write_text("train/images/ada.jpg none.png\nnone.jpg train/masks/ada.png\n")
    (tmp_path / "dataset.yaml").write_text("splits: {train: list.txt}\nclasses: [a, b, c]\n")
    _, diagnosis = check_dataset(str(tmp_path))
    messages = {finding.kind: finding.message for finding in diagnosis.errors}
    assert f"{tmp_path}/none.png does not exist. Add the masks" in messages["mask_missing"]
    assert f"{tmp_path}/none.jpg does not exist. Add them" in messages["image_missing"]


def test_one_file_in_two_splits(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    page.write_text(page.read_text().replace("val/images", "train/images").replace("val/masks", "train/masks"))
    _, diagnosis = check_dataset(str(page))
    assert find_kinds(diagnosis) == {"shared_image": 6}


@pytest.mark.parametrize(("count", "limit"), [(10, 4), (7, 4), (5, 4), (4, 4), (3, 4)])
def test_at_most_limit_samples_are_looked_at(tmp_path: Path, count: int, limit: int) -> None:
    dataset, _ = check_dataset(str(draw_good(tmp_path)))
    sample = dataset.samples("train")[0]
    samples = [Sample(str(index), sample.image, sample.mask) for index in range(count)]
    diagnosis = check_samples({"train": samples}, dataset.classes, limit=limit)
    assert min(count, limit) // 2 <= diagnosis.checked["train"] <= limit


def test_what_check_prints(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    stray_value(tmp_path)
    stream = io.StringIO()
    show_diagnosis(Console(stream), *check_dataset(str(page)))
    text = stream.getvalue()
    assert f"{page}: format pairs" in text
    assert "sizes: 64x48 (9)" in text
    assert "ERROR (1): masks with values that no class has: 77" in text
    assert f"{tmp_path}/val/masks/gus.png holds class id 77, but the class table has 3 classes (0-2)" in text
    assert "  fix: Add the class, map the value to one with `values`, or ignore it. In dataset.yaml:\n" in text
    assert "    ignore: [77]\n" in text
    assert "errors: 1, warnings: 0, remarks: 0" in text


def test_at_most_five_files_are_named(tmp_path: Path) -> None:
    page = draw_good(tmp_path)
    for path in tmp_path.glob("*/images/*"):
        path.write_bytes(b"")
    stream = io.StringIO()
    show_diagnosis(Console(stream), *check_dataset(str(page)))
    assert stream.getvalue().count("cannot be used: the file is empty") == 5
    assert "and 4 more" in stream.getvalue()


def test_the_contact_sheet_shows_every_class(tmp_path: Path) -> None:
    dataset, diagnosis = check_dataset(str(draw_good(tmp_path)))
    _, location = write_report(str(tmp_path / "report"), dataset, diagnosis)
    sheet = np.asarray(Image.open(location))
    for info in dataset.classes.classes:
        # More than the square in the legend.
        assert np.count_nonzero((sheet == info.color_rgb).all(axis=-1)) > 2000, info.name


def run(*arguments: object) -> int:
    return run_cli([str(argument) for argument in arguments])


def test_the_command_writes_a_report_and_a_draft(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "fields"
    page = draw_good(data)
    assert run("check", page) == 0
    assert f"written: {tmp_path}/runs/fields-check/check.json" in capfd.readouterr().out
    for make in (cut_image, cut_mask, stray_value, jpeg_mask, other_size):
        make(data)
    assert run("check", page, "--out", tmp_path / "report", "--fix-draft", tmp_path / "draft.yaml") == 2
    found = json.loads((tmp_path / "report" / "check.json").read_text())
    assert found["counts"]["error"] == 5
    assert all(finding["yaml"] for finding in found["findings"] if finding["severity"] == "error")
    draft = read_page(str(tmp_path / "draft.yaml"))
    assert draft.root == str(data)
    assert draft.resize_masks == "nearest"
    assert draft.ignore == [77]
    assert sorted(draft.exclude) == [
        "train/images/cyd.jpg", "train/images/eve.jpg", "val/images/hal.png",
    ]  # fmt: skip
    assert run("check", tmp_path / "draft.yaml", "--out", tmp_path / "again") == 0


def test_a_draft_of_a_folder_without_a_page(tmp_path: Path) -> None:
    draw_good(tmp_path / "data").unlink()
    assert run("check", tmp_path / "data", "--out", tmp_path / "a", "--fix-draft", tmp_path / "draft.yaml") == 0
    assert run("check", tmp_path / "draft.yaml", "--out", tmp_path / "b") == 0
    for split in ("train", "val"):
        assert read_counts(tmp_path / "a", split) == read_counts(tmp_path / "b", split)


def test_check_runs_in_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Worker processes must not run the caller's script again."""
    script = tmp_path / "script.py"
    page = draw_good(tmp_path)
    script.write_text(f"import batchseg\nprint(len(batchseg.check_dataset({str(page)!r})[1].findings))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "0\n"


def test_check_over_s3(s3_bucket: str, tmp_path: Path) -> None:
    from batchseg import storage

    draw_good(tmp_path)
    stray_value(tmp_path)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            storage.write_atomic(f"{s3_bucket}/data/{path.relative_to(tmp_path)}", path.read_bytes())
    _, local = check_dataset(str(tmp_path))
    dataset, diagnosis = check_dataset(f"{s3_bucket}/data")
    assert diagnosis.class_pixels == local.class_pixels
    assert find_kinds(diagnosis) == {"unknown_value": 1}
    assert diagnosis.errors[0].files == (f"{s3_bucket}/data/val/masks/gus.png",)
    written = write_report(f"{s3_bucket}/report", dataset, diagnosis)
    assert all(storage.exists(location) for location in written)


@pytest.mark.data
def test_camvid_has_one_warning(shared_data: Path, tmp_path: Path) -> None:
    """Its val is a part of a video that train holds too."""
    root = shared_data / "camvid"
    (tmp_path / "camvid.yaml").write_text(
        f"root: {root}\nsplits:\n  train: {{images: train, masks: trainannot}}\n"
        f"  val: {{images: val, masks: valannot}}\nclasses: [{CAMVID_CLASSES}]\nignore: [11]\n"
    )
    arguments = ["--out", tmp_path / "report", "--fix-draft", tmp_path / "draft.yaml"]
    assert run("check", tmp_path / "camvid.yaml", *arguments) == 0
    found = json.loads((tmp_path / "report" / "check.json").read_text())["findings"]
    assert [(entry["kind"], entry["count"]) for entry in found] == [("video_across_splits", 305)]
    for split in ("train", "val"):
        assert read_counts(tmp_path / "report", split) == count_masks(
            sorted((root / f"{split}annot").iterdir()), {11}, 11
        )
    dataset, mended = check_dataset(str(tmp_path / "draft.yaml"))
    assert mended.findings == []
    sequences = [{Path(sample.name).name[:6] for sample in dataset.splits[split]} for split in ("train", "val")]
    assert not sequences[0] & sequences[1]


@pytest.mark.data
@pytest.mark.parametrize("name", ["voc_mini", "coco_tiny"])
def test_no_false_alarm_on_photos(shared_data: Path, name: str, tmp_path: Path) -> None:
    assert run("check", shared_data / name, "--out", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report" / "check.json").read_text())
    kinds = {entry["kind"] for entry in found["findings"]}
    rare = {"rare_class_in_train", "rare_class_in_val"}
    absent = {"class_absent", "class_not_in_train", "class_not_in_val"}
    assert kinds <= (absent if name == "voc_mini" else rare)
    if name == "voc_mini":
        for split in ("train", "val"):
            names = (shared_data / name / f"ImageSets/Segmentation/{split}.txt").read_text().split()
            masks = [shared_data / name / f"SegmentationClass/{stem}.png" for stem in names]
            assert read_counts(tmp_path / "report", split) == count_masks(masks, {255}, 21)


def test_sizes_of_the_drawn_pictures() -> None:
    """The parts that other tests stand on: pictures that are not like each other."""
    assert draw_image(1).shape == (*SIZE_HW, 3)
    assert np.abs(draw_image(1).astype(int) - draw_image(2)).mean() > 20
