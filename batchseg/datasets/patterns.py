"""Patterns of file names with placeholders: `leftImg8bit/{split}/*/{stem}_leftImg8bit.png`."""

import re
from dataclasses import dataclass

from batchseg import storage
from batchseg.errors import UserError

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\{[A-Za-z]\w*\}")
_BRACE = re.compile(r"[{}]")

Key = tuple[str, ...]
"""What the placeholders of a pattern stand for in one file, in the order of their names."""


@dataclass(frozen=True)
class FilePattern:
    """`*` and `?` stay within a folder, `**` crosses folders. `{stem}`, or any other name, is what image and mask
    share.

    A pattern without any of them is a folder: all files in it at any depth, paired by path and name without suffix.
    """

    text: str
    folder: str
    regex: re.Pattern[str]
    is_folder: bool

    @classmethod
    def parse(cls, text: str, key: str) -> "FilePattern":
        """`key` names it in errors. Raises UserError for one that leaves the data set or cannot be read."""
        text = text.strip().rstrip("/").removeprefix("./")
        storage.join("the data set", text)  # raises for one that leaves it
        first = _TOKEN.search(text)
        if first is None:
            if _BRACE.search(text):
                raise UserError(f"{key}: {text!r} holds a brace that closes no {{name}}")
            prefix = "" if text == "." else f"{re.escape(text)}/"
            return cls(text, text, re.compile(prefix + r"(?P<stem>.+)\.[^./]+"), True)
        return cls(text, text[: first.start()].rpartition("/")[0] or ".", _compile(text, key), False)

    @property
    def names(self) -> list[str]:
        """Of the placeholders, sorted."""
        return sorted(self.regex.groupindex)

    def match(self, path: str) -> Key | None:
        """The key of a path relative to the data set, None if the pattern does not describe it."""
        found = self.regex.fullmatch(path)
        return tuple(found[name] for name in self.names) if found else None


def _compile(text: str, key: str) -> re.Pattern[str]:
    regex = _translate(text)
    if not regex.groups:
        raise UserError(f"{key}: {text!r} has wildcards, but no {{stem}}: what do image and mask share?")
    return regex


def _translate(text: str) -> re.Pattern[str]:
    parts, at, seen = [], 0, set()
    for token in _TOKEN.finditer(text):
        parts.append(re.escape(text[at : token.start()]))
        at, found = token.end(), token[0]
        name = found.strip("{}")
        if found[0] != "{":
            parts.append({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[found])
        elif name in seen:
            parts.append(f"(?P={name})")
        else:
            seen.add(name)
            parts.append(f"(?P<{name}>[^/]+)")
    parts.append(re.escape(text[at:]))
    return re.compile("".join(parts))


class Excluded:
    """The names and patterns under `exclude`, relative to the data set. `folder/` is all that lies in it."""

    def __init__(self, given: list[str]):
        self._names = frozenset(given)
        patterns = [f"{text}**" if text.endswith("/") else text for text in given]
        self._patterns = [_translate(text) for text in patterns if "*" in text or "?" in text]

    def __contains__(self, name: str) -> bool:
        return name in self._names or any(pattern.fullmatch(name) for pattern in self._patterns)
