"""Training from config to bundle: data set -> Ray Train -> best checkpoint -> sealed bundle."""

import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from batchseg import board as boards
from batchseg import cluster, doctor, sizing, storage
from batchseg import geometry as geo
from batchseg.bundle import BundleCard, GoldenSample, read_card, save_bundle
from batchseg.config import DRAWN_DATA, RESOLVED_HEADER, ModelConfig, TrainConfig
from batchseg.console import Console, TrainProgress, watch_board
from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.drawn import TRAIN_IMAGES, draw_dataset
from batchseg.datasets.sample import load_sample
from batchseg.datasets.splitting import SPLITS_FOLDER, write_splits
from batchseg.errors import UserError
from batchseg.knobs import ARCHITECTURES
from batchseg.runtime import load_tensorflow
from batchseg.train_folder import (
    BUNDLE_FOLDER,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    SCORES_FILE,
    check_out,
    check_same_data,
)
from batchseg.train_task import TrainTask, choose_class_weights, read_checkpoint

_GOLDEN_SIDE = 192


@dataclass(frozen=True)
class TrainResult:
    """Where the bundle lies, its scores on val, and whether it was there before."""

    bundle: str
    scores: dict[str, Any]
    was_finished: bool


def train_model(config: TrainConfig, *, address: str | None = None, console: Console | None = None) -> TrainResult:
    """Trains (or goes on training) into config.out. Raises UserError before anything is written if something
    is wrong.
    """
    console = console or Console.quiet()
    config = config.model_copy(update={"out": cluster.resolve_output(config.out)})
    finished = check_out(config)
    if finished:
        console.say(f"{config.out} is finished already; more training.epochs would go on")
        return TrainResult(finished.location, finished.scores, was_finished=True)
    model = find_model_files(config.model)
    _check_sizes(config, TRAIN_IMAGES if config.data == DRAWN_DATA else None)
    data = config.data
    if data == DRAWN_DATA:
        data = str(draw_dataset(_local_folder(storage.join(config.out, "data"))))
    with console.status(f"opening {data}"):  # a share that is stratified reads all masks
        dataset = open_dataset(data)
    console.say(f"data {dataset.location}: format {dataset.format} ({dataset.reason})")
    check_same_data(config.out, dataset)
    facts = check_data(dataset, config, console)
    with cluster.connect(address):
        plan = sizing.plan_training_workers(
            config.cluster, config.training.batch_size, config.training.accumulation
        )
        storage.make_folder(config.out)
        cluster.check_shared(config.out)
        console.log_into(config.out)
        # Before the config of a longer run: one with scores is whole, and these come last again.
        storage.delete_file(storage.join(config.out, SCORES_FILE))
        page = f"{RESOLVED_HEADER}{dataset.fingerprint()}\n{config.to_yaml()}"
        storage.write_atomic(storage.join(config.out, CONFIG_FILE), page)
        write_splits(dataset, storage.join(config.out, SPLITS_FOLDER))
        board = boards.start_board()
        task = make_task(config, model, dataset, facts, plan.threads, board)
        console.say(
            f"training {_describe_model(model)}: {len(task.train)} train and "
            f"{len(task.val)} val images, {plan.describe()} x {plan.cpus:g} CPU {plan.gpus:g} GPU -> {config.out}"
        )
        with boards.unwrap_errors(board):
            with watch_board(board, TrainProgress(console, config.training.epochs)):
                best = run_training(task, plan)
            with console.status("sealing the bundle"):
                card = ray.get(_seal_in_worker.remote(task, best, _data_facts(dataset, facts)))
    storage.write_atomic(storage.join(config.out, SCORES_FILE), json.dumps(card.scores, indent=1))
    return TrainResult(card.location, card.scores, was_finished=False)


def _describe_model(model: ModelConfig) -> str:
    return model.architecture if model.is_given else f"{model.architecture} on {model.encoder}"


def _check_sizes(config: TrainConfig, train_images: int | None) -> None:
    """Raises UserError for sizes that do not go together. train_images: None where not known yet."""
    crop, size = config.augment.crop, config.input.size
    if crop and (crop[0] > size[0] or crop[1] > size[1]):
        raise UserError(f"augment.crop {list(crop)} is larger than input.size {list(size)}")
    if train_images is not None and train_images < config.training.batch_size:
        raise UserError(
            f"training.batch_size is {config.training.batch_size}, the train split has {train_images} images; "
            f"a batch cannot be larger than the split"
        )


def check_data(dataset: Dataset, config: TrainConfig, console: Console) -> doctor.Diagnosis:
    """Looks at the data before Ray starts. Raises UserError naming the first file that cannot be used."""
    train, val = dataset.samples("train"), dataset.samples("val")
    _check_sizes(config, len(train))
    diagnosis = doctor.check_samples({"train": train, "val": val}, dataset.classes, console=console)
    for finding in diagnosis.errors:
        raise UserError(
            finding.message
            + (
                f" ({len(diagnosis.errors) - 1} more such findings; `batchseg check` lists them)"
                if len(diagnosis.errors) > 1
                else ""
            )
        )
    return diagnosis


def make_task(
    config: TrainConfig, model: ModelConfig, dataset: Dataset, facts: doctor.Diagnosis, threads: int, board: Any
) -> TrainTask:
    """What every worker is told. model: that of the config, with absolute paths."""
    weights = choose_class_weights(
        config.training.class_weights, facts.class_pixels["train"], dataset.classes.names
    )
    return TrainTask(
        config=config.model_copy(update={"model": model}),
        classes=dataset.classes,
        train=dataset.samples("train"),
        val=dataset.samples("val"),
        class_weights=weights,
        threads=threads,
        board=board,
        fingerprint=dataset.fingerprint(),
    )


