"""Recognises the layout of a folder without dataset.yaml: the page that would declare it, and the reason."""

from dataclasses import dataclass

import pyarrow.fs as pafs

from batchseg import storage
from batchseg.datasets import voc
from batchseg.datasets.page import DATASET_FILE, EXAMPLE, DatasetPage, SplitEntry
from batchseg.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annots", "segmentations", "segmentation", "gt")
_MASK_ENDINGS = ("annot", "_annot", "_masks", "_mask", "_labels", "_label", "masks", "labels", "_gt")
_OTHER_JSON = ("captions_", "person_keypoints_", "stuff_", "image_info_")
_ROBOFLOW = "_annotations.coco.json"
_LOOKED_AT = 3


@dataclass(frozen=True)
class _Folder:
    """One folder and what is in it, by name in lower case. Hidden ones are left out."""

    location: str
    folders: dict[str, str]
    files: list[str]

    @classmethod
    def list(cls, location: str) -> "_Folder":
        """What lies in it, hidden names left out; folders by their names in small letters."""
        found = [entry for entry in storage.list_infos(location, recursive=False) if not entry[0].startswith(".")]
        folders = sorted(name for name, info in found if info.type == pafs.FileType.Directory)
        files = sorted(name for name, info in found if info.type == pafs.FileType.File)
        return cls(location, {name.lower(): name for name in folders}, files)

    def find(self, *candidates: str) -> str | None:
        """The first folder with one of these names, as it is written."""
        return next((self.folders[name] for name in candidates if name in self.folders), None)

    def has(self, path: str) -> bool:
        """True if there is such a folder, at any depth."""
        return storage.file_type(storage.join(self.location, path)) == "folder"

    def open(self, name: str) -> "_Folder":
        """A subfolder."""
        return _Folder.list(storage.join(self.location, name))


def recognise(location: str) -> tuple[DatasetPage, str]:
    """The page of a folder and why. Raises UserError, with a page to write, for a folder of no known layout."""
    root = _Folder.list(location)
    if not root.folders and not root.files:
        raise UserError(f"data {location} is empty")
    for look in (_see_voc, _see_coco, _see_split_folders, _see_suffixed_folders, _see_plain_folders, _see_instances):
        found = look(root)
        if found is not None:
            page, reason = found
            page = page.model_copy(update={"root": location})
            if "val" not in page.splits:
                splits = {**page.splits, "val": SplitEntry(source="train")}
                page = page.model_copy(update={"splits": splits})
                reason += "; a tenth of train becomes val"
            return page, reason
    raise UserError(
        f"data {location} is of no known format: it holds neither a {DATASET_FILE}, nor the folders of PASCAL VOC or "
        f"COCO, nor folders of images and of masks by their usual names. Write {location}/{DATASET_FILE}:\n{EXAMPLE}"
    )


_Found = tuple[DatasetPage, str] | None


def _see_voc(root: _Folder) -> _Found:
    if not voc.is_voc(root.location):
        return None
    names = voc.list_splits(root.location)
    if not names:
        page = DatasetPage(format="voc", splits={"train": SplitEntry(masks=voc.MASKS)})
        return page, f"the folder holds {voc.IMAGES} and {voc.MASKS}, but no lists"
    reason = f"the folder holds {voc.IMAGES}, {voc.MASKS} and ImageSets/Segmentation"
    if "train" in names:  # trainval repeats both
        kept = [name for name in names if name != "trainval"]
        return DatasetPage(format="voc", splits={name: SplitEntry(split=name) for name in kept}), reason
    if "trainval" in names:
        return DatasetPage(format="voc", splits={"train": SplitEntry(split="trainval")}), f"{reason}; no train.txt"
    return None


def _see_coco(root: _Folder) -> _Found:
    folder = root.find("annotations")
    jsons = root.open(folder).files if folder else []
    jsons = [name for name in jsons if name.endswith(".json") and not name.startswith(_OTHER_JSON)]
    for prefix in ("instances_", "panoptic_", ""):
        splits = {}
        for name in jsons:
            if name.startswith(prefix):
                entry = _match_json(root, f"{folder}/{name}", name.removeprefix(prefix)[:-5], prefix)
                if entry is not None:
                    splits[_name_split(name.removeprefix(prefix)[:-5])] = entry
        if "train" in splits:
            page = DatasetPage(format="panoptic" if prefix == "panoptic_" else "coco", splits=_order(splits))
            kind = f"{folder}/{prefix}*.json" if prefix else f"JSON files in {folder}"
            return page, f"the folder holds {kind} and the folders of their images"
    splits = {}
    for split, spellings in SPLIT_NAMES.items():
        found = root.find(*spellings)
        if found and storage.exists(storage.join(root.location, found, _ROBOFLOW)):
            splits[split] = SplitEntry(images=found, annotations=f"{found}/{_ROBOFLOW}")
    if "train" in splits:
        return DatasetPage(format="coco", splits=splits), f"each split holds {_ROBOFLOW}"
    return None


