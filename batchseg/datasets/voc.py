"""Format `voc`: the folders of PASCAL VOC 2012 (JPEGImages, SegmentationClass, ImageSets/Segmentation/*.txt)."""

from typing import Any

from batchseg import storage
from batchseg.datasets.lists import read_lines
from batchseg.datasets.patterns import Excluded
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import MaskOptions, Sample
from batchseg.errors import UserError
from batchseg.images import is_image_name

IMAGES, MASKS = "JPEGImages", "SegmentationClass"

CLASS_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

_LISTS = "ImageSets/Segmentation"
_LABEL_MAP = "labelmap.txt"


def voc_color(class_id: int) -> str:
    """The colour that VOC draws a class in: the bits of the id dealt out to red, green, blue (VOC devkit)."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= ((class_id >> (3 * bit + channel)) & 1) << (7 - bit)
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def default_classes() -> list[dict[str, str]]:
    """The 21 classes of VOC in id order."""
    return [{"name": name, "color": voc_color(class_id)} for class_id, name in enumerate(CLASS_NAMES)]


def read_classes(root: str) -> list[dict[str, Any]]:
    """Those of a labelmap.txt (`name:red,green,blue:parts:actions`, as CVAT writes), else the 21 of VOC."""
    location = storage.join(root, _LABEL_MAP)
    if not storage.exists(location):
        return default_classes()
    entries = []
    for number, line in read_lines(location):
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
            raise UserError(f"data {location} line {number}: {line!r} is not `name:red,green,blue::`")
        color = "#{:02x}{:02x}{:02x}".format(*map(int, parts))
        entries.append({"name": name, "color": color})
    return entries


def is_voc(root: str) -> bool:
    """True if the folder has the pictures and masks of VOC; the lists may be missing."""
    return all(storage.file_type(storage.join(root, name)) == "folder" for name in (IMAGES, MASKS))


def list_splits(root: str) -> list[str]:
    """The names of the lists there are, train and val first; none where there are no lists."""
    folder = storage.join(root, _LISTS)
    if not storage.exists(folder):
        return []
    names = [entry.path[:-4] for entry in storage.list_files(folder, recursive=False) if entry.path.endswith(".txt")]
    kept = [name for name in names if not name.lower().startswith("readme")]
    return sorted(kept, key=lambda name: (name != "train", name != "val", name))


class VocReader:
    """Reads the splits of one VOC folder. The pictures are listed once."""

    def __init__(self, root: str, images: str, masks: str, excluded: Excluded, options: MaskOptions, log: ProblemLog):
        self._root, self._excluded, self._options, self._log = root, excluded, options, log
        self._images, self._masks = self._list(images), self._list(masks)
        self._folders = images, masks

    def _list(self, name: str) -> dict[str, storage.FileEntry]:
        """Pictures by name without suffix."""
        folder = storage.join(self._root, name)
        if storage.file_type(folder) != "folder":
            raise UserError(f"data {self._root} is not PASCAL VOC: {folder} does not exist")
        listed = storage.list_files(folder, recursive=False)
        return {entry.path.rpartition(".")[0]: entry for entry in listed if is_image_name(entry.path)}

    def read_all(self) -> list[Sample]:
        """Every picture that has a mask: for a folder without lists."""
        return [sample for stem in sorted(self._masks) if (sample := self._find(stem)) is not None]

    def has_masks(self, split: str) -> bool:
        """True if one picture at least of a list has a mask (those of the challenge's test lists have none)."""
        return any(self._to_stem(line) in self._masks for _, line in self._read_list(split))

    def read_split(self, split: str) -> list[Sample]:
        """The samples that ImageSets/Segmentation/<split>.txt names. One without image or mask goes to the log."""
        samples: dict[str, Sample] = {}
        missing: list[tuple[int, str]] = []
        for number, line in self._read_list(split):
            stem = self._to_stem(line)
            sample = self._find(stem)
            if sample is not None:
                samples[sample.name] = sample
            elif not self._is_excluded(stem):
                missing.append((number, stem))
        if missing and not self._log.skips_unpaired:
            self._report_missing(split, missing, len(samples))
        return list(samples.values())

    def _find(self, stem: str) -> Sample | None:
        image, mask = self._images.get(stem), self._masks.get(stem)
        name = f"{self._folders[0]}/{image.path}" if image else ""
        if image is None or mask is None or name in self._excluded:
            return None
        return Sample(name, image.location, mask.location, self._options)

    def _is_excluded(self, stem: str) -> bool:
        name = self._images[stem].path if stem in self._images else f"{stem}.jpg"
        return f"{self._folders[0]}/{name}" in self._excluded

    def _read_list(self, split: str) -> list[tuple[int, str]]:
        location = storage.join(self._root, _LISTS, f"{split}.txt")
        if not storage.exists(location):
            raise UserError(
                f"data {self._root} has no list {location}; there are {', '.join(list_splits(self._root)) or 'none'}"
            )
        return read_lines(location)

    @staticmethod
    def _to_stem(line: str) -> str:
        """`2007_000032`, also where it is written `JPEGImages/2007_000032.jpg mask`."""
        name = storage.name_of(line.split()[0])
        return name.rpartition(".")[0] if is_image_name(name) else name

    def _report_missing(self, split: str, missing: list[tuple[int, str]], found: int) -> None:
        images, masks = self._folders
        number, first = missing[0]
        if self._log.is_strict:
            what = images if first not in self._images else masks
            self._log.report(
                "missing_file", first, f"{len(missing)} of {len(missing) + found} names in {_LISTS}/{split}.txt have "
                f"no image or no mask, the first in line {number}: {first} is not in {what}. Add the files, take the "
                f"names out, or skip them all (`unpaired: skip`).",
            )  # fmt: skip
        for number, stem in missing:
            if stem in self._images:
                name = f"{images}/{self._images[stem].path}"
                self._log.report("image_without_mask", name, f"{name} has no mask in {masks}.")
            else:
                name = f"{images}/{stem}.jpg"
                self._log.report("missing_file", name, f"{_LISTS}/{split}.txt line {number}: {name} does not exist.")
