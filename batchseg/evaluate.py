"""Scores of a bundle on labelled data, through the very stream that `segment` uses."""

import json
import pickle
from typing import Any

import pyarrow as pa

from batchseg import board as boards
from batchseg import cluster, sizing, storage
from batchseg.bundle import BundleCard, check_weights, read_card
from batchseg.classes import ClassTable
from batchseg.console import Console, CountProgress, watch_board
from batchseg.datasets import Dataset, Sample, open_dataset
from batchseg.errors import UserError
from batchseg.image_scores import describe_images
from batchseg.images import DEFAULT_MAX_MEGAPIXELS
from batchseg.results import ScoreStage, sum_scores
from batchseg.stages import FitStage
from batchseg.stream import ModelSpec, Score, add_last_stage, build_stream, release_actors


def evaluate_dataset(
    location: str,
    bundle: str,
    *,
    split: str | None = None,
    out: str | None = None,
    batch_size: int = 8,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """The content of scores.json for a split (default test if there is one, else val), written to out/scores.json.

    Raises UserError for data or a bundle that cannot be used, or classes that differ between them.
    """
    console = console or Console.quiet()
    out = cluster.resolve_output(out) if out else None
    if out and storage.exists(storage.join(out, "checkpoints")):
        raise UserError(f"--out {out} is a training run, whose scores.json are those of val; give another folder")
    card = read_card(cluster.resolve_bundle(bundle))
    check_weights(card)
    with cluster.join(address):
        sizing.plan_stream(actors, gpus_per_actor)
    with console.status(f"opening {location}"):
        dataset = open_dataset(location)
    console.say(f"data {dataset.location}: format {dataset.format} ({dataset.reason})")
    split = split or ("test" if "test" in dataset.splits else "val")
    samples = dataset.samples(split)
    _check_classes(dataset, card.classes, bundle)
    with cluster.connect(address):
        plan = sizing.plan_stream(actors, gpus_per_actor)
        for remark in plan.wanted.list_remarks():
            console.say(remark)
        cluster.check_shared(None, [card.location, samples[0].image])
        parts = _score_samples(dataset, samples, card, batch_size, plan, console)
    total, images, problems = sum_scores(parts, len(dataset.classes))
    if problems:
        raise UserError(f"{problems[0]} ({len(problems)} images of split {split} cannot be scored)")
    if not total.counts.any():
        raise UserError(f"split {split} of {location} has no pixel of any class: all its masks are ignored")
    names = dataset.classes.names
    scores = {
        "split": split,
        "bundle": card.digest,
        **total.to_scores(names, len(samples)),
        **describe_images(images, names),
    }
    if out:
        location = storage.join(out, "scores.json")
        storage.write_atomic(location, json.dumps(scores, indent=1))
        console.say(f"scores: {location}")
    return scores


def _score_samples(
    dataset: Dataset,
    samples: list[Sample],
    card: BundleCard,
    batch_size: int,
    plan: sizing.StreamPlan,
    console: Console,
) -> list[dict[str, Any]]:
    """Drives the samples through the stream. What comes out is what sum_scores takes."""
    board = boards.start_board()
    score = ScoreStage(dataset.classes, card.geometry, board)
    fit = FitStage(card.geometry, DEFAULT_MAX_MEGAPIXELS, None)
    shown = watch_board(board, CountProgress(console, len(samples), "scored", plan.wanted.describe_wait))
    with shown, boards.unwrap_errors(board):
        stream = build_stream(_list_samples(samples), fit, ModelSpec(card.location, batch_size), plan, board)
        with release_actors(board):
            parts: list[dict[str, Any]] = add_last_stage(stream, Score(score, board), plan).take_all()
    return parts


def _check_classes(dataset: Dataset, classes: ClassTable, bundle: str) -> None:
    if dataset.classes.names != classes.names:
        raise UserError(
            f"data {dataset.location} has the classes {', '.join(dataset.classes.names)}; "
            f"bundle {bundle} was trained on {', '.join(classes.names)}"
        )


def _list_samples(samples: list[Sample]) -> pa.Table:
    return pa.table(
        {
            "image_id": [sample.name for sample in samples],
            "uri": [sample.image for sample in samples],
            "sample": [pickle.dumps(sample) for sample in samples],
            "bytes": pa.nulls(len(samples), pa.int64()),
        }
    )


if __name__ == "__main__":
    import sys

    from batchseg.cli import main

    main(["evaluate", *sys.argv[1:]])
