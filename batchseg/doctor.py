"""The dataset doctor: looks at every image and mask of a set and names each file that will not do, with the fix."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from batchseg import images, storage
from batchseg.classes import IGNORE_ID, ClassTable
from batchseg.console import Console, CountProgress
from batchseg.datasets import Dataset, Sample, open_dataset
from batchseg.datasets.sample import load_mask
from batchseg.errors import ImageError, UserError

MAX_TRAINING_CHECK = 2000
"""Training looks at so many samples per split before it starts; the others are checked as they are read."""

_RARE_SHARE = 1e-4
_SHOWN_FINDINGS = 50


@dataclass(frozen=True)
class Finding:
    """An `error` stops training; a `warning` is worth a look. `message` names the file and the fix."""

    level: Literal["error", "warning"]
    message: str


@dataclass
class Diagnosis:
    """class_pixels: per split, valid pixels per class. brightness: of the grey means of images, 0-255.

    single_class: per split, how many masks hold one class only.
    """

    class_pixels: dict[str, list[int]] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    brightness: dict[str, float] = field(default_factory=dict)
    single_class: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


@dataclass(frozen=True)
class _Look:
    size_hw: tuple[int, int]
    brightness: float
    class_pixels: list[int]


def check_dataset(location: str, console: Console | None = None) -> tuple[Dataset, Diagnosis]:
    """Opens DATA and looks at every sample. Raises UserError when it cannot be opened."""
    dataset = open_dataset(location)
    diagnosis = check_samples(dataset.splits, dataset.classes, limit=None, console=console)
    _find_shared(dataset, diagnosis)
    return dataset, diagnosis


def check_samples(
    splits: Mapping[str, Sequence[Sample]],
    classes: ClassTable,
    limit: int | None = MAX_TRAINING_CHECK,
    console: Console | None = None,
) -> Diagnosis:
    """Reads images and masks, at most `limit` a split evenly spread. What is wrong becomes a finding."""
    diagnosis = Diagnosis()
    chosen = {split: list(samples)[:: _choose_stride(len(samples), limit)] for split, samples in splits.items()}
    progress = CountProgress(console or Console.quiet(), sum(map(len, chosen.values())), "looked at")
    bright: list[float] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, progress.console.live() as show:
        for split, samples in chosen.items():
            counts, single = np.zeros(len(classes), np.int64), 0
            for look in pool.map(lambda sample: _look_at(sample, classes), samples):
                progress.count(show)
                if isinstance(look, Finding):
                    diagnosis.findings.append(look)
                    continue
                counts += look.class_pixels
                single += np.count_nonzero(look.class_pixels) == 1
                diagnosis.sizes[look.size_hw] += 1
                bright.append(look.brightness)
            diagnosis.class_pixels[split] = counts.tolist()
            diagnosis.checked[split], diagnosis.single_class[split] = len(samples), int(single)
    if bright:
        low, mean, high = np.percentile(bright, 1), np.mean(bright), np.percentile(bright, 99)
        diagnosis.brightness = {"p1": round(float(low), 3), "mean": round(float(mean), 3), "p99": round(float(high), 3)}
    _find_rare(diagnosis, classes)
    return diagnosis


def _choose_stride(count: int, limit: int | None) -> int:
    """Every how-manieth of `count` is looked at, so that at most `limit` are."""
    return max(1, -(-count // limit)) if limit else 1


def _look_at(sample: Sample, classes: ClassTable) -> _Look | Finding:
    try:
        data = storage.read_bytes(sample.image)
        header = images.probe_image(data)
        # An eighth is enough for brightness, and damaged pixels show all the same.
        picture = images.decode_image(data, header, 8 if header.can_reduce else 1)
    except (ImageError, OSError) as error:
        return Finding("error", f"image {sample.image} cannot be used: {error}. Repair it or take it out.")
    try:
        truth = load_mask(sample, classes, header.size_hw)
    except UserError as error:
        return Finding("error", str(error))
    counts = np.bincount(truth.ravel(), minlength=IGNORE_ID + 1)
    if not counts[: len(classes)].any():
        return Finding("warning", f"mask {sample.mask} has no valid pixel: everything in it is ignored")
    return _Look(
        header.size_hw, float(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).mean()), counts[: len(classes)].tolist()
    )


def _find_rare(diagnosis: Diagnosis, classes: ClassTable) -> None:
    for split, counts in diagnosis.class_pixels.items():
        total = sum(counts)
        for name, count in zip(classes.names, counts, strict=True):
            if total and not count:
                diagnosis.findings.append(Finding("warning", f"split {split}: no pixel of class {name}"))
            elif total and count / total < _RARE_SHARE:
                diagnosis.findings.append(
                    Finding("warning", f"split {split}: class {name} is {count / total:.1e} of the pixels")
                )


def _find_shared(dataset: Dataset, diagnosis: Diagnosis) -> None:
    seen: dict[str, str] = {}
    for split, samples in dataset.splits.items():
        for sample in samples:
            other = seen.setdefault(sample.image, split)
            if other != split:
                diagnosis.findings.append(
                    Finding(
                        "warning", f"image {sample.image} is in the splits {other} and {split}: scores will flatter"
                    )
                )


def show_diagnosis(console: Console, dataset: Dataset, diagnosis: Diagnosis) -> None:
    """What `batchseg check` prints: the set in a table, then each finding with its file and fix."""
    console.say(f"{dataset.location}: format {dataset.format} ({dataset.reason})")
    splits = list(diagnosis.class_pixels)
    totals = {split: max(1, sum(counts)) for split, counts in diagnosis.class_pixels.items()}
    rows = [
        [name, *(f"{diagnosis.class_pixels[split][i] / totals[split]:.2%}" for split in splits)]
        for i, name in enumerate(dataset.classes.names)
    ]
    rows.append(["images", *(str(len(dataset.splits[split])) for split in splits)])
    console.show_table("share of the pixels", ["class", *splits], rows)
    sizes = ", ".join(f"{width}x{height} ({count})" for (height, width), count in diagnosis.sizes.most_common(4))
    console.say(f"sizes: {sizes}" + (" …" if len(diagnosis.sizes) > 4 else ""))
    for finding in diagnosis.findings[:_SHOWN_FINDINGS]:
        console.say(f"{finding.level}: {finding.message}")
    hidden = len(diagnosis.findings) - _SHOWN_FINDINGS
    console.say(
        f"{len(diagnosis.errors)} errors, {len(diagnosis.findings) - len(diagnosis.errors)} warnings"
        + (f"; {hidden} more not shown" if hidden > 0 else "")
    )
