"""The door of training: everything that can be refused before Ray starts is refused here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchseg import cluster, doctor, storage
from batchseg.bundle import read_card
from batchseg.config import DRAWN_DATA, ModelConfig, TrainConfig
from batchseg.console import Console
from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.drawn import TRAIN_IMAGES, draw_dataset
from batchseg.errors import UserError
from batchseg.model_knobs import ARCHITECTURES
from batchseg.train_folder import check_same_data, describe_changes
from batchseg.train_task import TrainTask, choose_class_weights


@dataclass(frozen=True)
class OpenedJob:
    """A config whose data were looked at. model: that of the config, with absolute paths, since workers run elsewhere.

    facts: what the doctor found. class_weights: None where classes weigh the same.
    """

    config: TrainConfig
    model: ModelConfig
    dataset: Dataset
    facts: doctor.Diagnosis
    class_weights: list[float] | None

    def describe(self) -> str:
        """The model and the numbers of images, for a person."""
        name = self.model.architecture if self.model.is_given else f"{self.model.architecture} on {self.model.encoder}"
        train, val = (len(self.dataset.samples(split)) for split in ("train", "val"))
        return f"{name}: {train} train and {val} val images"

    def list_files(self) -> list[str]:
        """Some of what workers read: an image of each split, and the files of the model."""
        model = self.model
        files = [model.architecture if model.is_given else model.encoder_weights, model.start_from or ""]
        images = [self.dataset.samples(split)[0].image for split in ("train", "val")]
        return [*images, *(name for name in files if name not in ("", "imagenet", "none"))]

    def make_task(self, threads: int, board: Any, lease: str | None = None) -> TrainTask:
        """What every worker is told. lease: the token of the one on out, None where nothing is written."""
        return TrainTask(
            config=self.config.model_copy(update={"model": self.model}),
            classes=self.dataset.classes,
            train=self.dataset.samples("train"),
            val=self.dataset.samples("val"),
            class_weights=self.class_weights,
            threads=threads,
            board=board,
            lease=lease,
            fingerprint=self.dataset.fingerprint(),
        )


def open_job(config: TrainConfig, console: Console, drawn_folder: Callable[[], str]) -> OpenedJob:
    """Looks at model files, sizes and data. drawn_folder: gives the local folder for the set that is drawn.

    Raises UserError before anything but that set is written.
    """
    model = find_model_files(config.model)
    check_sizes(config, TRAIN_IMAGES if config.data == DRAWN_DATA else None)
    data = str(draw_dataset(_to_path(drawn_folder()))) if config.data == DRAWN_DATA else config.data
    with console.status(f"opening {data}"):  # a share that is stratified reads all masks
        dataset = open_dataset(data)
    console.say(f"data {dataset.location}: format {dataset.format} ({dataset.reason})")
    check_same_data(config.out, dataset)
    if changes := describe_changes(config):
        console.say(f"{config.out} goes on with {changes}")
    facts = check_data(dataset, config, console)
    weights = choose_class_weights(
        config.training.class_weights,
        facts.class_pixels["train"],
        dataset.classes.names,
        is_sample=facts.checked["train"] < len(dataset.samples("train")),
    )
    return OpenedJob(config, model, dataset, facts, weights)


def check_sizes(config: TrainConfig, train_images: int | None) -> None:
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
    check_sizes(config, len(train))
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


def find_model_files(model: ModelConfig) -> ModelConfig:
    """The paths in `model` made absolute, since workers run elsewhere. Raises UserError for what does not exist."""
    found: dict[str, str] = {}
    if model.encoder_weights not in ("imagenet", "none") and not model.is_given:
        found["encoder_weights"] = _find_file("encoder_weights", model.encoder_weights, "imagenet, none, or a path")
    if model.is_given:
        found["architecture"] = _find_file("architecture", model.architecture, f"{', '.join(ARCHITECTURES)}, or a path")
    if model.start_from:
        found["start_from"] = read_card(cluster.resolve_bundle(model.start_from)).location
    return model.model_copy(update=found)


def _find_file(knob: str, given: str, allowed: str) -> str:
    absolute = storage.to_absolute(given)
    if storage.is_remote(absolute) or storage.file_type(absolute) != "file":
        raise UserError(f"model.{knob}: {absolute} is no local file; allowed are {allowed}")
    return absolute


def _to_path(location: str) -> Path:
    if storage.is_remote(location):
        raise UserError("the drawn set needs a local out; give --data for an s3:// one")
    return Path(location)