def find_model_files(model: ModelConfig) -> ModelConfig:
    """The paths in `model` made absolute, since workers run elsewhere. Raises UserError for what does not exist."""
    found: dict[str, str] = {}
    if model.encoder_weights not in ("imagenet", "none") and not model.is_given:
        found["encoder_weights"] = _find_file("encoder_weights", model.encoder_weights, "imagenet, none, or a path")
    if model.is_given:
        found["architecture"] = _find_file("architecture", model.architecture, f"{', '.join(ARCHITECTURES)}, or a path")
    if model.start_from:
        found["start_from"] = read_card(model.start_from).location
    return model.model_copy(update=found)


def _find_file(knob: str, given: str, allowed: str) -> str:
    absolute = storage.to_absolute(given)
    if storage.is_remote(absolute) or storage.file_type(absolute) != "file":
        raise UserError(f"model.{knob}: {absolute} is no local file; allowed are {allowed}")
    return absolute


def run_training(task: TrainTask, plan: sizing.WorkerPlan) -> ray.train.Checkpoint:
    """Runs Ray Train to the end and returns the checkpoint with the best val mIoU. An earlier run goes on."""
    load_tensorflow()  # both of these import it: late and quietly
    from ray.train.tensorflow import TensorflowTrainer

    from batchseg.train_loop import run_worker

    filesystem, path = storage.filesystem_of(task.config.out)
    trainer = TensorflowTrainer(
        run_worker,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=plan.size,
            use_gpu=plan.gpus > 0,
            resources_per_worker={"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})},
        ),
        run_config=RunConfig(
            storage_path=path,
            # Ours, which knows the endpoint of AWS_ENDPOINT_URL_S3; of a local path Ray makes folders by itself.
            storage_filesystem=filesystem if storage.is_remote(task.config.out) else None,
            name=CHECKPOINT_FOLDER,
            failure_config=FailureConfig(max_failures=task.config.cluster.max_failures),
            # Ray keeps the newest besides the best two; what a kill cut off is never the only one.
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="val_miou", checkpoint_score_order="max"
            ),
        ),
    )
    result = _fit_interruptibly(trainer)
    boards.raise_reported(task.board)
    checkpoints = result.best_checkpoints or []
    if not checkpoints:
        raise RuntimeError("Ray Train ended without a checkpoint")
    return max(checkpoints, key=lambda pair: pair[1]["val_miou"])[0]


def _fit_interruptibly(trainer: Any) -> Any:
    """trainer.fit(), but Ctrl-C is a KeyboardInterrupt: Ray Train's handler ends the process with 0, and stays on."""
    if threading.current_thread() is not threading.main_thread():
        return trainer.fit()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


@ray.remote(num_cpus=1, num_gpus=0)
def _seal_in_worker(task: TrainTask, checkpoint: Any, data: dict[str, Any]) -> BundleCard:
    """In a process of its own: the driver has no model, and no GPU."""
    return seal_bundle(task, checkpoint, data)


def seal_bundle(task: TrainTask, checkpoint: ray.train.Checkpoint, data: dict[str, Any]) -> BundleCard:
    """Checkpoint -> bundle: a float32 model with its weights, its scores, and a golden image with its mask."""
    from batchseg.models import build_model
    from batchseg.predict import make_forward

    with checkpoint.as_directory() as folder:
        state, arrays = read_checkpoint(folder)
    spec = task.config.model.model_copy(update={"encoder_weights": "none"})
    model = build_model(spec, len(task.classes), batch_norm_momentum=task.config.training.batch_norm_momentum)
    model.set_weights(arrays["average"] or arrays["weights"])
    canvas = _crop_center(load_sample(task.val[0], task.classes, task.geometry).fitted.canvas, task.geometry.stride)
    golden = GoldenSample(canvas, make_forward(model)(canvas[None])[0][0])
    return save_bundle(
        storage.join(task.config.out, BUNDLE_FOLDER),
        model,
        classes=task.classes,
        geometry=task.geometry,
        golden=golden,
        facts={
            "model": task.config.model.model_dump(mode="json"),
            "data": data,
            "scores": {**state["scores"], "epoch": state["history"][-1]["epoch"]},
        },
    )


def _crop_center(canvas: Any, stride: int) -> Any:
    """At most _GOLDEN_SIDE pixels a side, multiples of the stride, out of the middle; mirrored where it is smaller."""
    height, width = (max(stride, min(side, _GOLDEN_SIDE) // stride * stride) for side in canvas.shape[:2])
    ignored = np.zeros(canvas.shape[:2], np.uint8)
    return np.ascontiguousarray(geo.crop_center(canvas, ignored, (height, width))[0])


def _data_facts(dataset: Dataset, facts: doctor.Diagnosis) -> dict[str, Any]:
    pixels = np.asarray(facts.class_pixels["train"], np.float64)
    return {
        "fingerprint": dataset.fingerprint(),
        "images": {split: len(samples) for split, samples in dataset.splits.items()},
        "class_shares": (pixels / max(1.0, pixels.sum())).tolist(),
        "brightness": facts.brightness,
        "single_class_share": facts.single_class["train"] / max(1, facts.checked["train"]),
    }


def _local_folder(location: str) -> Path:
    if storage.is_remote(location):
        raise UserError("the drawn set needs a local out; give --data for an s3:// one")
    return Path(location)


if __name__ == "__main__":
    import sys

    from batchseg.cli import main

    main(["train", *sys.argv[1:]])
