"""Proves an output folder: listing = ok + failed + pending, nothing twice, every mask there and as its row says.

verify_output(out)                what is wrong
verify_output(out, repair=True)   and takes it away, so that the same `segment` line does exactly the gaps again
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchseg import clearing, ledger, storage
from batchseg.console import Console
from batchseg.errors import StoppedError, UserError
from batchseg.lease import Lease, find_holder
from batchseg.row_check import Finding, RowCheck
from batchseg.row_index import INDEX_COLUMNS, build_index, find_losers

_SHOWN_FINDINGS = 20
_ROWS_AT_ONCE = 32
_REMOTE_THREADS = 16
_KINDS = dict(zip(ledger.PICTURE_FOLDERS, ("mask", "overlay", "score map"), strict=True))
_PICTURE_PATH = f"^({'|'.join(_KINDS)})/"
_REDONE_KINDS = {"row", *_KINDS.values()}
Show = Callable[[str], None]


@dataclass
class Verification:
    """manifest: images listed; ok, failed: their rows; pending: listed without a row; gone: rows of unlisted images.

    After a repair the counts are those after it, the findings those before. held_by: a job that is or was at work
    during the look, so that things are in motion.
    """

    out: str
    manifest: int = 0
    ok: int = 0
    failed: int = 0
    pending: int = 0
    gone: int = 0
    findings: list[Finding] = field(default_factory=list)
    held_by: str | None = None
    was_repaired: bool = False

    @property
    def is_clean(self) -> bool:
        """Nothing is wrong. An image that is pending is not."""
        return not self.findings

    @property
    def is_complete(self) -> bool:
        """Every listed image has its row."""
        return self.pending == 0


def verify_output(out: str, *, repair: bool = False, show: Show | None = None) -> Verification:
    """Looks at every row and picture; only reads. repair: removes what is wrong, under the lease.

    show: told the progress. Raises UserError when OUT is not ours, or when a job holds it and `repair` is asked for;
    StoppedError when things vanish while they are looked at and no look can be finished.
    """
    out, show = storage.to_absolute(out), show or (lambda text: None)
    run = ledger.read_run(out)
    if run is None:
        raise UserError(f"OUT {out} is not an output of batchseg (it has no {ledger.RUN_FILE})")
    if not repair:
        try:
            return _Look(out, run, _describe_holder(out)).look(show)
        except FileNotFoundError as error:
            who = _describe_holder(out) or "a job that has ended meanwhile"
            raise StoppedError(
                f"OUT {out} is in motion ({who}): {error}. Verify it when nobody writes there"
            ) from error
    with Lease.acquire(out, say=show) as lease:
        look = _Look(out, run, None, is_ours=True)
        result = look.look(show)
        lease.check()
        if result.findings:
            look.repair()
        return result


def _describe_holder(out: str) -> str | None:
    holder = find_holder(out)
    return str(holder) if holder else None


class _Look:
    """One pass over OUT, part by part. Keeps names, never more pictures than those of a few rows."""

    def __init__(self, out: str, run: dict[str, Any], held_by: str | None, *, is_ours: bool = False):
        self._is_ours = is_ours
        self._out, self._row_check = out, RowCheck.of_run(out, run)
        self._result = Verification(out, held_by=held_by)
        self._manifest = self._read_manifest()
        self._damaged: list[str] = []
        self._rubbish: list[str] = []
        self._named: list[pa.Array] = []

    def look(self, show: Show) -> Verification:
        """The whole pass."""
        parts, seen, tables, rows = ledger.list_parts(self._out), [], [], 0
        with ThreadPoolExecutor(_REMOTE_THREADS if storage.is_remote(self._out) else os.cpu_count()) as pool:
            for number, (status, location) in enumerate(parts, 1):
                found = self._look_at_part(status, location, pool)
                if found is not None:
                    seen.append((status, location))
                    tables.append(found)
                    rows += len(found)
                show(f"verified {number}/{len(parts)} parts, {rows} rows")
        self._look_for_job()
        index = build_index(seen, tables)
        pending = self._count(index)
        for row in find_losers(index).select(["image_id", "part"]).to_pylist():
            self._find("twice", row["image_id"], f"another row of it counts; this one lies in {row['part']}")
        self._compare_pictures(index, pending)
        self._find_leftovers()
        self._look_for_job()
        return self._result

    def _look_for_job(self, gone: str = "") -> None:
        """A job may have started since the first look; then these are figures of a moment. gone: a part that it took.

        Raises StoppedError when a part vanishes although we hold the lease.
        """
        result = self._result
        if gone and self._is_ours:
            raise StoppedError(f"{gone} has vanished: somebody else changes OUT {self._out} without its lease")
        if result.held_by is None and not self._is_ours:
            result.held_by = _describe_holder(self._out) or ("a job that has ended meanwhile" if gone else None)

    def repair(self) -> None:
        """Rows before pictures: a death in between leaves pictures without row, which the next repair removes."""
        for location in self._damaged:
            storage.delete_file(location)
        index = ledger.settle(self._out)
        wrong = sorted({f.subject for f in self._result.findings if f.kind in _REDONE_KINDS})
        ledger.subtract(self._out, index, wrong)
        clearing.delete_pictures(self._out, [path for name in wrong for path in clearing.name_all_pictures(name)])
        clearing.delete_pictures(self._out, self._rubbish)
        self._count(ledger.read_index(self._out))
        self._result.was_repaired = True

    def _find(self, kind: str, subject: str, message: str) -> None:
        self._result.findings.append(Finding(kind, subject, message))

    def _read_manifest(self) -> pa.Array:
        """The listed ids."""
        try:
            data = storage.read_bytes(storage.join(self._out, ledger.MANIFEST_FILE))
        except FileNotFoundError:
            self._find("manifest", ledger.MANIFEST_FILE, "is missing; the same segment line writes it anew")
            return pa.array([], pa.string())
        try:
            ids = pq.ParquetFile(pa.BufferReader(data)).read(columns=["image_id"])["image_id"]
        except (pa.ArrowInvalid, OSError) as error:
            message = f"is damaged ({error}); the same segment line writes it anew"
            self._find("manifest", ledger.MANIFEST_FILE, message)
            return pa.array([], pa.string())
        return ids.combine_chunks()

    def _count(self, index: pa.Table) -> pa.Array:
        """Sets the counts, each image once. Returns the ids of pending images."""
        losers = find_losers(index)
        counts, result = ledger.count_rows(index, pa.table({"image_id": self._manifest})), self._result
        twice = ledger.count_rows(losers, pa.table({"image_id": self._manifest}))
        result.manifest = counts["manifest"]
        result.ok, result.failed, result.gone = (counts[name] - twice[name] for name in ("ok", "error", "gone"))
        has_row = pc.is_in(self._manifest, value_set=index["image_id"].combine_chunks())
        pending = self._manifest.filter(pc.invert(has_row))
        result.pending = len(pending)
        return pending

    def _look_at_part(self, status: str, location: str, pool: ThreadPoolExecutor) -> pa.Table | None:
        """The index columns of a part; None for one that is damaged, or has just been taken away by a job at work."""
        index, named = [], []
        try:
            for rows in _decode_rows(location, storage.read_bytes(location)):
                for findings in pool.map(lambda row: self._row_check.check(row, status), rows.to_pylist()):
                    self._result.findings += findings
                index.append(rows.select(INDEX_COLUMNS))
                named += [pc.struct_field(rows[column], "path").drop_null() for column in ledger.PICTURE_COLUMNS]
        except FileNotFoundError:
            self._look_for_job(location)
            return None
        except ledger.DamagedPartError as error:
            self._damaged.append(location)
            self._find("part", location[len(self._out) + 1 :], str(error))
            return None
        self._named += [array for array in named if len(array)]
        return pa.Table.from_batches(index, index[0].schema) if index else None

    def _compare_pictures(self, index: pa.Table, pending: pa.Array) -> None:
        """Files that no row names, and names without file. Pictures of pending images are those of a killed run."""
        shortened = clearing.find_shortened([*index["image_id"].chunks, self._manifest])
        named = pa.chunked_array(self._named, pa.string()).combine_chunks()
        named = named.filter(pc.match_substring_regex(named, _PICTURE_PATH))  # RowCheck finds the others
        sizes = dict(self._list_pictures())
        listed, filled = (
            pa.array(sizes, pa.string()),
            pa.array([path for path, size in sizes.items() if size], pa.string()),
        )
        for path in named.filter(pc.invert(pc.is_in(named, value_set=filled))).to_pylist():
            kind, image_id = _owner_of(path, shortened)
            if kind != "mask":  # masks are read
                self._find(kind, image_id, f"{path} is missing or empty")
        unnamed = listed.filter(pc.invert(pc.is_in(listed, value_set=named)))
        owners = pa.array([_owner_of(path, shortened)[1] for path in unnamed.to_pylist()], pa.string())
        for path in unnamed.filter(pc.invert(pc.is_in(owners, value_set=pending))).to_pylist():
            self._rubbish.append(path)
            self._find("stray", path, "no row names it")

    def _list_pictures(self) -> Iterator[tuple[str, int]]:
        """(path under OUT, bytes) of every file where pictures lie, save half-written ones."""
        for folder in ledger.PICTURE_FOLDERS:
            for entry in _list_below(self._out, folder):
                if not _is_half_written(entry.path):
                    yield f"{folder}/{entry.path}", entry.size_bytes

    def _find_leftovers(self) -> None:
        """Half-written files. While a job is at work they are its own."""
        if self._result.held_by is not None:
            return
        for folder in ("", ".tmp", "rows", *ledger.PICTURE_FOLDERS):
            for entry in _list_below(self._out, folder):
                # Looked at twice: under --repair our own lease is renewed through .tmp.
                if (folder == ".tmp" or _is_half_written(entry.path)) and storage.exists(entry.location):
                    path = storage.join(folder, entry.path)
                    self._rubbish.append(path)
                    self._find("leftover", path, "a killed run left it half-written")


def _decode_rows(location: str, data: bytes) -> Iterator[pa.RecordBatch]:
    """Some rows at a time, with every column, so that none is damaged unseen. Raises DamagedPartError."""
    try:
        part = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        yield from part.iter_batches(_ROWS_AT_ONCE)
    except (pa.ArrowInvalid, OSError) as error:
        raise ledger.DamagedPartError(f"{location} is damaged ({error}); its images must be done again") from error


def _list_below(out: str, folder: str) -> Iterator[storage.FileEntry]:
    """The files of a folder of OUT, hidden ones too; of OUT itself only those at its top."""
    place = storage.join(out, folder) if folder else out
    if storage.exists(place):
        yield from storage.list_files(place, recursive=bool(folder), hidden=True)


def _is_half_written(path: str) -> bool:
    name = storage.name_of(path)
    return name.startswith(".") and (name.endswith(".tmp") or name.startswith(".probe-"))


def _owner_of(path: str, shortened: dict[str, str]) -> tuple[str, str]:
    """`overlays/a/b.jpg.png` -> (`overlay`, `a/b.jpg`). shortened: as clearing.find_shortened."""
    folder, _, name = path.partition("/")
    stem = name.rpartition(".")[0]
    return _KINDS[folder], shortened.get(stem, stem)


def show_verification(console: Console, verification: Verification) -> None:
    """What `batchseg verify` prints: the counts in a table, then the findings."""
    v = verification
    rows = [("ok", v.ok), ("failed", v.failed), ("pending", v.pending), ("listed", v.manifest), ("gone", v.gone)]
    console.show_table(v.out, ["status", "images"], [[name, f"{count:,}"] for name, count in rows])
    if v.held_by:
        console.say(
            f"the output is in motion ({v.held_by}): these are figures of a moment, and some findings may be too"
        )
    for finding in v.findings[:_SHOWN_FINDINGS]:
        console.say(f"{finding.kind}: {finding.subject}: {finding.message}")
    kinds = Counter(finding.kind for finding in v.findings)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    hidden = len(v.findings) - _SHOWN_FINDINGS
    console.say(
        (f"{len(v.findings)} findings ({counted})" if counted else "clean: nothing is wrong")
        + (f"; {hidden} more not shown" if hidden > 0 else "")
    )
    if v.was_repaired:
        console.say("repaired: what was wrong is removed; the segment line that made OUT does it again")
    elif v.findings and not v.held_by:
        console.say("--repair removes what is wrong; then the segment line that made OUT does it again")
    elif v.pending:
        console.say("the segment line that made OUT does the pending ones")