def _match_json(root: _Folder, path: str, stem: str, prefix: str) -> SplitEntry | None:
    """The folders that go with a JSON, None if there are none."""
    images = next((name for name in (stem, f"images/{stem}", *IMAGE_FOLDERS) if root.has(name)), None)
    if images is None:
        return None
    if prefix != "panoptic_":
        return SplitEntry(images=images, annotations=path)
    masks = next((n for n in (f"panoptic_{stem}", f"annotations/panoptic_{stem}") if root.has(n)), None)
    return SplitEntry(images=images, masks=masks, annotations=path) if masks else None


def _name_split(stem: str) -> str:
    """`train2017` is train."""
    bare = stem.rstrip("0123456789").rstrip("_-").lower()
    return next((split for split, spellings in SPLIT_NAMES.items() if bare in spellings), bare or stem)


def _order(splits: dict[str, SplitEntry]) -> dict[str, str | SplitEntry]:
    """train and val first."""
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0] != "val", item[0])))


def _see_split_folders(root: _Folder) -> _Found:
    """train/images with train/masks, or images/train with masks/train."""
    splits: dict[str, str | SplitEntry] = {}
    for split, spellings in SPLIT_NAMES.items():
        name = root.find(*spellings)
        inside = root.open(name) if name else None
        images, masks = (inside.find(*IMAGE_FOLDERS), inside.find(*MASK_FOLDERS)) if inside else (None, None)
        if images and masks:
            splits[split] = SplitEntry(images=f"{name}/{images}", masks=f"{name}/{masks}")
    if "train" in splits:
        return DatasetPage(splits=splits), "each split has a folder of images and one of masks"
    images, masks = root.find(*IMAGE_FOLDERS), root.find(*MASK_FOLDERS)
    if not images or not masks:
        return None
    in_images, in_masks = root.open(images), root.open(masks)
    for split, spellings in SPLIT_NAMES.items():
        one, other = in_images.find(*spellings), in_masks.find(*spellings)
        if one and other:
            splits[split] = SplitEntry(images=f"{images}/{one}", masks=f"{masks}/{other}")
    if "train" in splits:
        return DatasetPage(splits=splits), f"{images} and {masks} have a folder for each split"
    return None


def _see_suffixed_folders(root: _Folder) -> _Found:
    """train with trainannot, as CamVid has them."""
    splits: dict[str, str | SplitEntry] = {}
    for split, spellings in SPLIT_NAMES.items():
        images = root.find(*spellings)
        masks = root.find(*(images.lower() + ending for ending in _MASK_ENDINGS)) if images else None
        if images and masks:
            splits[split] = SplitEntry(images=images, masks=masks)
    if "train" in splits:
        train = splits["train"]
        assert isinstance(train, SplitEntry)
        return DatasetPage(splits=splits), f"the folder holds {train.images} and {train.masks}"
    return None


def _see_plain_folders(root: _Folder) -> _Found:
    images, masks = root.find(*IMAGE_FOLDERS), root.find(*MASK_FOLDERS)
    if not images or not masks:
        return None
    entry = SplitEntry(images=images, masks=masks)
    return DatasetPage(splits={"train": entry}), f"the folder holds {images} and {masks}"


def _see_instances(root: _Folder) -> _Found:
    """A folder for each image, with `images` and `masks` in it, as in the Data Science Bowl 2018."""
    for name in ("", *root.folders.values()):
        folder = root.open(name) if name else root
        inside = list(folder.folders.values())[:_LOOKED_AT]
        pairs = [(sub.find("images"), sub.find("masks")) for sub in map(folder.open, inside)]
        if pairs and all(one and other for one, other in pairs):
            images, masks = pairs[0]
            prefix = f"{name}/" if name else ""
            entry = SplitEntry(images=f"{prefix}{{stem}}/{images}/*", masks=f"{prefix}{{stem}}/{masks}/*")
            page = DatasetPage(format="instance_masks", splits={"train": entry})
            return page, f"every folder in {name or 'it'} has a folder of images and one of masks"
    return None
