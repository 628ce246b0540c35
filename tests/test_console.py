"""What a person sees, in a plain log: lines, tables, rate and ETA."""

import io
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from batchseg.console import Console, CountProgress, TrainProgress, format_duration, show_scores


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(stream: io.StringIO) -> Console:
    return Console(stream)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (7629, "2h07m"),
        (360000, "100h00m"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_say_prints_as_given(console: Console, stream: io.StringIO) -> None:
    # Paths and class names may hold brackets and colons.
    text = "[bold]not markup[/bold] /data/:cat:/a.png " + "x" * 200
    console.say(text)
    assert stream.getvalue() == text + "\n"


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console.quiet()
    console.say("hello")
    console.show_table("t", ["a"], [["b"]])
    with console.status("busy"), console.live() as show:
        show("line")
    assert capfd.readouterr() == ("", "")


def test_table(console: Console, stream: io.StringIO) -> None:
    console.show_table("title", ["class", "IoU"], [["road", "0.5"], ["sky", "0.25"]])
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines == ["title", "class   IoU", "road    0.5", "sky    0.25"]


@pytest.mark.parametrize("name", ["[rail]", "a[/b]", "[red]x", ":cat:", "plain"])
def test_table_prints_names_as_given(console: Console, stream: io.StringIO, name: str) -> None:
    # A class may have any name; brackets are no markup.
    console.show_table("title", ["class", "IoU"], [[name, "0.5"]])
    assert name in stream.getvalue()


def test_show_scores(console: Console, stream: io.StringIO) -> None:
    classes = [
        {"name": "road", "iou": 0.5, "dice": 2 / 3, "precision": 0.8, "recall": 0.6, "pixels": 1234567},
        {"name": "tree", "iou": None, "dice": None, "pixels": 0},
    ]
    show_scores(console, "scores", {"classes": classes, "miou": 0.5, "pixel_accuracy": 0.75, "images": 9})
    text = stream.getvalue()
    assert ["road", "0.5000", "0.6667", "0.8000", "0.6000", "1,234,567"] in [line.split() for line in text.splitlines()]
    assert ["tree", "-", "-", "-", "-", "0"] in [line.split() for line in text.splitlines()]
    assert "mIoU 0.500000  pixel accuracy 0.750000  images 9" in text


def test_status_is_silent_in_a_log(console: Console, stream: io.StringIO) -> None:
    with console.status("listing"):
        pass
    assert stream.getvalue() == ""


def test_live_prints_now_and_then_in_a_log(console: Console, stream: io.StringIO) -> None:
    for what in ("listing", "segmented"):
        with console.live() as show:
            for index in range(1000):
                show(f"{what} {index}")
    assert stream.getvalue() == "listing 0\nsegmented 0\n"
    with console.live() as show:
        for line in ("starting the stages", "starting the stages", "waiting for nodes", "waiting for nodes"):
            show(line)
    assert stream.getvalue().splitlines()[2:] == ["starting the stages", "waiting for nodes"], "another matter, at once"


def make_epoch(epoch: int, miou: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 1 / epoch,
        "val_miou": miou,
        "val_pixel_accuracy": 0.9,
        "train_seconds": 30.0,
        "val_seconds": 4.0,
    }


def test_train_progress(console: Console, stream: io.StringIO) -> None:
    progress, shown = TrainProgress(console, epochs=3), []
    progress.update({}, shown.append)
    assert shown == ["starting the workers"]
    state = {"epoch": 1, "step": 1, "steps": 10, "phase": "train", "images_per_epoch": 40, "loss": 0.5}
    progress.update(state, shown.append)
    assert shown[-1] == "epoch 1/3 train 1/10  loss 0.500"
    progress.update({**state, "step": 5}, shown.append)
    assert shown[-1].startswith("epoch 1/3 train 5/10  loss 0.500  ")
    assert "images/s  ETA " in shown[-1]
    history = [make_epoch(1, 0.4), make_epoch(2, 0.3)]
    progress.update({**state, "history": history[:1]}, shown.append)
    progress.update({**state, "history": history}, shown.append)
    progress.update({**state, "history": history}, shown.append)
    assert stream.getvalue().splitlines() == [
        "epoch   1/3  loss 1.0000  val mIoU 0.4000  accuracy 0.9000  34 s  best",
        "epoch   2/3  loss 0.5000  val mIoU 0.3000  accuracy 0.9000  34 s",
    ]


def test_train_progress_goes_on(console: Console, stream: io.StringIO) -> None:
    progress = TrainProgress(console, epochs=4)
    history = [make_epoch(1, 0.4), make_epoch(2, 0.3)]
    # The workers need seconds before they say where they begin.
    progress.update({}, lambda text: None)
    assert stream.getvalue() == ""
    progress.update({"resumed": 2, "history": history}, lambda text: None)
    progress.update({"resumed": 2, "history": [*history, make_epoch(3, 0.5)]}, lambda text: None)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "going on after epoch 2; best val mIoU so far 0.4000"
    assert len(lines) == 2
    assert lines[1].startswith("epoch   3/4")
    assert lines[1].endswith("best")


def test_train_progress_of_a_first_run_after_empty_polls(console: Console, stream: io.StringIO) -> None:
    progress = TrainProgress(console, epochs=2)
    for state in ({}, {}, {"history": [make_epoch(1, 0.4)]}):
        progress.update(state, lambda text: None)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("epoch   1/2  loss 1.0000")


def test_count_progress(console: Console) -> None:
    progress, shown = CountProgress(console, total=100, verb="segmented"), []
    progress.update({}, shown.append)
    progress.update({"ok": 10}, shown.append)
    assert shown == ["starting the stages", "segmented 10/100"]
    progress.update({"ok": 18, "failed": 2}, shown.append)
    assert shown[-1].startswith("segmented 20/100  failed 2  ")
    assert "images/s  ETA " in shown[-1]


def test_what_is_waited_for_is_said_again_when_nothing_moves(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def describe_wait(waited_s: float, begun: int) -> str | None:
        asked.append((waited_s, begun))
        return "waiting for nodes" if waited_s < 60 else None

    segmenting = CountProgress(console, 100, "segmented", describe_wait)
    training = TrainProgress(console, 2, describe_wait)
    step = {"epoch": 1, "phase": "train", "step": 3, "steps": 8, "begun": 2}
    shown: list[str] = []
    for seconds in (0, 15, 30):
        now[0] = 100.0 + seconds
        segmenting.update({"ok": 10, "begun": 1}, shown.append)
        training.update(step, shown.append)
    assert shown == [
        *["segmented 10/100", "epoch 1/2 train 3/8"] * 2,
        "segmented 10/100; waiting for nodes",
        "epoch 1/2 train 3/8; waiting for nodes",
    ]
    assert asked == [(30, 1), (30, 2)]
    now[0] = 165.0
    segmenting.update({"ok": 10, "begun": 1}, shown.append)
    training.update(step, shown.append)
    assert shown[-2:] == [
        "segmented 10/100; no image for 1m05s; what is lost is done again",
        "epoch 1/2 train 3/8; no step for 1m05s; workers that are lost are replaced",
    ]
    segmenting.update({"ok": 12, "begun": 1}, shown.append)
    assert "waiting" not in shown[-1]
    assert "lost" not in shown[-1]


def test_logs_go_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import batchseg.cluster  # noqa: F401  Ray Data gives its logger a handler of its own

    loggers = [logging.getLogger(name) for name in ("batchseg", "ray", "ray.data")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    path = tmp_path / "batchseg.log"
    try:
        Console.quiet().log_into(str(tmp_path))
        assert [logger.handlers[:] for logger in loggers] == [handlers for handlers, *_ in before]
        Console().log_into(str(tmp_path))
        assert not path.exists()
        logging.getLogger("ray.data").warning("too warm")
        logging.getLogger("batchseg").error("ünknown")
        lines = path.read_text(encoding="utf-8").splitlines()
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            for handler in set(logger.handlers) - set(handlers):
                handler.close()
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING ray.data: too warm", "ERROR batchseg: ünknown"]
    assert capfd.readouterr() == ("", "")
