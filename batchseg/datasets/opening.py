"""Finds out what DATA is, and reads its splits."""

from collections.abc import Sequence

from batchseg import storage
from batchseg.classes import ClassTable, parse_classes
from batchseg.datasets import voc
from batchseg.datasets.categories import choose_categories
from batchseg.datasets.coco import CocoReader
from batchseg.datasets.coco_json import CocoJson, pause_collector, read_coco_json
from batchseg.datasets.finding_classes import find_classes
from batchseg.datasets.lists import choose_by_list, read_pair_list
from batchseg.datasets.page import DATASET_FILE, EXAMPLE, ClassEntry, DatasetPage, SplitEntry, read_page
from batchseg.datasets.pairs import PairReader
from batchseg.datasets.panoptic import PanopticReader
from batchseg.datasets.patterns import Excluded
from batchseg.datasets.problems import Problem, ProblemLog
from batchseg.datasets.recognising import recognise
from batchseg.datasets.sample import Dataset, MaskOptions, Sample
from batchseg.datasets.splitting import split_off
from batchseg.errors import UserError


def open_dataset(location: str, problems: list[Problem] | None = None) -> Dataset:
    """Opens DATA: a dataset.yaml, a folder that holds one, or a folder of a layout that is recognised.

    problems: a list takes what is wrong with single files, which are left out; without it the first raises.
    Raises UserError when DATA is missing, empty, of no known format, or has a split without masks.
    """
    location = storage.to_absolute(location)
    kind = storage.file_type(location)
    if kind == "missing":
        raise UserError(f"data {location} does not exist")
    if kind == "folder" and storage.exists(storage.join(location, DATASET_FILE)):
        location, reason = storage.join(location, DATASET_FILE), f"the folder holds a {DATASET_FILE}"
    elif kind == "folder":
        page, reason = recognise(location)
        return _Opening(location, page, problems, is_declared=False).run(reason)
    else:
        reason = "the file given"
    page = read_page(location)
    return _Opening(location, page, problems, is_declared=True).run(f"{reason}; format: {page.format}")


