"""Ray Train from config to bundle: what a run leaves, resuming, refusing, bad data."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from batchseg.bundle import read_card
from batchseg.config import load_config
from batchseg.console import Console
from batchseg.errors import StoppedError, UserError
from batchseg.train import train_model
from batchseg.train_folder import check_out, describe_changes


def test_leaves_what_the_contract_says(trained_out: Path, drawn_data: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.csv",
        "scores.json",
        "checkpoints",
        "bundle/model.keras",
        "bundle/bundle.json",
    ):
        assert (trained_out / name).exists(), name
    scores = json.loads((trained_out / "scores.json").read_text())
    assert set(scores) >= {"miou", "pixel_accuracy", "images", "classes", "confusion"}
    assert scores["images"] == 12
    assert np.asarray(scores["confusion"]).sum() == sum(entry["pixels"] for entry in scores["classes"])


def test_metrics_hold_every_epoch_once(trained_out: Path) -> None:
    rows = list(csv.DictReader((trained_out / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert all(0 < float(row["loss"]) < 5 for row in rows)


def test_the_best_epoch_is_shipped(trained_out: Path) -> None:
    rows = list(csv.DictReader((trained_out / "metrics.csv").open()))
    best = max(float(row["val_miou"]) for row in rows)
    assert json.loads((trained_out / "scores.json").read_text())["miou"] == pytest.approx(best, abs=1e-5)


def test_a_finished_run_says_so_and_stays(trained_out: Path, tiny_overrides: dict[str, str]) -> None:
    before = (trained_out / "bundle" / "bundle.json").stat().st_mtime_ns
    result = train_model(load_config(None, {**tiny_overrides, "out": str(trained_out)}))
    assert result.was_finished
    assert (trained_out / "bundle" / "bundle.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_killed_before_its_bundle_makes_it(
    trained_out: Path, tiny_overrides: dict[str, str], ray_session: None, copied_out: Path
) -> None:
    out = copied_out
    shutil.rmtree(out / "bundle")
    result = train_model(load_config(None, {**tiny_overrides, "out": str(out)}))
    assert not result.was_finished
    assert json.loads((out / "scores.json").read_text()) == json.loads((trained_out / "scores.json").read_text())
    assert read_card(str(out / "bundle")).scores == read_card(str(trained_out / "bundle")).scores


def test_an_extended_run_is_not_finished_until_it_is(tiny_overrides: dict[str, str], copied_out: Path) -> None:
    """Killed after the longer config was written: the bundle of the shorter run must not pass for its end."""
    out = copied_out
    longer = load_config(None, {**tiny_overrides, "out": str(out), "training.epochs": "3"})
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("epochs: 2", "epochs: 3"))
    (out / "scores.json").unlink()
    assert check_out(longer) is None


def test_a_run_is_not_resumed_on_other_data(
    tiny_overrides: dict[str, str], drawn_data: Path, ray_session: None, copied_out: Path
) -> None:
    out = copied_out
    page = drawn_data.read_text()
    drawn_data.write_text(page.replace("name: lake", "name: pond"))
    try:
        with pytest.raises(UserError, match="was begun on other data"):
            train_model(load_config(None, {**tiny_overrides, "out": str(out), "training.epochs": "3"}))
    finally:
        drawn_data.write_text(page)
    assert train_model(load_config(None, {**tiny_overrides, "out": str(out)})).was_finished, "the refusal changed it"


def test_files_of_somebody_else_are_left_alone(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: mine\n")
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a config\.yaml that `train` did not write"):
        train_model(load_config(None, {**tiny_overrides, "out": str(tmp_path)}))
    assert (tmp_path / "config.yaml").read_text() == "data: mine\n"
    assert (tmp_path / "scores.json").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder .*/file cannot be made"):
        train_model(load_config(None, {**tiny_overrides, "out": str(tmp_path / "file")}))


def test_another_config_is_refused_but_for_epochs(trained_out: Path, tiny_overrides: dict[str, str]) -> None:
    same = {**tiny_overrides, "out": str(trained_out)}
    with pytest.raises(
        UserError, match=r"made with another config; differing: training\.batch_size \(8 there, 4 now\)"
    ):
        check_out(load_config(None, {**same, "training.batch_size": "4"}))
    with pytest.raises(UserError, match="was made for 2 epochs; 1 is fewer"):
        check_out(load_config(None, {**same, "training.epochs": "1"}))
    assert check_out(load_config(None, {**same, "training.epochs": "3"})) is None
    for knob, value in {"cluster.workers": "1", "training.cache_gb": "1", "training.checkpoint_steps": "2"}.items():
        assert check_out(load_config(None, {**same, knob: value})) is not None


def test_the_learning_rate_may_change_while_there_is_something_to_do(
    trained_out: Path, tiny_overrides: dict[str, str]
) -> None:
    """A finished run was not made with it."""
    changed = {**tiny_overrides, "out": str(trained_out), "training.learning_rate": "1e-3", "training.clip_norm": "1"}
    with pytest.raises(UserError, match=r"differing: training\.learning_rate \(0\.004 there, 0\.001 now\)"):
        check_out(load_config(None, changed))
    longer = load_config(None, {**changed, "training.epochs": "3"})
    assert check_out(longer) is None
    assert describe_changes(longer) == "training.learning_rate 0.004 -> 0.001, training.clip_norm 5.0 -> 1.0"


def test_the_card_knows_its_training_data(bundle: Path) -> None:
    card = read_card(str(bundle))
    assert card.data["images"] == {"train": 48, "val": 12, "test": 12}
    assert sum(card.data["class_shares"]) == pytest.approx(1)
    assert 0 < card.data["brightness"]["p1"] <= card.data["brightness"]["p99"] < 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.batch_size": "49"}, "training.batch_size is 49, the train split has 48 images"),
        ({"augment.crop": "128,128"}, r"augment.crop \[128, 128\] is larger than input.size \[96, 128\]"),
        ({"data": "/nowhere/at/all"}, "data /nowhere/at/all does not exist"),
        ({"model.encoder_weights": "/no/weights.h5"}, "model.encoder_weights: /no/weights.h5 is no local file"),
    ],
)
def test_a_wrong_job_stops_before_anything_is_written(
    change: dict[str, str], message: str, tiny_overrides: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        train_model(load_config(None, {**tiny_overrides, "out": str(out), **change}))
    assert not out.exists()


def test_a_bad_mask_is_named_before_training(drawn_data: Path, tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    import shutil

    from PIL import Image

    shutil.copytree(drawn_data.parent, tmp_path / "data")
    bad = tmp_path / "data" / "train" / "masks" / "0003.png"
    mask = np.array(Image.open(bad))
    mask[5, 5] = 77
    Image.fromarray(mask).save(bad)
    job = load_config(None, {**tiny_overrides, "data": str(tmp_path / "data"), "out": str(tmp_path / "out")})
    with pytest.raises(UserError, match=r"0003\.png holds class id 77, but the class table has 6 classes \(0-5\)"):
        train_model(job)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_step_and_files(
    trained_out: Path, tiny_overrides: dict[str, str], drawn_data: Path, ray_session: None, tmp_path: Path
) -> None:
    """It stops at once, though Ray Train would start again, and what was there before stays."""
    out = tmp_path / "out"
    job = {**tiny_overrides, "out": str(out), "training.learning_rate": "1e30", "training.clip_norm": "0"}
    job["cluster.workers"] = "1"
    with pytest.raises(UserError, match=r"not a number in epoch 1, step \d+") as caught:
        train_model(load_config(None, job))
    named = re.search(r"files of that batch: (.*)\. The last checkpoint is kept", str(caught.value))
    assert named is not None
    names = [name.rpartition("/")[2] for name in named[1].split(", ")]
    assert len(names) == 8
    assert all((drawn_data.parent / "train" / "images" / name).exists() for name in names)
    assert not (out / "bundle").exists()


@pytest.mark.slow
def test_a_run_that_came_to_no_number_goes_on_with_a_lower_rate(
    tiny_overrides: dict[str, str],
    ray_session: None,
    copied_out: Path,
    listening: tuple[Console, list[str]],
) -> None:
    """In the third epoch; the first two stay. It goes on in another precision too."""
    out = copied_out
    job = {**tiny_overrides, "out": str(out), "training.epochs": "4", "cluster.workers": "1"}
    kept = (out / "metrics.csv").read_text().splitlines()
    wild = {"training.learning_rate": "1e30", "training.clip_norm": "0"}
    with pytest.raises(UserError, match=r"not a number in epoch 3, step \d+\..* the same out goes on from it"):
        train_model(load_config(None, {**job, **wild}))
    assert (out / "metrics.csv").read_text().splitlines() == kept
    console, said = listening
    mended = load_config(None, {**job, "training.learning_rate": "1e-3", "training.precision": "mixed_float16"})
    train_model(mended, console=console)
    assert said[1] == (
        f"{out} goes on with training.learning_rate 1e+30 -> 0.001, training.clip_norm 0.0 -> 5.0, "
        "training.precision float32 -> mixed_float16"
    )
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2", "3", "4"]


@pytest.mark.slow
def test_a_full_disk_stops_training_and_the_same_line_goes_on(
    tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path
) -> None:
    """The disk holds one checkpoint of some 7 MB, not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=12m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        config = load_config(None, {**tiny_overrides, "out": str(disk / "out"), "cluster.workers": "1"})
        with pytest.raises(StoppedError, match="no space left"):
            train_model(config)
        subprocess.run([*mount, "remount,size=200m", str(disk)], check=True)
        assert train_model(config).scores["images"] == 12
        rows = list(csv.DictReader((disk / "out" / "metrics.csv").open()))
        assert [int(row["epoch"]) for row in rows] == [1, 2]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.data
