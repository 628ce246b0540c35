"""What a run leaves for people: curves, pictures of val, TensorBoard events, metrics.csv."""

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from batchseg import images
from batchseg.classes import ClassTable
from batchseg.curves import draw_curves, pick_classes
from batchseg.event_log import EventLog
from batchseg.journal import Journal
from batchseg.val_sheet import ValPicture, draw_errors, draw_val_sheet, pick_evenly

NAMES = ["sky", "hill", "tree"]


@pytest.fixture
def table(drawn_data: Path) -> ClassTable:
    from batchseg.datasets import open_dataset

    return open_dataset(str(drawn_data)).classes


def make_history(epochs: int, names: list[str]) -> list[dict[str, Any]]:
    """Val is scored in every other epoch; the last class never occurs."""
    history = []
    for epoch in range(1, epochs + 1):
        scored = epoch % 2 == 0
        history.append(
            {
                "epoch": epoch,
                "loss": 2 / epoch,
                "val_miou": 1 - 1 / epoch if scored else None,
                "val_pixel_accuracy": 0.9 if scored else None,
                **{f"val_iou/{name}": 0.1 * index if scored else None for index, name in enumerate(names[:-1])},
                f"val_iou/{names[-1]}": None,
                "learning_rate": 1e-3 / epoch,
                "train_seconds": 10.0,
                "val_seconds": 1.0,
            }
        )
    return history


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_are_a_picture(epochs: int) -> None:
    colors = {name: (40 * index, 90, 200) for index, name in enumerate(NAMES)}
    picture = images.decode_image(png := draw_curves(make_history(epochs, NAMES), colors), images.probe_image(png))
    assert picture.shape == (800, 1200, 3)
    assert (picture == 255).all(-1).mean() > 0.5


def test_of_many_classes_the_worst_are_drawn() -> None:
    names = [f"class{index}" for index in range(40)]
    history = make_history(4, names)
    assert pick_classes(history, names) == names[11::-1], "from the best down"
    for row in history:
        if row["val_miou"] is not None:
            row["val_iou/class30"] = -0.5
    assert pick_classes(history, names)[-1] == "class30"
    assert pick_classes(history[:1], names) == names[:12], "before val was scored"
    assert pick_classes(make_history(4, NAMES), NAMES) == ["hill", "sky"], "tree never occurs"


def test_events_can_be_read_back_and_begin_again(tmp_path: Path) -> None:
    history = make_history(3, NAMES)
    first = EventLog(str(tmp_path))
    first.write_schedule([0.1 * step for step in range(2000)])
    for row in history:
        first.write_epoch(row)
    png = images.encode_image(np.full((8, 9, 3), 77, np.uint8), ".png")
    first.write_picture("val", png, 2)
    first.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("val_miou")] == [(2, 0.5)]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len(events.Scalars("planned/learning_rate")) == 500
    assert all(abs(event.wall_time - time.time()) < 60 for event in events.Scalars("loss")), "not 1970"
    assert events.Images("val")[0].encoded_image_string == png
    second = EventLog(str(tmp_path))
    second.write_epoch(history[0])
    second.close()
    assert [event.step for event in read_events(tmp_path).Scalars("loss")] == [1]


@pytest.mark.parametrize("steps", [0, 1, 499, 999, 1001, 12345])
def test_the_schedule_is_thinned_out(steps: int, tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    log.write_schedule([0.25] * steps)
    log.close()
    events = read_events(tmp_path)
    points = [event.step for event in events.Scalars("planned/learning_rate")] if steps else []
    assert min(steps, 250) <= len(points) <= 500
    assert points == sorted(set(points))


def test_events_are_written_without_tensorflow(tmp_path: Path) -> None:
    script = (
        "import sys; from batchseg.event_log import EventLog; log = EventLog(sys.argv[1]);"
        "log.write_epoch({'epoch': 1, 'loss': 1.0}); log.close(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "new" / "folder")], check=True)
    assert [event.step for event in read_events(tmp_path / "new" / "folder").Scalars("loss")] == [1]


def test_pictures_are_spread_evenly() -> None:
    assert pick_evenly(101, 4) == [0, 33, 67, 100]
    assert pick_evenly(2, 4) == [0, 1]
    assert pick_evenly(1, 4) == [0]
    assert pick_evenly(0, 4) == []


def test_errors_are_red_and_ignored_is_grey() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    truth, predicted = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    truth[0], predicted[1] = 255, 1
    drawn = draw_errors(image, truth, predicted)
    assert (drawn[0] == (128, 128, 128)).all()
    assert (drawn[1] == (230, 30, 30)).all()
    assert (drawn[2:] == drawn[3, 3]).all()
    enlarged = draw_errors(image, np.kron(truth, np.ones((3, 3), np.uint8)), predicted)
    assert np.array_equal(enlarged, drawn), "masks at the image's own size, the image at the model's"


def test_a_sheet_has_a_row_for_each_picture(table: ClassTable) -> None:
    truth = np.random.default_rng(0).integers(0, len(table), (40, 50)).astype(np.uint8)
    pictures = [ValPicture(f"{n}.jpg", np.full((20, 25, 3), 90, np.uint8), truth, truth) for n in range(3)]
    one, three = draw_val_sheet(pictures[:1], table), draw_val_sheet(pictures, table)
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > 2.2 * one.shape[0] - 100


def test_a_journal_goes_on_where_a_kill_left_it(table: ClassTable, tmp_path: Path) -> None:
    out, history = str(tmp_path), make_history(4, list(table.names))
    picture = ValPicture("a.jpg", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8))
    journal = Journal(out, table, [], [1e-3] * 40)
    journal.write_epoch(history[:1], [])
    journal.write_epoch(history[:2], [picture])
    journal.write_epoch(history[:3], [])  # its checkpoint was lost
    again = Journal(out, table, history[:2], [1e-3] * 40)
    for epoch in (3, 4):
        again.write_epoch(history[:epoch], [])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert rows[0]["val_miou"] == ""
    events = read_events(tmp_path / "tensorboard")
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    first, second = (event.wall_time for event in events.Scalars("loss")[:2])
    assert second - first == pytest.approx(11, abs=0.01), "11 s an epoch, also when written again"
    assert [image.step for image in events.Images("val")] == [2]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    assert (tmp_path / "pictures" / "val-epoch-0002.png").exists()


def test_a_journal_on_s3(table: ClassTable, s3_bucket: str) -> None:
    from batchseg import storage

    history = make_history(2, list(table.names))
    journal = Journal(f"{s3_bucket}/run", table, [], [1e-3] * 4)
    journal.write_epoch(history[:1], [])
    journal.write_epoch(history, [])
    names = [entry.path for entry in storage.list_files(f"{s3_bucket}/run")]
    assert sorted(name.partition("/")[0] for name in names) == ["curves.png", "metrics.csv", "tensorboard"]
