"""What every reader returns: samples by split, and the class table that gives their masks meaning."""

import hashlib
from dataclasses import dataclass

import cv2

from batchseg import geometry as geo
from batchseg import images, storage
from batchseg.classes import ClassTable, MaskArray, UintArray
from batchseg.datasets.masks import InstanceFiles, PanopticFile, read_mask_file
from batchseg.datasets.page import DatasetPage
from batchseg.datasets.shapes import CocoShapes
from batchseg.errors import ImageError, UserError

MaskSource = str | InstanceFiles | PanopticFile | CocoShapes
"""The location of a mask file, or what a mask is made of. str() of any of them names it in messages."""


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """may_resize: a mask of another size than its image is resized, by nearest. turns_with_image: the mask was drawn on
    the stored pixels of a photo whose EXIF orientation turns them, and is turned likewise.
    """

    may_resize: bool = False
    turns_with_image: bool = False


_DEFAULT_OPTIONS = MaskOptions()


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. `name` is its path relative to the data set, unique in its split."""

    name: str
    image: str
    mask: MaskSource
    options: MaskOptions = _DEFAULT_OPTIONS


@dataclass(frozen=True)
class Dataset:
    """`reason` says how the format was recognised. page: the declaration as read, or as recognised, with an absolute
    root.
    """

    location: str
    format: str
    reason: str
    classes: ClassTable
    splits: dict[str, list[Sample]]
    page: DatasetPage

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split. Raises UserError naming the splits there are."""
        if split not in self.splits:
            raise UserError(f"data {self.location} has no split {split!r}; it has {', '.join(self.splits)}")
        if not self.splits[split]:
            raise UserError(f"data {self.location}: split {split!r} is empty (no image with a mask)")
        return self.splits[split]

    def fingerprint(self) -> str:
        """sha256 over classes, splits, names, and COCO's annotations: another order of files is the same set."""
        digest = hashlib.sha256(repr(self.classes.to_json()).encode())
        for split in sorted(self.splits):
            for sample in sorted(self.splits[split], key=lambda sample: sample.name):
                digest.update(f"{split}\0{sample.name}\0".encode())
                if sample.options != _DEFAULT_OPTIONS:
                    digest.update(repr(sample.options).encode())
                if isinstance(sample.mask, PanopticFile):
                    digest.update(sample.mask.segment_ids + sample.mask.class_ids)
                if isinstance(sample.mask, CocoShapes):
                    digest.update(sample.mask.class_ids + sample.mask.parts + sample.mask.numbers + sample.mask.codes)
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
    """The mask of one sample as class ids uint8 HxW, as large as its image. Raises UserError naming the file."""
    truth = classes.to_class_ids(read_raw_mask(sample), str(sample.mask))
    if truth.shape == image_hw:
        return truth
    if sample.options.may_resize:
        # Nearest, not linear: averaging two class ids invents a third class.
        return cv2.resize(truth, image_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]
    raise UserError(
        f"mask {sample.mask} is {truth.shape[1]}x{truth.shape[0]}, its image is {image_hw[1]}x{image_hw[0]} "
        f"(width x height, EXIF orientation applied). They must be equal; `resize_masks: nearest` resizes masks."
    )


def read_raw_mask(sample: Sample) -> UintArray:
    """The mask as stored, before the class table and whatever its size: HxW of raw values (of class ids where it is
    made of annotations), or HxWx3 of colours. Raises UserError naming the file.
    """
    raw = read_mask_file(sample.mask) if isinstance(sample.mask, str) else sample.mask.read()
    if not sample.options.turns_with_image:
        return raw
    try:
        header = images.probe_image(storage.read_bytes(sample.image))
    except (ImageError, OSError) as error:
        raise UserError(f"image {sample.image} cannot be used: {error}") from error
    return images.apply_orientation(raw, header.orientation)