def test_voc_trains_and_evaluates_without_its_border(shared_data: Path, ray_session: None, tmp_path: Path) -> None:
    """Photos of many sizes; the 255 between classes counts nowhere."""
    from PIL import Image

    from batchseg.evaluate import evaluate_dataset

    voc = shared_data / "voc_mini"
    weights = shared_data / "weights" / "mobilenet_v1_0.25_224_notop.weights.h5"
    overrides = {
        "data": str(voc),
        "out": str(tmp_path / "out"),
        "model.architecture": "unet",
        "model.encoder": "mobilenet",
        "model.encoder_width": "0.25",
        "model.encoder_weights": str(weights),
        "input.size": "256,256",
        "training.epochs": "2",
        "training.batch_size": "4",
        "training.precision": "float32",
    }
    result = train_model(load_config(str(Path(__file__).parents[1] / "jobs" / "voc.yaml"), overrides))
    masks = [np.array(Image.open(voc / "SegmentationClass" / f"{stem}.png")) for stem in read_stems(voc, "val")]
    assert any((mask == 255).any() for mask in masks)
    valid = sum(int((mask != 255).sum()) for mask in masks)
    for scores in (result.scores, evaluate_dataset(str(voc), result.bundle)):
        assert scores["images"] == 4
        assert np.asarray(scores["confusion"]).sum() == valid


def read_stems(voc: Path, split: str) -> list[str]:
    return (voc / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
