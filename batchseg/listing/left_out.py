"""OUT, which is never listed, whatever name it is reached by."""

import os
from functools import lru_cache

from batchseg import storage


class LeftOut:
    """Knows what lies in OUT, symbolic links followed. root: the real location of OUT; empty where there is none.

    is_there: False for a local OUT that does not exist yet, so that nothing can lie in it.
    """

    def __init__(self, out: str):
        self.root = storage.to_real(out) if out else ""
        self.is_there = not storage.is_remote(self.root) and os.path.isdir(self.root)
        self._find_folder = lru_cache(maxsize=1024)(os.path.realpath)

    def holds(self, location: str) -> bool:
        """True for OUT and all below it."""
        if not self.root or storage.is_remote(location) != storage.is_remote(self.root):
            return False
        real = storage.to_real(location)
        return real == self.root or real.startswith(f"{self.root}/")

    def holds_file(self, path: str) -> bool:
        """The same for one of many local files: its folder is looked up once, itself only where it is a link."""
        if not self.is_there:
            return False
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if os.path.islink(path) else f"{self._find_folder(folder)}/{name}"
        return real.startswith(f"{self.root}/")
