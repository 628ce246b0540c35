"""TensorBoard's event file, local or on s3://, without TensorFlow."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from batchseg import storage

_NOT_SCALARS = ("epoch",)
_SCHEDULE_POINTS = 500


class EventLog:
    """The events of one run in one file. A run that goes on begins its file again, so that no epoch is in it twice."""

    def __init__(self, location: str):
        """location: a folder; event files that an earlier start left there are deleted."""
        for entry in list(storage.list_files(location)) if storage.exists(location) else []:
            if "tfevents" in entry.path:
                storage.delete_file(entry.location)
        self._location = location
        # On S3 a file cannot grow: it is written here and sent as a whole after each epoch.
        self._temporary = tempfile.TemporaryDirectory() if storage.is_remote(location) else None
        self._folder = self._temporary.name if self._temporary else location
        self._writer = EventFileWriter(self._folder)

    def write_epoch(self, row: dict[str, Any]) -> None:
        """Every number of a row of the history as a scalar at its epoch; `val_iou/sky` becomes a group."""
        values = [(key, value) for key, value in row.items() if value is not None and key not in _NOT_SCALARS]
        self._write([Summary.Value(tag=key, simple_value=value) for key, value in values], row["epoch"])

    def write_schedule(self, rates: Sequence[float]) -> None:
        """The planned learning rate at every step of the run, thinned out."""
        for step in range(0, len(rates), max(1, len(rates) // _SCHEDULE_POINTS)):
            self._write([Summary.Value(tag="planned/learning_rate", simple_value=rates[step])], step)

    def write_picture(self, tag: str, png: bytes, epoch: int) -> None:
        """A PNG as it is."""
        image = Summary.Image(encoded_image_string=png, colorspace=3)
        self._write([Summary.Value(tag=tag, image=image)], epoch)

    def flush(self) -> None:
        """Makes what was written visible."""
        self._writer.flush()
        if self._temporary:
            for name in os.listdir(self._folder):
                with open(os.path.join(self._folder, name), "rb") as stream:
                    storage.write_atomic(storage.join(self._location, name), stream.read())

    def close(self) -> None:
        """Ends the file; the folder of an S3 log is cleared."""
        self.flush()
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self, values: list[Summary.Value], step: int) -> None:
        self._writer.add_event(Event(step=step, summary=Summary(value=values)))
