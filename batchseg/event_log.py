"""TensorBoard's event file, local or on s3://, without TensorFlow."""

import os
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

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
        storage.make_folder(location)
        # On S3 a file cannot grow: it is written here and sent as a whole after each epoch.
        self._temporary = tempfile.TemporaryDirectory() if storage.is_remote(location) else None
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._remote = storage.join(location, name) if self._temporary else None
        # Not its EventFileWriter: where TensorFlow is installed, that loads it to open a file.
        self._path = os.path.join(self._temporary.name if self._temporary else location, name)
        self._writer = RecordWriter(open(self._path, "xb"))  # noqa: SIM115 - open as long as the log
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write_epoch(self, row: dict[str, Any], wall_time: float | None = None) -> None:
        """Every number of a row of the history as a scalar at its epoch; `val_iou/sky` becomes a group.

        wall_time: when it ended, in seconds since 1970; None is now.
        """
        values = [(key, value) for key, value in row.items() if value is not None and key not in _NOT_SCALARS]
        self._write([Summary.Value(tag=key, simple_value=value) for key, value in values], row["epoch"], wall_time)

    def write_schedule(self, rates: Sequence[float]) -> None:
        """The planned learning rate at every step of the run, thinned out."""
        for step in range(0, len(rates), -(-len(rates) // _SCHEDULE_POINTS) or 1):
            self._write([Summary.Value(tag="planned/learning_rate", simple_value=rates[step])], step)

    def write_picture(self, tag: str, png: bytes, epoch: int, wall_time: float | None = None) -> None:
        """A PNG as it is."""
        image = Summary.Image(encoded_image_string=png, colorspace=3)
        self._write([Summary.Value(tag=tag, image=image)], epoch, wall_time)

    def flush(self) -> None:
        """Makes what was written visible."""
        self._writer.flush()
        if self._remote:
            with open(self._path, "rb") as stream:
                storage.write_atomic(self._remote, stream.read())

    def close(self) -> None:
        """Ends the file; the folder of an S3 log is cleared."""
        self.flush()
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self, values: list[Summary.Value], step: int, wall_time: float | None = None) -> None:
        # Without a time TensorBoard's axes say 1970.
        when = time.time() if wall_time is None else wall_time
        self._add(Event(wall_time=when, step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
