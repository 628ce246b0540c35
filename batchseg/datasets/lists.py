"""List files: `image mask` lines that make a split, and lists of names that choose from one."""

from collections import defaultdict

from batchseg import storage
from batchseg.datasets.patterns import Excluded
from batchseg.datasets.problems import ProblemLog
from batchseg.datasets.sample import MaskOptions, Sample
from batchseg.errors import UserError


def read_pair_list(
    root: str, list_file: str, excluded: Excluded, options: MaskOptions, log: ProblemLog
) -> list[Sample]:
    """Reads a split from a text file with one `image mask` per line (tab or space between), relative to root."""
    location = storage.join(root, list_file)
    samples: dict[str, Sample] = {}
    for number, line in read_lines(location):
        words = line.split("\t") if "\t" in line else line.split()
        if len(words) != 2:
            raise UserError(
                f"data {location} line {number}: {line!r} is not `image mask` (put a tab between names with spaces)"
            )
        name = words[0]
        if name in excluded:
            continue
        if name in samples:
            log.report("duplicate_name", name, f"{list_file} line {number}: {name} stands there twice. Delete one.")
            continue
        image, mask = (_join_in(root, word, location, number) for word in words)
        samples[name] = Sample(name, image, mask, options)
    return list(samples.values())


def choose_by_list(samples: list[Sample], root: str, list_file: str, log: ProblemLog) -> list[Sample]:
    """The samples that a list names, one a line: by name relative to the data set, or its last part, with or without
    suffix. What follows a tab is left out. list_file: relative to root, or absolute.

    Raises UserError for a name that two samples share; one that no sample has goes to the log.
    """
    is_absolute = storage.is_remote(list_file) or list_file.startswith("/")
    location = list_file if is_absolute else storage.join(root, list_file)
    by_spelling: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        last = storage.name_of(sample.name)
        for spelling in {sample.name, _drop_suffix(sample.name), last, _drop_suffix(last)}:
            by_spelling[spelling].append(sample)
    chosen: dict[str, Sample] = {}
    for number, line in read_lines(location):
        text = line.partition("\t")[0].strip()
        found = by_spelling.get(text) or by_spelling.get(text.split()[0], [])
        exact = [sample for sample in found if sample.name == text]
        if len(found) > 1 and not exact:
            raise UserError(
                f"data {location} line {number}: {text!r} may be {found[0].name} or {found[1].name}; write it in full"
            )
        if not found:
            if not log.skips_unpaired:
                log.report(
                    "missing_file", text, f"{location} line {number}: no image with a mask is named {text!r}. "
                    f"Add it, delete the line, or skip all such lines (`unpaired: skip`).",
                )  # fmt: skip
            continue
        sample = (exact or found)[0]
        chosen[sample.name] = sample
    return list(chosen.values())


def read_lines(location: str) -> list[tuple[int, str]]:
    """Number and text of the lines that are neither empty nor a comment. Raises UserError for a missing list."""
    try:
        lines = storage.read_text(location).lstrip("\ufeff").splitlines()
    except OSError:
        raise UserError(f"data {location}: the list of a split does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"data {location}: the list of a split is not UTF-8: {error}") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]


def _join_in(root: str, word: str, location: str, number: int) -> str:
    try:
        return storage.join(root, word)
    except UserError as error:
        raise UserError(f"data {location} line {number}: {error}") from None


def _drop_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name
