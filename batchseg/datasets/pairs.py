"""Formats `pairs` and `instance_masks`: images, and masks whose names follow from theirs."""

from collections import defaultdict
from collections.abc import Iterable

from batchseg import storage
from batchseg.datasets.masks import InstanceFiles
from batchseg.datasets.patterns import Excluded, FilePattern, Key
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import MaskOptions, MaskSource, Sample
from batchseg.errors import UserError
from batchseg.images import is_image_name

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".pgm", ".ppm", ".webp")
_LOSSY_SUFFIXES = (".jpg", ".jpeg")  # found all the same, so that a JPEG mask is named as such

FilesByKey = dict[Key, list[storage.FileEntry]]


class PairReader:
    """Reads splits of one data set. has_instances: an image has any number of mask files, one for each instance."""

    def __init__(
        self, root: str, excluded: Excluded, options: MaskOptions, log: ProblemLog, *, has_instances: bool = False
    ):
        self._root, self._excluded, self._options, self._log = root, excluded, options, log
        self._has_instances = has_instances
        self._left_out: set[Key] = set()  # of excluded images
        self._listings: dict[str, list[storage.FileEntry]] = {}

    def pair(self, images: str, masks: str) -> list[Sample]:
        """Pairs each image with the masks of the same key. images, masks: folders or patterns, relative to root.

        Raises UserError when a folder is missing or no image is there. An image without mask goes to the log.
        """
        image_pattern, mask_pattern = self._parse(images, "images"), self._parse(masks, "masks")
        if image_pattern.names != mask_pattern.names:
            raise UserError(
                f"data {self._root}: images {images!r} and masks {masks!r} must have the same placeholders; "
                f"they have {image_pattern.names} and {mask_pattern.names}"
            )
        self._left_out.clear()
        masks_by_key = self._find(mask_pattern, (*MASK_SUFFIXES, *_LOSSY_SUFFIXES))
        taken = {entry.path for entries in masks_by_key.values() for entry in entries}
        if images == masks:
            raise UserError(f"data {self._root}: images and masks are both {images!r}")
        images_by_key = self._find(image_pattern, None, taken)
        if not images_by_key:
            raise UserError(f"data {storage.join(self._root, images)} holds no image; known suffixes are .jpg, .png, …")
        self._report_spellings(entry.path for entries in images_by_key.values() for entry in entries)
        self._check_unpaired(images_by_key, masks_by_key, images, masks)
        samples = [
            self._make_sample(entries, masks_by_key[key])
            for key, entries in images_by_key.items()
            if key in masks_by_key
        ]
        return sorted(samples, key=lambda sample: sample.name)

    def _parse(self, text: str, key: str) -> FilePattern:
        try:
            return FilePattern.parse(text, key)
        except UserError as error:
            raise UserError(f"data {self._root}: {error}") from None

    def _find(
        self, pattern: FilePattern, suffixes: tuple[str, ...] | None, taken: frozenset[str] | set[str] = frozenset()
    ) -> FilesByKey:
        """The files that a pattern describes, by key. suffixes: None stands for those of images."""
        found: FilesByKey = defaultdict(list)
        for entry in self._list(pattern.folder):
            is_known = is_image_name(entry.path) if suffixes is None else entry.path.lower().endswith(suffixes)
            # A file that both patterns describe is a mask (`{stem}.png` also describes `a_mask.png`).
            if not is_known or entry.path in taken:
                continue
            key = pattern.match(entry.path)
            if key is not None and suffixes is None and entry.path in self._excluded:
                self._left_out.add(key)
            elif key is not None:
                found[key].append(entry)
        return found

    def _list(self, folder: str) -> list[storage.FileEntry]:
        """Paths are relative to root."""
        if folder not in self._listings:
            location = self._root if folder == "." else storage.join(self._root, folder)
            if storage.file_type(location) != "folder":
                raise UserError(f"data folder {location} does not exist")
            prefix = "" if folder == "." else f"{folder}/"
            self._listings[folder] = [
                storage.FileEntry(prefix + entry.path, entry.location, entry.size_bytes, entry.modified)
                for entry in storage.list_files(location)
            ]
        return self._listings[folder]

    def _make_sample(self, images: list[storage.FileEntry], masks: list[storage.FileEntry]) -> Sample:
        if len(images) > 1:
            self._report_double([entry.path for entry in images], "images with the same mask")
        if self._has_instances:
            mask: MaskSource = InstanceFiles(tuple(entry.location for entry in masks))
        else:
            if len(masks) > 1:
                self._report_double([entry.path for entry in masks], "masks of the same image")
            mask = masks[0].location
        return Sample(images[0].path, images[0].location, mask, self._options)

    def _report_double(self, names: list[str], what: str) -> None:
        self._log.report(
            "duplicate_stem", names[1], f"{names[0]} and {names[1]} are {what}: which is meant? Take one of them out."
        )

    def _report_spellings(self, names: Iterable[str]) -> None:
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                self._log.report(
                    "case_collision", name, f"{other} and {name} differ by upper and lower case alone, which not "
                    f"every disk tells apart. Rename one.",
                )  # fmt: skip

    def _check_unpaired(self, by_image: FilesByKey, by_mask: FilesByKey, images: str, masks: str) -> None:
        lonely = [entry.path for key, entries in by_image.items() for entry in entries if key not in by_mask]
        if len(lonely) == sum(map(len, by_image.values())):
            first = next(iter(by_image))
            expected = f"{first[0]}.png" if len(first) == 1 else str(first)
            raise UserError(
                f"data {storage.join(self._root, images)} has no masks: none in {storage.join(self._root, masks)} is "
                f"named like an image (first image: {self._shorten(lonely[0], images)}, expected {expected})"
            )
        for key, entries in by_mask.items():
            if key not in by_image and key not in self._left_out:
                path = entries[0].path
                self._log.report("mask_without_image", path, f"{path} is the mask of no image in {images}.")
        if not lonely or self._log.skips_unpaired:
            return
        if self._log.is_strict:
            raise UserError(
                f"data {self._root}: {len(lonely)} of {sum(map(len, by_image.values()))} images in {images} have no "
                f"mask in {masks}, the first is {self._shorten(lonely[0], images)}. Add the masks, take the images "
                f"out (`exclude`), or skip them all (`unpaired: skip`)."
            )
        for path in lonely:
            self._log.report("image_without_mask", path, f"{path} has no mask in {masks}.")

    @staticmethod
    def _shorten(path: str, folder: str) -> str:
        return path.removeprefix(f"{folder}/")
