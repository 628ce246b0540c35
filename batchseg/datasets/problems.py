"""What is wrong with single files while a data set is opened: an error, or a list of problems for the doctor."""

from dataclasses import dataclass

from batchseg.errors import UserError


@dataclass(frozen=True)
class Problem:
    """kind: a fixed word. file: its path relative to the data set. message: a sentence with files and the fix.

    Kinds: image_without_mask, mask_without_image, missing_file, duplicate_stem, duplicate_name, case_collision,
    bad_annotation.
    """

    kind: str
    split: str
    file: str
    message: str


# What a set may have and still be opened: what lies unused harms nothing.
_HARMLESS = frozenset({"mask_without_image", "case_collision"})


@dataclass
class ProblemLog:
    """Takes the problems of one set. collected: None, and the first one that does harm is raised."""

    location: str
    collected: list[Problem] | None = None
    split: str = ""
    skips_unpaired: bool = False

    @property
    def is_strict(self) -> bool:
        return self.collected is None

    def report(self, kind: str, file: str, message: str) -> None:
        """Raises UserError with the message where problems are not collected."""
        if self.collected is not None:
            self.collected.append(Problem(kind, self.split, file, message))
        elif kind not in _HARMLESS:
            raise UserError(f"data {self.location}: {message}")