class _Opening:
    """One data set while it is opened. is_declared: by a dataset.yaml, not recognised from its folder."""

    def __init__(self, location: str, page: DatasetPage, problems: list[Problem] | None, *, is_declared: bool):
        self._location, self._page, self._is_declared = location, page, is_declared
        self._log = ProblemLog(location, problems, skips_unpaired=page.unpaired == "skip")
        self._excluded = Excluded(page.exclude)
        self._options = MaskOptions(page.resize_masks == "nearest", page.mask_orientation == "image")
        self._own: dict[str, str | SplitEntry] = {}
        self._derived: dict[str, SplitEntry] = {}
        self._notes: list[str] = []

    def run(self, reason: str) -> Dataset:
        """Reads the splits and returns the set. reason: how the format was recognised."""
        self._sort_splits()
        read = {
            "pairs": self._read_pairs, "instance_masks": self._read_pairs, "voc": self._read_voc,
            "coco": self._read_annotations, "panoptic": self._read_annotations,
        }[self._page.format]  # fmt: skip
        with pause_collector():
            splits, entries = read()
        self._page = self._page.model_copy(update={"classes": entries})
        classes = self._make_table(entries)
        for name, entry in self._derived.items():
            self._log.split = name
            split_off(self._location, self._page.root, splits, name, entry, classes, self._log)
        declared = {name: splits[name] for name in self._page.splits if name in splits}
        reason = "; ".join([reason, *self._notes])
        return Dataset(self._location, self._page.format, reason, classes, declared, self._page)

    def _sort_splits(self) -> None:
        if self._page.format == "voc" and not self._page.splits:
            names = [name for name in voc.list_splits(self._page.root) if name != "trainval"]
            splits = {name: SplitEntry(split=name) for name in names} or {"train": SplitEntry(masks=voc.MASKS)}
            self._page = self._page.model_copy(update={"splits": splits})
        is_named = self._page.format in ("voc", "coco", "panoptic") or self._page.classes is not None
        if not self._page.splits or (self._is_declared and not is_named):
            raise UserError(f"data {self._location} must name its classes and splits, for example:\n{EXAMPLE}")
        for name, entry in self._page.splits.items():
            if isinstance(entry, SplitEntry) and entry.source is not None:
                self._derived[name] = entry
            else:
                self._own[name] = entry

    def _make_table(self, entries: Sequence[str | ClassEntry]) -> ClassTable:
        if self._page.format not in ("coco", "panoptic"):
            chosen = [entry.name for entry in entries if isinstance(entry, ClassEntry) and entry.categories is not None]
            if chosen:
                raise UserError(
                    f"data {self._location}: class {chosen[0]!r} has `categories`, which format {self._page.format} "
                    f"does not have; it has `values`"
                )
        plain = [
            entry
            if isinstance(entry, str)
            else {key: value for key, value in entry if value is not None and key != "categories"}
            for entry in entries
        ]
        try:
            return parse_classes(plain, self._page.ignore)
        except UserError as error:
            raise UserError(f"data {self._location}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"data {self._location}: classes or ignore cannot be read: {error}") from None

    def _require(self, split: str, entry: str | SplitEntry, *keys: str) -> list[str]:
        """These keys of a split. Raises UserError naming one that is missing or that the format does not have."""
        filled = self._page.entry(split) if isinstance(entry, SplitEntry) else SplitEntry(list=entry)
        given = [getattr(filled, key) for key in keys]
        unknown = [key for key in ("masks", "annotations") if getattr(filled, key) and key not in keys]
        if None in given or unknown:
            raise UserError(
                f"data {self._location}: split {split} is {_show(entry)}; format {self._page.format} needs "
                f"{{{', '.join(f'{key}:' for key in keys)}}} in it or for all splits"
            )
        return given

    def _choose(self, entry: str | SplitEntry, samples: list[Sample]) -> list[Sample]:
        """Those that the `list` of a split names, all where it has none."""
        if isinstance(entry, str) or entry.list is None:
            return samples
        return choose_by_list(samples, self._page.root, entry.list, self._log)

    def _read_pairs(self) -> tuple[dict[str, list[Sample]], Sequence[str | ClassEntry]]:
        root = self._page.root
        has_instances = self._page.format == "instance_masks"
        reader = PairReader(root, self._excluded, self._options, self._log, has_instances=has_instances)
        splits = {}
        for split, entry in self._own.items():
            self._log.split = split
            if isinstance(entry, str) and not has_instances:
                splits[split] = read_pair_list(root, entry, self._excluded, self._options, self._log)
            else:
                images, masks = self._require(split, entry, "images", "masks")
                splits[split] = self._choose(entry, reader.pair(images, masks))
        if self._page.classes is not None:
            return splits, self._page.classes
        if has_instances:
            return splits, ["background", "object"]
        found, note = find_classes(root, [sample for samples in splits.values() for sample in samples])
        self._notes.append(note)
        return splits, found

    def _read_voc(self) -> tuple[dict[str, list[Sample]], Sequence[str | ClassEntry]]:
        page = self._page
        images, masks = page.images or voc.IMAGES, page.masks or voc.MASKS
        reader = voc.VocReader(page.root, images, masks, self._excluded, self._options, self._log)
        splits = {}
        for split, entry in self._own.items():
            self._log.split = split
            name = entry if isinstance(entry, str) else entry.split
            if name is None:
                splits[split] = self._choose(entry, reader.read_all())
            elif self._is_declared or split in ("train", "val") or reader.has_masks(name):
                splits[split] = reader.read_split(name)
            else:
                self._notes.append(f"{name} has no masks and is left out")
        entries = page.classes or [ClassEntry(**entry) for entry in voc.read_classes(page.root)]
        return splits, entries

    def _read_annotations(self) -> tuple[dict[str, list[Sample]], Sequence[str | ClassEntry]]:
        page = self._page
        is_panoptic = page.format == "panoptic"
        keys = ("annotations", "images", "masks") if is_panoptic else ("annotations", "images")
        found = {split: self._require(split, entry, *keys) for split, entry in self._own.items()}
        jsons: dict[str, CocoJson] = {}
        for location in {given[0] for given in found.values()}:
            jsons[location] = read_coco_json(storage.join(page.root, location), is_panoptic=is_panoptic)
        entries, categories = choose_categories(
            self._location, page.classes, list(jsons.values()), has_rest=not is_panoptic
        )
        context = page.root, self._excluded, self._options, self._log, categories
        splits = {}
        for split, (annotations, *folders) in found.items():
            self._log.split = split
            folders = [folder.rstrip("/") for folder in folders]
            if is_panoptic:
                samples = PanopticReader(*context).read(jsons[annotations], *folders)
            else:
                samples = CocoReader(*context).read(jsons[annotations], *folders)
            splits[split] = self._choose(self._own[split], samples)
        return splits, entries


def _show(entry: str | SplitEntry) -> str:
    if isinstance(entry, str):
        return repr(entry)
    return repr(entry.model_dump(by_alias=True, exclude_none=True))
