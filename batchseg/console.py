"""What a person sees: progress with rate and ETA, one table at the end, one clear message for an error.

In a terminal one live line; elsewhere (a log of `ray job submit`) a plain line now and then.
"""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.table import Table

_POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 15.0
_STALL_SECONDS = 20.0
"""Without a step or an image; then it may be nodes that have gone."""

DescribeWait = Callable[[float, int], str | None]
"""Seconds waited, workers or actors that have begun -> what a command waits for; None when it has all it wants."""


class _Nowhere(io.StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class Console:
    """Prints to one stream. Everything a command says goes through here."""

    def __init__(self, stream: TextIO | None = None):
        file = stream or sys.stdout
        # Decided here: rich would believe FORCE_COLOR, which people set for logs, and fill those with control codes.
        self.rich = RichConsole(
            file=file, force_terminal=file.isatty(), highlight=False, soft_wrap=True, markup=False, emoji=False
        )

    @classmethod
    def quiet(cls) -> "Console":
        """Says nothing and leaves logging alone; for use as a library."""
        return cls(_Nowhere())

    def log_into(self, folder: str) -> None:
        """From here on what Ray and batchseg log in this process goes to folder/batchseg.log, not to the terminal."""
        if isinstance(self.rich.file, _Nowhere) or "://" in folder:
            return
        handler = logging.FileHandler(f"{folder}/batchseg.log", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in ("batchseg", "ray", "ray.data"):  # Ray Data has a handler of its own
            logger = logging.getLogger(name)
            logger.handlers[:] = [handler]
            logger.propagate = False
            logger.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.rich.print(text, markup=False)

    def show_table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is text, the others are numbers."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.rich.print(table)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """A line that is live while something runs, in a terminal; otherwise nothing."""
        if not self.rich.is_terminal:
            yield
            return
        with self.rich.status(text):
            yield

    @contextmanager
    def live(self) -> Iterator[Callable[[str], None]]:
        """Yields a function that replaces the live line; outside a terminal it prints one line every 15 s, and at once
        one that begins with another word: what is waited for in place of what starts.
        """
        if self.rich.is_terminal:
            with self.rich.status("starting") as status:
                yield lambda text: status.update(text)
            return
        due, kind = 0.0, ""  # the first line at once, whatever was printed before

        def print_now_and_then(text: str) -> None:
            nonlocal due, kind
            if time.monotonic() >= due or kind != text.split()[0]:
                due, kind = time.monotonic() + _PLAIN_LINE_SECONDS, text.split()[0]
                self.say(text)

        yield print_now_and_then


class _Standstill:
    """How long something has stayed as it is."""

    def __init__(self) -> None:
        self._value, self._since = None, time.monotonic()

    def lasts_s(self, value: Any) -> float:
        """Seconds since `value` was another one."""
        if value != self._value:
            self._value, self._since = value, time.monotonic()
        return time.monotonic() - self._since


class TrainProgress:
    """Turns what the workers put on the board into lines: one that moves, one for each finished epoch."""

    def __init__(self, console: Console, epochs: int, describe_wait: DescribeWait = lambda *_: None):
        self._console, self._epochs, self._describe_wait = console, epochs, describe_wait
        self._began = time.monotonic()
        self._standstill = _Standstill()
        self._shown_epochs: int | None = None
        self._note: str | None = None
        self._first: tuple[float, float] | None = None

    @property
    def console(self) -> Console:
        return self._console

    def update(self, state: dict[str, Any], show: Callable[[str], None]) -> None:
        """state: what ProgressBoard.read returns."""
        if state.get("note") != self._note:
            self._note = state["note"]
            self._console.say(self._note)
        self._say_finished(state)
        still_s, wait = self._standstill.lasts_s([state.get(key) for key in ("epoch", "phase", "step")]), None
        if still_s > _STALL_SECONDS or "steps" not in state:
            wait = self._describe_wait(time.monotonic() - self._began, state.get("begun", 0))
        if "steps" not in state:
            return show(wait or "starting the workers")
        if still_s > _STALL_SECONDS:
            wait = wait or f"no step for {format_duration(still_s)}; workers that are lost are replaced"
        done = state["epoch"] - 1 + (state["step"] / state["steps"] if state["phase"] == "train" else 1)
        line = f"epoch {state['epoch']}/{self._epochs} {state['phase']} {state['step']}/{state['steps']}"
        if "loss" in state:
            line += f"  loss {state['loss']:.3f}"
        now = time.monotonic()
        if self._first is None or done < self._first[1]:
            self._first = (now, done)
        started, first = self._first
        if done > first and now > started:
            rate = (done - first) / (now - started)
            images = rate * state.get("images_per_epoch", 0)
            line += f"  {images:.1f} images/s  ETA {format_duration((self._epochs - done) / rate)}"
        show(f"{line}; {wait}" if wait else line)

    def _say_finished(self, state: dict[str, Any]) -> None:
        history = state.get("history", [])
        if self._shown_epochs is None:
            if not {"steps", "history"} & set(state):
                return  # no worker has said yet whether it goes on or begins
            self._shown_epochs = state.get("resumed", 0)
            if self._shown_epochs:
                best = _best_miou(history[: self._shown_epochs])
                self._console.say(
                    f"going on after epoch {self._shown_epochs}"
                    + (f"; best val mIoU so far {best:.4f}" if best is not None else "")
                )
        for row in history[self._shown_epochs :]:
            line = f"epoch {row['epoch']:3d}/{self._epochs}  loss {row['loss']:.4f}  "
            if row["val_miou"] is not None:
                line += f"val mIoU {row['val_miou']:.4f}  accuracy {row['val_pixel_accuracy']:.4f}  "
            line += f"{row['train_seconds'] + row['val_seconds']:.0f} s"
            is_best = row["val_miou"] is not None and row["val_miou"] == _best_miou(history[: row["epoch"]])
            self._console.say(line + ("  best" if is_best else ""))
        self._shown_epochs = max(self._shown_epochs, len(history))


class CountProgress:
    """`done of total` with rate and ETA, from the counters `ok` and `failed` on the board."""

    def __init__(self, console: Console, total: int, verb: str, describe_wait: DescribeWait = lambda *_: None):
        self._console, self._total, self._verb, self._counted = console, total, verb, 0
        self._describe_wait, self._began = describe_wait, time.monotonic()
        self._standstill = _Standstill()
        self._started: float | None = None

    @property
    def console(self) -> Console:
        return self._console

    def count(self, show: Callable[[str], None], number: int = 1) -> None:
        """So many more are done, in this process."""
        self._counted += number
        self.update({"ok": self._counted}, show)

    def update(self, state: dict[str, Any], show: Callable[[str], None]) -> None:
        """state: what ProgressBoard.read returns."""
        failed = state.get("failed", 0)
        done = min(self._total, state.get("ok", 0) + failed)  # a task that is run again counts again
        still_s, wait = self._standstill.lasts_s(done), None
        if still_s > _STALL_SECONDS or not done:
            wait = self._describe_wait(time.monotonic() - self._began, state.get("begun", 0))
        if not done:
            return show(wait or "starting the stages")
        if still_s > _STALL_SECONDS:
            wait = wait or f"no image for {format_duration(still_s)}; what is lost is done again"
        now = time.monotonic()
        if self._started is None:
            self._started, self._first = now, done
        line = f"{self._verb} {done}/{self._total}" + (f"  failed {failed}" if failed else "")
        if done > self._first:
            rate = (done - self._first) / (now - self._started)
            line += f"  {rate:.1f} images/s  ETA {format_duration((self._total - done) / rate)}"
        show(f"{line}; {wait}" if wait else line)


@contextmanager
def watch_board(board: Any, progress: TrainProgress | CountProgress) -> Iterator[None]:
    """Reads the board now and then and shows it, while the body runs."""
    import ray

    stop = threading.Event()

    def poll(show: Callable[[str], None]) -> None:
        """Shows the board until told to stop, and once more then, so that the last numbers are seen."""
        while True:
            stopping = stop.wait(_POLL_SECONDS)
            with suppress(ray.exceptions.RayError):  # the board is only for show
                progress.update(ray.get(board.read.remote(), timeout=10), show)
            if stopping:
                return

    with progress.console.live() as show:
        progress.update({}, show)  # the board may need seconds to start; what is waited for is said at once
        thread = threading.Thread(target=poll, args=(show,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=15)


def show_scores(console: Console, title: str, scores: dict[str, Any]) -> None:
    """The one table at the end of training and of evaluate, which knows boundaries, interval and worst images too."""
    boundary = scores.get("boundary_f1_by_class")
    keys = {"IoU": "iou", "Dice": "dice", "precision": "precision", "recall": "recall"}
    rows = [
        [
            entry["name"],
            *(_share(entry.get(key)) for key in keys.values()),
            *([_share(boundary[entry["name"]])] if boundary else []),
            f"{entry['pixels']:,}",
        ]
        for entry in scores["classes"]
    ]
    console.show_table(title, ["class", *keys, *(["boundary F1"] if boundary else []), "pixels"], rows)
    console.say(f"mIoU {scores['miou']:.6f}  pixel accuracy {scores['pixel_accuracy']:.6f}  images {scores['images']}")
    if scores.get("miou_interval_95", [None])[0] is not None:
        low, high = scores["miou_interval_95"]
        console.say(f"mIoU of other such images: {low:.3f} to {high:.3f} (95 %, bootstrap over images)")
        worst = ", ".join(f"{item['name']} {item['miou']:.3f}" for item in scores["worst_images"][:3])
        console.say(f"worst: {worst}")


def format_duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _best_miou(history: Sequence[dict[str, Any]]) -> float | None:
    return max((row["val_miou"] for row in history if row["val_miou"] is not None), default=None)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
