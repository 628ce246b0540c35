"""The batch job on a real Ray: one row per image, failures included; re-runs; no skew between the ways in."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from batchseg import Predictor, evaluate_dataset
from batchseg.datasets.drawn import draw_scene
from batchseg.errors import UserError
from batchseg.images import decode_mask
from batchseg.options import SegmentOptions
from batchseg.segment import segment_images


def read_rows(out: Path) -> list[dict]:
    table = pyarrow.dataset.dataset(out / "rows", partitioning="hive").to_table()
    return sorted(table.to_pylist(), key=lambda row: row["image_id"])


def read_mask(path: Path) -> np.ndarray:
    return decode_mask(path.read_bytes(), str(path))


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every awkward kind that is still a picture, in folders with awkward names."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "süb #1").mkdir()
    scene, _ = draw_scene(np.random.default_rng(5), (131, 173))
    scene_bgr = cv2.cvtColor(scene, cv2.COLOR_RGB2BGR)
    Image.fromarray(scene).save(folder / "odd size.png")
    Image.fromarray(scene).save(folder / "same.png")
    Image.fromarray(scene).save(folder / "same.jpg", quality=92)
    Image.fromarray(np.dstack([scene, np.full(scene.shape[:2], 120, np.uint8)])).save(folder / "rgba.png")
    Image.fromarray(scene).convert("L").save(folder / "süb #1" / "grey.png")
    Image.fromarray(scene // 40).save(folder / "nearly black.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene).save(folder / "turned.jpg", quality=95, exif=exif)
    # Larger than twice the model's input: decoded at a reduced scale.
    cv2.imwrite(str(folder / "large.jpg"), cv2.resize(scene_bgr, (801, 603)))
    return folder


@pytest.fixture(scope="module")
def segmented(odd_images: Path, bundle: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "segmented"
    segment_images(str(odd_images), str(bundle), str(out))
    return out


def test_every_image_has_a_row_a_mask_and_an_overlay(segmented: Path, odd_images: Path) -> None:
    rows = read_rows(segmented)
    names = sorted(path.relative_to(odd_images).as_posix() for path in odd_images.rglob("*.*"))
    assert [row["image_id"] for row in rows] == names
    for row in rows:
        mask = read_mask(segmented / row["mask"]["path"])
        assert mask.shape == (row["height"], row["width"])
        assert np.bincount(mask.ravel(), minlength=6)[:6].tolist() == row["class_pixels"]
        assert row["mask"]["bytes"] == (segmented / row["mask"]["path"]).read_bytes()
        overlay = cv2.imdecode(np.frombuffer(row["overlay"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
        assert max(overlay.shape[:2]) == min(512, max(mask.shape))
        assert row["status"] == "ok"
        assert 0 < row["mean_confidence"] <= 1
    assert not any(segmented.joinpath(".tmp").glob("*"))


def test_orientation_is_applied(segmented: Path) -> None:
    row = next(row for row in read_rows(segmented) if row["image_id"] == "turned.jpg")
    assert (row["height"], row["width"]) == (173, 131)


def test_no_skew(segmented: Path, odd_images: Path, bundle: Path, tmp_path: Path) -> None:
    """The mask from Predictor, from segment, and the one that evaluate scores are equal bit by bit."""
    predictor = Predictor(bundle, batch_size=3)
    names = [row["image_id"] for row in read_rows(segmented)]
    alone = [predictor.predict([odd_images / name])[0].mask for name in names]
    together = [
        prediction.mask for prediction in predictor.predict([(odd_images / name).read_bytes() for name in names])
    ]
    data = tmp_path / "data"
    (data / "masks").mkdir(parents=True)
    for name, one, other in zip(names, alone, together, strict=True):
        written = read_mask(segmented / "masks" / f"{name}.png")
        np.testing.assert_array_equal(one, written)
        np.testing.assert_array_equal(other, written)
    # Scored against the very masks that segment wrote, evaluate must find no wrong pixel.
    lines = []
    for number, name in enumerate(names):
        shutil.copy(segmented / "masks" / f"{name}.png", data / "masks" / f"{number}.png")
        shutil.copy(odd_images / name, data / f"{number}{Path(name).suffix}")
        lines.append(f"{number}{Path(name).suffix}\tmasks/{number}.png")
    (data / "test.txt").write_text("\n".join(lines))
    classes = json.loads((bundle / "bundle.json").read_text())["classes"]
    page = {"format": "pairs", "splits": {"test": "test.txt"}, "classes": [entry["name"] for entry in classes]}
    (data / "dataset.yaml").write_text(json.dumps(page))
    scores = evaluate_dataset(str(data), str(bundle), out=str(tmp_path / "scores"))
    assert scores["pixel_accuracy"] == 1.0
    assert np.asarray(scores["confusion"]).sum() == sum(mask.size for mask in alone)
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["miou"] == scores["miou"]
    assert scores["boundary_f1"] == 1.0
    assert scores["miou_interval_95"] == [1.0, 1.0]


@pytest.mark.slow
def test_any_batch_and_any_actors_score_the_same(drawn_data: Path, bundle: Path, ray_session: None) -> None:
    """To the last digit, boundaries, interval and worst images among it."""
    first = evaluate_dataset(str(drawn_data), str(bundle), batch_size=1)
    assert 0 < first["miou_interval_95"][0] <= first["miou"] <= first["miou_interval_95"][1]
    assert len(first["worst_images"]) == 10
    assert evaluate_dataset(str(drawn_data), str(bundle), batch_size=5, actors=2, gpus_per_actor=0) == first


def test_an_array_is_predicted_as_its_lossless_file(odd_images: Path, bundle: Path) -> None:
    predictor = Predictor(bundle)
    image = np.asarray(Image.open(odd_images / "odd size.png"))
    from_array, from_file = predictor.predict([image, odd_images / "odd size.png"])
    np.testing.assert_array_equal(from_array.mask, from_file.mask)
    with pytest.raises(UserError, match=r"image is float64 \(4, 4\); RGB uint8"):
        predictor.predict([np.zeros((4, 4))])


def test_bad_files_are_rows_and_a_rerun_takes_up_only_what_is_left(
    odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path
) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    good = (odd_images / "odd size.png").read_bytes()
    for number in range(3):
        (source / f"good{number}.png").write_bytes(good)
    (source / "cut.png").write_bytes(good[: len(good) // 2])
    (source / "cut.jpg").write_bytes((odd_images / "large.jpg").read_bytes()[:2000])
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.png").write_text("this is no picture")
    options = SegmentOptions(overlays="jpg", overlay_size=64)

    first = segment_images(str(source), str(bundle), str(out), options=options)
    assert (first.ok, first.failed) == (3, 4)
    failed = [row for row in read_rows(out) if row["status"] == "error"]
    assert {row["error_kind"] for row in failed} == {"decode"}
    assert all(row["error"] and row["mask"] is None and row["attempts"] == 1 for row in failed)
    assert not (out / "masks" / "cut.png.png").exists()
    mask_before = (out / "masks" / "good0.png.png").read_bytes()
    overlay = out / "overlays" / "good1.png.jpg"
    untouched = overlay.stat().st_mtime_ns

    (source / "cut.png").write_bytes(good)
    (source / "good0.png").write_bytes((odd_images / "same.png").read_bytes())
    os.utime(source / "good0.png", (1, 1))
    (source / "new.png").write_bytes(good)
    second = segment_images(str(source), str(bundle), str(out), options=options)
    assert second.reasons == {"new": 1, "changed": 2, "failed before": 3, "done": 2}
    rows = read_rows(out)
    assert [row["image_id"] for row in rows] == sorted(path.name for path in source.iterdir())
    assert {row["image_id"]: row["attempts"] for row in rows if row["status"] == "error"} == {
        "cut.jpg": 2, "empty.jpg": 2, "text.png": 2,
    }  # fmt: skip
    assert (out / "masks" / "good0.png.png").read_bytes() == mask_before, "the same pixels, another file"
    assert overlay.stat().st_mtime_ns == untouched, "a finished image was done again"

    for name in ("cut.jpg", "empty.jpg", "text.png"):
        (source / name).unlink()
    third = segment_images(str(source), str(bundle), str(out), options=options)
    assert third.reasons == {"new": 0, "changed": 0, "failed before": 0, "done": 5}
    assert (third.seconds, third.failed) == (0, 0), "failures of images that are gone are not failures of this run"


@pytest.mark.slow
def test_a_picture_does_not_outlive_its_image(
    odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path
) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    shutil.copy(odd_images / "odd size.png", source / "a.png")
    segment_images(str(source), str(bundle), str(out))
    (source / "a.png").write_bytes(b"no picture any more")
    result = segment_images(str(source), str(bundle), str(out))
    assert (result.ok, result.failed) == (0, 1)
    assert not list(out.glob("masks/*"))
    assert not list(out.glob("overlays/*"))


@pytest.mark.slow
def test_a_row_that_failed_has_no_pictures(odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    shutil.copy(odd_images / "odd size.png", source / "a.png")
    segment_images(str(source), str(bundle), str(out))
    shutil.copy(odd_images / "odd size.png", source / "b.png")
    (out / "overlays" / "b.png.png").mkdir()  # in the way of the overlay, which comes after the mask
    assert segment_images(str(source), str(bundle), str(out)).failed == 1
    failed = read_rows(out)[1]
    assert (failed["image_id"], failed["error_kind"], failed["mask"]) == ("b.png", "write", None)
    assert "overlays/b.png.png cannot be written" in failed["error"]
    assert [path.name for path in (out / "masks").iterdir()] == ["a.png.png"]


def test_too_many_actors_are_refused_before_anything_is_written(
    odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--actors 50 leaves no CPU"):
        segment_images(str(odd_images), str(bundle), str(tmp_path / "out"), options=SegmentOptions(actors=50))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bundle_that_this_machine_cannot_run_ends_the_job(
    odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path
) -> None:
    from batchseg import bundle as bundles

    shutil.copytree(bundle, tmp_path / "other")
    page = tmp_path / "other" / "bundle.json"
    card = json.loads(page.read_text())
    golden = bundles.read_card(str(bundle)).golden
    palette = bundles.read_card(str(bundle)).classes.palette
    card["golden"]["mask"] = bundles._to_text(bundles.images.encode_mask((golden.mask + 1) % 6, palette))
    card["digest"] = bundles._digest_card(card)
    page.write_text(json.dumps(card))
    with pytest.raises(UserError, match="its golden image comes out right on"):
        segment_images(str(odd_images), str(tmp_path / "other"), str(tmp_path / "out"))
    # Nothing ties OUT to that bundle.
    assert segment_images(str(odd_images), str(bundle), str(tmp_path / "out")).failed == 0


@pytest.mark.slow
def test_evaluate_names_a_mask_that_will_not_do(
    drawn_data: Path, bundle: Path, ray_session: None, tmp_path: Path
) -> None:
    shutil.copytree(drawn_data.parent, tmp_path / "data")
    bad = tmp_path / "data" / "test" / "masks" / "0004.png"
    mask = np.array(Image.open(bad))
    mask[0, 0] = 99
    Image.fromarray(mask).save(bad)
    with pytest.raises(UserError, match=r"test/masks/0004\.png holds class id 99"):
        evaluate_dataset(str(tmp_path / "data"), str(bundle))


def test_evaluate_does_not_replace_the_scores_of_a_training(drawn_data: Path, bundle: Path, trained_out: Path) -> None:
    with pytest.raises(UserError, match=r"is a training run, whose scores\.json are those of val"):
        evaluate_dataset(str(drawn_data), str(bundle), out=str(trained_out))


def test_another_bundle_or_overlay_is_refused(segmented: Path, odd_images: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made with other parameters; differing: overlays \('png' there, 'jpg' now\)"):
        segment_images(str(odd_images), str(bundle), str(segmented), options=SegmentOptions(overlays="jpg"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="is not an output of batchseg"):
        segment_images(str(odd_images), str(bundle), str(tmp_path / "mine"))


@pytest.mark.slow
def test_out_inside_input_is_not_segmented(odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    shutil.copy(odd_images / "odd size.png", source / "a.png")
    for _ in range(2):
        result = segment_images(str(source), str(bundle), str(source / "out"))
        assert result.ok == 1
    with pytest.raises(UserError, match="is not an output of batchseg"):
        segment_images(str(source), str(bundle), str(source))


@pytest.mark.slow
def test_writes_only_what_is_asked_for(odd_images: Path, bundle: Path, ray_session: None, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    shutil.copy(odd_images / "odd size.png", source / "a.png")
    segment_images(
        str(source), str(bundle), str(tmp_path / "p"), options=SegmentOptions(write=("parquet",), overlays="none")
    )
    row = read_rows(tmp_path / "p")[0]
    assert row["mask"]["bytes"]
    assert row["mask"]["path"] is None
    assert row["overlay"] is None
    assert not (tmp_path / "p" / "masks").exists()
    segment_images(
        str(source), str(bundle), str(tmp_path / "q"), options=SegmentOptions(write=("png",), overlay_size=0)
    )
    row = read_rows(tmp_path / "q")[0]
    assert row["mask"] == {"bytes": None, "path": "masks/a.png.png"}
    assert Image.open(tmp_path / "q" / "overlays" / "a.png.png").size == (173, 131)
