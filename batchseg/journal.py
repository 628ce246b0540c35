"""What a training run leaves under `out` for people: metrics.csv, curves.png, pictures of val, TensorBoard events."""

import time
from collections.abc import Sequence
from typing import Any

from batchseg import images, storage
from batchseg.classes import ClassTable
from batchseg.curves import History, draw_curves
from batchseg.event_log import EventLog
from batchseg.val_sheet import ValPicture, draw_val_sheet

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
PICTURES_FOLDER = "pictures"
EVENTS_FOLDER = "tensorboard"


class Journal:
    """Kept by the first worker. What a kill has cut off is written again when the run goes on."""

    def __init__(self, out: str, classes: ClassTable, history: History, rates: Sequence[float]):
        """history: what is done already. rates: the planned learning rate at every step of the run."""
        self._out, self._classes = out, classes
        storage.make_folder(storage.join(out, EVENTS_FOLDER))
        self._events = EventLog(storage.join(out, EVENTS_FOLDER))
        self._events.write_schedule(rates)
        # When an epoch ended is not kept; how long it took is.
        ended = time.time() - sum(row["train_seconds"] + row["val_seconds"] for row in history)
        for row in history:
            ended += row["train_seconds"] + row["val_seconds"]
            self._events.write_epoch(row, ended)
            self._repeat_picture(row["epoch"], ended)
        self._events.flush()
        if history:
            write_metrics_csv(storage.join(out, METRICS_FILE), history)

    def write_epoch(self, history: History, pictures: Sequence[ValPicture]) -> None:
        """After an epoch. history: with its row. pictures: of val, none where it was not their turn."""
        row = history[-1]
        write_metrics_csv(storage.join(self._out, METRICS_FILE), history)
        colors = {info.name: info.color_rgb for info in self._classes.classes}
        storage.write_atomic(storage.join(self._out, CURVES_FILE), draw_curves(history, colors))
        self._events.write_epoch(row)
        if pictures:
            png = images.encode_image(draw_val_sheet(pictures, self._classes), ".png")
            storage.write_atomic(self._picture_location(row["epoch"]), png)
            self._events.write_picture("val", png, row["epoch"])
        self._events.flush()

    def _picture_location(self, epoch: int) -> str:
        return storage.join(self._out, PICTURES_FOLDER, f"val-epoch-{epoch:04d}.png")

    def _repeat_picture(self, epoch: int, wall_time: float) -> None:
        location = self._picture_location(epoch)
        if storage.exists(location):
            self._events.write_picture("val", storage.read_bytes(location), epoch, wall_time)


def write_metrics_csv(location: str, history: Sequence[dict[str, Any]]) -> None:
    """One line per epoch; always the whole history, so that a resumed run leaves no epoch out or in twice."""
    cells = [["" if value is None else f"{value:.6g}" for value in row.values()] for row in history]
    lines = [",".join(line) for line in [list(history[0]), *cells]]
    storage.write_atomic(location, "\n".join(lines) + "\n")
