"""The history of a training run as one picture: loss, scores, classes, learning rate."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

History = Sequence[dict[str, Any]]
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # of Okabe and Ito, told apart by colour-blind people too
_MOST_LINES = 12


def draw_curves(history: History, class_colors: dict[str, tuple[int, int, int]]) -> bytes:
    """A PNG of four plots over the epochs. history: the rows of metrics.csv; val columns may be None.

    class_colors: RGB by class name; of more than a dozen classes the worst at the end are drawn.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, scores), (rate, classes) = figure.subplots(2, 2)
    _plot(loss, history, "loss", "loss", _BLUE)
    loss.set_title("training loss")
    _plot(scores, history, "val_miou", "mIoU", _BLUE)
    _plot(scores, history, "val_pixel_accuracy", "pixel accuracy", _ORANGE)
    scores.set_title(_describe_best(history))
    scores.legend()
    for name in pick_classes(history, list(class_colors)):
        last = _last_value(history, f"val_iou/{name}")
        label = name if last is None else f"{name} {last:.2f}"
        _plot(classes, history, f"val_iou/{name}", label, "#" + bytes(class_colors[name]).hex())
    classes.set_title("IoU by class on val")
    classes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    _plot(rate, history, "learning_rate", "learning rate", _BLUE)
    rate.set_title("learning rate at the end of each epoch")
    for axes in (loss, scores, classes, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    for axes in (scores, classes):
        axes.set_ylim(0, 1)
    page = io.BytesIO()
    figure.savefig(page, format="png", dpi=100)
    return page.getvalue()


def pick_classes(history: History, names: Sequence[str]) -> list[str]:
    """The classes whose lines are drawn, from the best down: all, or of many those with the lowest last IoU.

    A legend in the order of the lines tells them apart where their colours do not.
    """
    last = {name: _last_value(history, f"val_iou/{name}") for name in names}
    known = {name: value for name, value in last.items() if value is not None}
    if not known:
        return list(names)[:_MOST_LINES]
    return sorted(known, key=lambda name: known[name], reverse=True)[-_MOST_LINES:]


def _last_value(history: History, key: str) -> float | None:
    """In the last scored epoch; None for a class that does not occur."""
    scored = [row for row in history if row["val_miou"] is not None]
    return scored[-1][key] if scored else None


def _plot(axes: Axes, history: History, key: str, label: str, color: str) -> None:
    points = [(row["epoch"], row[key]) for row in history if row[key] is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], color=color, label=label, marker="." if points else "")


def _describe_best(history: History) -> str:
    scored = [row for row in history if row["val_miou"] is not None]
    if not scored:
        return "val: not scored yet"
    best = max(scored, key=lambda row: row["val_miou"])
    return f"val: best mIoU {best['val_miou']:.4f} in epoch {best['epoch']}"
