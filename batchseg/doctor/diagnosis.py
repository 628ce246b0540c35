"""The examination: every sample is looked at, and what was seen becomes counts and findings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchseg import storage
from batchseg.classes import ClassTable
from batchseg.console import Console, CountProgress
from batchseg.datasets import Dataset, Sample, open_dataset
from batchseg.datasets.page import DatasetPage
from batchseg.datasets.problems import Problem
from batchseg.doctor.class_findings import find_class_troubles
from batchseg.doctor.facts import BAD, NO_IMAGE, ChunkFacts, DatasetFacts, Trouble
from batchseg.doctor.finding import Finding, sort_findings
from batchseg.doctor.look import Chunk, Looker
from batchseg.doctor.opening_findings import find_opening_troubles
from batchseg.doctor.picture_findings import find_picture_troubles
from batchseg.doctor.pool import ChunkPool, count_cores
from batchseg.doctor.samples import find_file_troubles
from batchseg.doctor.value_findings import find_value_troubles
from batchseg.doctor.videos import find_videos, report_videos

MAX_TRAINING_CHECK = 2000
"""Training looks at so many samples per split before it starts; the others are checked as they are read."""

_CHUNK = 16


@dataclass
class Diagnosis:
    """class_pixels: per split, valid pixels per class. brightness: of the grey means of images, 0-255.

    single_class: per split, how many masks hold one class only. findings: the worst first.
    """

    facts: DatasetFacts
    checked: dict[str, int] = field(default_factory=dict)
    class_pixels: dict[str, list[int]] = field(default_factory=dict)
    brightness: dict[str, float] = field(default_factory=dict)
    single_class: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]


def check_dataset(location: str, console: Console | None = None) -> tuple[Dataset, Diagnosis]:
    """Opens DATA and looks at every sample. Raises UserError when it cannot be opened."""
    problems: list[Problem] = []
    console = console or Console.quiet()
    with console.status(f"opening {location}"):
        dataset = open_dataset(location, problems)
    facts = look_at_all(dataset.splits, dataset.classes, console)
    diagnosis = diagnose(facts, dataset.page)
    videos = find_videos(facts)
    beside = [*find_picture_troubles(facts, videos), *report_videos(facts, dataset.page, videos)]
    diagnosis.findings = sort_findings(
        [*find_opening_troubles(problems, dataset.page.root), *diagnosis.findings, *beside]
    )
    return dataset, diagnosis


def check_samples(
    splits: Mapping[str, Sequence[Sample]],
    classes: ClassTable,
    limit: int | None = MAX_TRAINING_CHECK,
    console: Console | None = None,
) -> Diagnosis:
    """Reads images and masks, at most `limit` a split evenly spread. What is wrong becomes a finding."""
    chosen = {split: _spread(samples, limit) for split, samples in splits.items()}
    facts = look_at_all(chosen, classes, console or Console.quiet())
    return diagnose(facts)


def look_at_all(splits: Mapping[str, Sequence[Sample]], classes: ClassTable, console: Console) -> DatasetFacts:
    """Looks at every sample, on all cores."""
    facts = DatasetFacts.make_empty(splits, classes)
    looker = Looker(classes)
    progress = CountProgress(console, len(facts), "looked at")
    is_remote = any(storage.is_remote(samples[0].image) for samples in splits.values() if samples)
    pool: ChunkPool[Chunk, ChunkFacts] = ChunkPool(looker, looker.blame, count_cores(), is_remote=is_remote)
    with pool, console.live() as show:
        for chunk in pool.run(_cut_chunks(facts)):
            facts.add(chunk)
            progress.count(show, len(chunk.samples.troubles))
    return facts


def diagnose(facts: DatasetFacts, page: DatasetPage | None = None) -> Diagnosis:
    """Counts and findings about files and classes."""
    diagnosis = Diagnosis(facts)
    for split in facts.splits:
        diagnosis.checked[split] = len(facts.splits[split])
        diagnosis.class_pixels[split] = facts.class_pixels[split].tolist()
        troubles = facts.samples.troubles[facts.slice_of(split)]
        is_single = (troubles & np.uint32(Trouble.SINGLE_CLASS)) > 0
        diagnosis.single_class[split] = int(np.count_nonzero(is_single & ((troubles & np.uint32(BAD)) == 0)))
    bright = facts.samples.brightness[(facts.samples.troubles & np.uint32(NO_IMAGE)) == 0]
    if len(bright):
        low, mean, high = np.percentile(bright, 1), np.mean(bright), np.percentile(bright, 99)
        diagnosis.brightness = {"p1": round(float(low), 3), "mean": round(float(mean), 3), "p99": round(float(high), 3)}
    found = [*find_file_troubles(facts), *find_value_troubles(facts), *find_class_troubles(facts, page)]
    diagnosis.findings = sort_findings(found)
    return diagnosis


def _spread(samples: Sequence[Sample], limit: int | None) -> Sequence[Sample]:
    """Every how-manieth of them, so that at most `limit` are looked at."""
    return samples[:: max(1, -(-len(samples) // limit))] if limit else samples


def _cut_chunks(facts: DatasetFacts) -> Iterator[Chunk]:
    for split, samples in facts.splits.items():
        for start in range(0, len(samples), _CHUNK):
            yield Chunk(facts.starts[split] + start, split, samples[start : start + _CHUNK])
