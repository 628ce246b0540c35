"""Format `pairs`: a folder of images and a folder of masks with the same names."""

from batchseg import storage
from batchseg.datasets.sample import Sample
from batchseg.errors import UserError
from batchseg.images import is_image_name

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")


def pair_folders(root: str, images: str, masks: str) -> list[Sample]:
    """Pairs each image under root/images with the mask of the same relative name, whatever its suffix.

    Raises UserError when a folder is missing, no image is there, or an image has no mask.
    """
    found = {entry.path: entry.location for entry in _list_folder(root, images) if is_image_name(entry.path)}
    by_stem = {
        _stem(entry.path): entry.location
        for entry in _list_folder(root, masks)
        if entry.path.lower().endswith((*MASK_SUFFIXES, ".jpg", ".jpeg"))
    }
    if not found:
        raise UserError(f"data {storage.join(root, images)} holds no image; known suffixes are .jpg, .png, .tif, …")
    lonely = [name for name in found if _stem(name) not in by_stem]
    if len(lonely) == len(found):
        raise UserError(
            f"data {storage.join(root, images)} has no masks: none in {storage.join(root, masks)} is named "
            f"like an image (first image: {lonely[0]}, expected {_stem(lonely[0])}.png)"
        )
    if lonely:
        raise UserError(
            f"data {root}: {len(lonely)} of {len(found)} images in {images} have no mask in {masks}, "
            f"the first is {lonely[0]}. Add the masks, or take the images out."
        )
    return [Sample(f"{images}/{name}", location, by_stem[_stem(name)]) for name, location in found.items()]


def read_list(root: str, list_file: str) -> list[Sample]:
    """Reads a split from a text file with one `image mask` per line (tab or space between), relative to root."""
    location = storage.join(root, list_file)
    try:
        lines = storage.read_text(location).splitlines()
    except OSError:
        raise UserError(f"data {location}: the list of a split does not exist") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split("\t") if "\t" in line else line.split()
        if len(words) != 2:
            raise UserError(
                f"data {location} line {number}: {line!r} is not `image mask` (put a tab between names with spaces)"
            )
        samples.append(Sample(words[0], storage.join(root, words[0]), storage.join(root, words[1])))
    return samples


def _list_folder(root: str, name: str) -> list[storage.FileEntry]:
    folder = storage.join(root, name)
    if storage.file_type(folder) != "folder":
        raise UserError(f"data folder {folder} does not exist")
    return list(storage.list_files(folder))


def _stem(path: str) -> str:
    return path.rsplit(".", 1)[0]
