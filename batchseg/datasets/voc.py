"""Format `voc`: the folders of PASCAL VOC 2012 (JPEGImages, SegmentationClass, ImageSets/Segmentation/*.txt)."""

from batchseg import storage
from batchseg.datasets.sample import Sample
from batchseg.errors import UserError

CLASS_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

_LISTS = "ImageSets/Segmentation"


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


def is_voc(root: str) -> bool:
    """True if the folder has the lists and pictures of VOC."""
    return storage.exists(storage.join(root, _LISTS)) and storage.exists(storage.join(root, "JPEGImages"))


def list_splits(root: str) -> list[str]:
    """The names of the lists there are, train and val first; `trainval` repeats both and is left out."""
    folder = storage.join(root, _LISTS)
    if not storage.exists(folder):
        raise UserError(f"data {root} is not PASCAL VOC: {folder} does not exist")
    names = [entry.path[:-4] for entry in storage.list_files(folder, recursive=False) if entry.path.endswith(".txt")]
    return sorted(
        (name for name in names if name != "trainval" and not name.lower().startswith("readme")),
        key=lambda name: (name != "train", name != "val", name),
    )


def read_split(root: str, split: str) -> list[Sample]:
    """The samples that ImageSets/Segmentation/<split>.txt names."""
    location = storage.join(root, _LISTS, f"{split}.txt")
    try:
        stems = storage.read_text(location).split()
    except OSError:
        raise UserError(f"data {root} has no list {location}") from None
    return [
        Sample(
            f"JPEGImages/{stem}.jpg",
            storage.join(root, "JPEGImages", f"{stem}.jpg"),
            storage.join(root, "SegmentationClass", f"{stem}.png"),
        )
        for stem in stems
    ]
