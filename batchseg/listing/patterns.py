"""Glob patterns on paths: `*`, `?` and `[…]` within one part, `**` for any number of parts."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WILD = re.compile(r"[*?\[]")
_Part = Callable[[str], object] | None  # None is `**`


def is_glob(text: str) -> bool:
    """True if it holds a wildcard."""
    return _WILD.search(text) is not None


def split_glob(location: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern from there on."""
    found = _WILD.search(location)
    cut = location.rfind("/", 0, found.start() if found else None)
    return location[:cut], location[cut + 1 :]


@dataclass(frozen=True)
class PathPattern:
    """One pattern. Letters count as they are written, and `*` does not cross a `/`."""

    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, text: str, *, anchored: bool = False) -> "PathPattern":
        """Without a `/` it is for the file's name at any depth, unless anchored. `folder/` is all that lies in it."""
        names = text.lstrip("/").split("/")
        if names[-1] == "":
            names[-1] = "**"
        if not anchored and "/" not in text:
            names.insert(0, "**")
        return cls(tuple(None if n == "**" else re.compile(fnmatch.translate(n)).match for n in names))

    def matches(self, path: str) -> bool:
        """True if the whole path is described."""
        return _match(path.split("/"), self.parts)

    def may_match_in(self, folder: str) -> bool:
        """False if nothing under this folder can match."""
        return not folder or _match_start(folder.split("/"), self.parts)

    def covers(self, folder: str) -> bool:
        """True if everything under this folder matches."""
        return self.parts[-1] is None and _match(folder.split("/"), self.parts)


def _match(names: Sequence[str], parts: tuple[_Part, ...]) -> bool:
    if not parts:
        return not names
    first = parts[0]
    if first is None:
        return len(parts) == 1 or any(_match(names[start:], parts[1:]) for start in range(len(names) + 1))
    return bool(names) and bool(first(names[0])) and _match(names[1:], parts[1:])


def _match_start(names: Sequence[str], parts: tuple[_Part, ...]) -> bool:
    if not names or not parts:
        return bool(parts)
    first = parts[0]
    return first is None or (bool(first(names[0])) and _match_start(names[1:], parts[1:]))


@dataclass(frozen=True)
class Filters:
    """What is kept of the paths under INPUT. glob: the pattern that INPUT itself is, if it is one."""

    include: tuple[PathPattern, ...] = ()
    exclude: tuple[PathPattern, ...] = ()
    glob: PathPattern | None = None

    def keep(self, image_id: str) -> bool:
        """True if --include (one of them) names it and --exclude does not."""
        if self.include and not any(pattern.matches(image_id) for pattern in self.include):
            return False
        return not any(pattern.matches(image_id) for pattern in self.exclude)

    def is_in_glob(self, path: str) -> bool:
        """True if INPUT is no glob, or names this path."""
        return self.glob is None or self.glob.matches(path)

    def may_keep_in(self, folder: str) -> bool:
        """False for a folder that needs no look."""
        if self.glob is not None and not self.glob.may_match_in(folder):
            return False
        return not any(pattern.covers(folder) for pattern in self.exclude)
