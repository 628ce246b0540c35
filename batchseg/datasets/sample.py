"""What every reader returns: samples by split, and the class table that gives their masks meaning."""

import hashlib
from dataclasses import dataclass

from batchseg import geometry as geo
from batchseg import images, storage
from batchseg.classes import ClassTable, MaskArray
from batchseg.errors import ImageError, UserError


@dataclass(frozen=True)
class Sample:
    """One labelled picture. `name` is its path relative to the data set, unique in its split."""

    name: str
    image: str
    mask: str


@dataclass(frozen=True)
class Dataset:
    """`reason` says how the format was recognised."""

    location: str
    format: str
    reason: str
    classes: ClassTable
    splits: dict[str, list[Sample]]

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split. Raises UserError naming the splits there are."""
        if split not in self.splits:
            raise UserError(f"data {self.location} has no split {split!r}; it has {', '.join(self.splits)}")
        if not self.splits[split]:
            raise UserError(f"data {self.location}: split {split!r} is empty (no image with a mask)")
        return self.splits[split]

    def fingerprint(self) -> str:
        """sha256 over classes, splits and names: another order of files is the same set, another file is not."""
        digest = hashlib.sha256(repr(self.classes.to_json()).encode())
        for split in sorted(self.splits):
            for name in sorted(sample.name for sample in self.splits[split]):
                digest.update(f"{split}\0{name}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class LoadedSample:
    """fitted: what the model sees. truth: class ids uint8 at the image's own size, 255 ignored."""

    fitted: geo.FittedImage
    truth: MaskArray


def load_sample(sample: Sample, classes: ClassTable, geometry: geo.Geometry) -> LoadedSample:
    """Reads picture and mask of one sample.

    Raises UserError naming the file when it is missing, unreadable, or when mask and picture differ in size.
    """
    try:
        fitted = geo.fit_encoded(storage.read_bytes(sample.image), geometry)
    except (ImageError, OSError) as error:
        raise UserError(f"image {sample.image} cannot be used: {error}") from error
    return LoadedSample(fitted, load_mask(sample, classes, fitted.plan.image_hw))


def load_mask(sample: Sample, classes: ClassTable, image_hw: tuple[int, int]) -> MaskArray:
    """The mask of one sample as class ids uint8 HxW. Raises UserError naming the file."""
    try:
        data = storage.read_bytes(sample.mask)
    except OSError as error:
        raise UserError(f"mask {sample.mask} cannot be read: {error}") from error
    truth = classes.to_class_ids(images.decode_mask(data, sample.mask), sample.mask)
    if truth.shape != image_hw:
        raise UserError(
            f"mask {sample.mask} is {truth.shape[1]}x{truth.shape[0]}, its image is {image_hw[1]}x{image_hw[0]} "
            f"(width x height, EXIF orientation applied). They must be equal."
        )
    return truth
