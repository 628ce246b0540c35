"""Killed between any two writes, and inside each: no row that must stay is lost, none ends twice, the end is the same.

An operation runs in a forked process that ends itself, as SIGKILL would, after its k-th write or delete, or just
before the rename of its k-th write; for every k, until one is large enough for the operation to finish. Then the real
code looks at what is left and goes on.
"""

import itertools
import os
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from batchseg import clearing, ledger, storage
from batchseg.classes import parse_classes
from batchseg.digest import digest_output
from batchseg.errors import UserError
from batchseg.images import decode_mask, encode_mask
from batchseg.listing import MANIFEST_SCHEMA
from batchseg.verify import verify_output

CLASSES = parse_classes(["ground", "thing"])
SCHEMA = ledger.make_row_schema(CLASSES)
TIME = datetime(2026, 1, 2, tzinfo=UTC)
DIED = 77
TIMEOUT_S = 60
Listing = dict[str, int]  # image id -> version, which stands for the file's size
Operation = Callable[[Path], object]


# --- dying ---


def die_at(count: int, where: str) -> None:
    """Lets this process die at its count-th write: `between` after it, `inside` before its rename."""
    tickets = itertools.count(1)  # parts are rewritten in threads: each call draws its own

    def wrap(function: Callable[..., Any], dies_before: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            is_last = next(tickets) == count
            if is_last and dies_before:
                os._exit(DIED)
            result = function(*arguments, **named)
            if is_last:
                os._exit(DIED)
            return result

        return call

    if where == "inside":
        os.replace = wrap(os.replace, True)
    else:
        storage.write_atomic = wrap(storage.write_atomic, False)  # type: ignore[assignment]
        storage.delete_file = wrap(storage.delete_file, False)  # type: ignore[assignment]


def survives(operation: Operation, out: Path, count: int, where: str) -> bool:
    """Runs it in a child. False when the child died at its count-th write."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_S)
        code = 1
        try:
            die_at(count, where)
            operation(out)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), code
    return code == 0


def list_deaths(operation: Operation, build: Operation, tmp_path: Path, where: str) -> Iterator[Path]:
    """One folder for every possible death, as the death left it."""
    count, has_survived, before = 0, False, tmp_path / f"{where}-before"
    build(before)
    while not has_survived:
        count += 1
        out = tmp_path / f"{where}-{count}"
        shutil.copytree(before, out)
        has_survived = survives(operation, out, count, where)
        if not has_survived:
            yield out
    assert count > 1, "the operation never wrote"


both = pytest.mark.parametrize("where", ["between", "inside"])


# --- a job without model ---


def draw_mask(name: str, version: int) -> np.ndarray:
    return np.random.default_rng([version, *name.encode()]).integers(0, 2, (6, 5)).astype(np.uint8)


def finish(out: Path, name: str, version: int, run: int) -> dict[str, Any]:
    """Writes the pictures of an image and returns its row. Names with `bad` fail."""
    row = dict.fromkeys(SCHEMA.names) | {
        "image_id": name, "uri": f"/in/{name}", "input_bytes": version, "input_modified": TIME, "bundle": "abc",
        "run": run, "attempts": 1,
    }  # fmt: skip
    if "bad" in name:
        return row | {"error_kind": "decode", "error": "cut off"}
    mask = draw_mask(name, version)
    for kind, folder in (("mask", "masks"), ("overlay", "overlays")):
        data, path = encode_mask(mask, CLASSES.palette), clearing.name_picture(folder, name)
        storage.write_atomic(str(out / path), data, ledger.staging_of(str(out)))
        row[kind] = {"bytes": data, "path": path}
    return row | {"height": 6, "width": 5, "class_pixels": np.bincount(mask.ravel(), minlength=2).tolist()}


def commit(out: Path, images: Listing, run: int) -> None:
    rows = [finish(out, name, version, run) for name, version in images.items()]
    for status in ("ok", "error"):
        part = [row for row in rows if (row["error_kind"] is None) == (status == "ok")]
        if part:
            ledger.commit_part(str(out), pa.Table.from_pylist(part, SCHEMA), status, run)


def make_manifest(listing: Listing) -> pa.Table:
    rows = [{"image_id": name, "uri": f"/in/{name}", "bytes": size, "modified": TIME} for name, size in listing.items()]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def segment(out: Path, listing: Listing) -> None:
    """What a run does, in its order."""
    run = (ledger.read_run(str(out)) or {"run": 0})["run"] + 1
    parameters = {"write": ["parquet", "png"], "overlays": "png", "bundle_digest": "abc"}
    ledger.write_run(str(out), {"run": run, "bundle": "b", "state": "running", "parameters": parameters})
    manifest = make_manifest(listing)
    ledger.write_table(str(out / "manifest.parquet"), manifest, str(out))
    ledger.sweep_staging(str(out))
    index = ledger.settle(str(out))
    work = ledger.plan_work(manifest, index)
    ledger.subtract(str(out), index, work.redone)
    todo = work.todo["image_id"].to_pylist()
    for start in range(0, len(todo), 2):
        commit(out, {name: listing[name] for name in todo[start : start + 2]}, run)
    clearing.delete_failed_pictures(str(out), ledger.settle(str(out)), run)
    ledger.sweep_staging(str(out))


def read_counts(out: Path) -> Counter[str]:
    """How often a reader of rows/ sees each image."""
    if not (out / "rows").exists():
        return Counter()
    return Counter(
        pads.dataset(out / "rows", partitioning="hive").to_table(columns=["image_id"])["image_id"].to_pylist()
    )


def assert_finished(out: Path, digest: str) -> None:
    assert digest_output(str(out)) == digest
    assert max(read_counts(out).values()) == 1
    result = verify_output(str(out))
    assert (result.findings, result.pending) == ([], 0)


BEFORE: Listing = {"a": 1, "b": 1, "c/d": 1, "e": 1, "bad": 1, "bad too": 1, "gone": 1}
AFTER: Listing = {"a": 1, "b": 2, "c/d": 1, "e": 2, "bad": 1, "bad too": 2, "new": 1, "newer": 1}


def build(out: Path) -> None:
    """A finished run over BEFORE."""
    segment(out, BEFORE)


# --- the tests ---


@both
def test_killed_in_a_commit(tmp_path: Path, where: str) -> None:
    images = {"new": 1, "bad new": 1, "newer": 1}

    def operate(out: Path) -> None:
        commit(out, images, 2)

    build(tmp_path / "whole")
    segment(tmp_path / "whole", BEFORE | images)
    digest, deaths = digest_output(str(tmp_path / "whole")), 0
    for out in list_deaths(operate, build, tmp_path, where):
        deaths += 1
        counts = read_counts(out)
        assert set(BEFORE) <= set(counts) <= set(BEFORE | images)
        assert set(counts.values()) == {1}
        for row in pads.dataset(out / "rows", partitioning="hive").to_table().to_pylist():
            # A row is a promise: its pictures are there before it.
            assert row["mask"] is None or (out / row["mask"]["path"]).read_bytes() == row["mask"]["bytes"]
        segment(out, BEFORE | images)
        assert_finished(out, digest)
    assert deaths >= 6  # two pictures of two images, two parts


@both
def test_killed_in_a_subtraction(tmp_path: Path, where: str) -> None:
    def operate(out: Path) -> None:
        index = ledger.read_index(str(out))
        ledger.subtract(str(out), index, ledger.plan_work(make_manifest(AFTER), index).redone)

    build(tmp_path / "whole")
    segment(tmp_path / "whole", AFTER)
    digest = digest_output(str(tmp_path / "whole"))
    for out in list_deaths(operate, build, tmp_path, where):
        counts = read_counts(out)
        assert {"a", "c/d", "gone"} <= set(counts) <= set(BEFORE)
        assert set(counts.values()) == {1}
        segment(out, AFTER)
        assert_finished(out, digest)


def build_doubles(out: Path) -> None:
    """As two jobs at once, and tasks that ran twice, can leave it."""
    segment(out, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1})
    run = dict(ledger.read_run(str(out)) or {})
    commit(out, {"a": 1, "c": 1}, 2)
    commit(out, {"d": 1, "f": 1}, 2)
    row = finish(out, "f", 1, 2) | {"error_kind": "read", "error": "x", "mask": None, "overlay": None}
    ledger.commit_part(str(out), pa.Table.from_pylist([row], SCHEMA), "error", 2)
    ledger.write_run(str(out), run | {"run": 2})


@both
def test_killed_in_a_settlement(tmp_path: Path, where: str) -> None:
    def operate(out: Path) -> None:
        ledger.settle(str(out))

    build_doubles(tmp_path / "whole")
    assert sorted(Counter(read_counts(tmp_path / "whole").values()).items()) == [(1, 2), (2, 4)]
    ledger.settle(str(tmp_path / "whole"))
    digest = digest_output(str(tmp_path / "whole"))
    for out in list_deaths(operate, build_doubles, tmp_path, where):
        counts = read_counts(out)
        assert set(counts) == {"a", "b", "c", "d", "e", "f"}
        assert max(counts.values()) <= 2
        index = ledger.settle(str(out))
        kept = {row["image_id"]: (row["run"], row["status"]) for row in index.to_pylist()}
        assert kept == {name: (1 if name in "be" else 2, "ok") for name in "abcdef"}
        assert set(read_counts(out).values()) == {1}
        assert digest_output(str(out)) == digest


@both
def test_killed_in_a_prune(tmp_path: Path, where: str) -> None:
    listing = {name: version for name, version in BEFORE.items() if name not in ("gone", "a", "bad")}

    def operate(out: Path) -> None:
        clearing.prune(str(out), ledger.read_index(str(out)), make_manifest(listing)["image_id"])

    def finish_listing(out: Path) -> None:
        segment(out, listing)
        verify_output(str(out), repair=True)

    build(tmp_path / "whole")
    operate(tmp_path / "whole")
    segment(tmp_path / "whole", listing)
    digest = digest_output(str(tmp_path / "whole"))
    assert verify_output(str(tmp_path / "whole")).is_clean
    assert set(read_counts(tmp_path / "whole")) == set(listing)
    for out in list_deaths(operate, build, tmp_path, where):
        counts = read_counts(out)
        assert set(listing) <= set(counts) <= set(BEFORE)
        for name in counts:  # a row never outlives its pictures: if the image came back, it would count as done
            assert "bad" in name or (out / f"masks/{name}.png").exists()
        operate(out)
        assert set(read_counts(out)) == set(listing)
        finish_listing(out)
        assert_finished(out, digest)
        assert not (out / "masks/gone.png").exists()


@both
def test_killed_in_a_removal(tmp_path: Path, where: str) -> None:
    def build_with_guest(out: Path) -> None:
        build(out)
        (out / "masks/mine.txt").write_text("not a row's")

    def operate(out: Path) -> None:
        clearing.remove_output(str(out))

    segment(tmp_path / "whole", AFTER)
    digest = digest_output(str(tmp_path / "whole"))
    for out in list_deaths(operate, build_with_guest, tmp_path, where):
        run = ledger.read_run(str(out))  # still known as ours, whatever is left
        assert run is not None
        if run["state"] == "running":
            assert set(read_counts(out)) == set(BEFORE)  # died before its first step
        else:
            with pytest.raises(UserError, match="--overwrite was cut short"):
                ledger.check_same_run(str(out), run, run["parameters"])
        operate(out)
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["masks/mine.txt", "run.json"]
        (out / "masks/mine.txt").unlink()
        segment(out, AFTER)
        assert_finished(out, digest)


@both
def test_killed_anywhere_in_a_run(tmp_path: Path, where: str) -> None:
    def operate(out: Path) -> None:
        segment(out, AFTER)

    build(tmp_path / "whole")
    segment(tmp_path / "whole", AFTER)
    digest, deaths = digest_output(str(tmp_path / "whole")), 0
    for out in list_deaths(operate, build, tmp_path, where):
        deaths += 1
        counts = read_counts(out)
        assert {"a", "c/d", "gone"} <= set(counts) <= set(BEFORE | AFTER)
        assert max(counts.values()) <= 2
        survives(operate, out, 3 + deaths % 5, where)  # and soon again
        segment(out, AFTER)
        assert_finished(out, digest)
    assert deaths > 15


@both
def test_a_changed_image_never_keeps_its_old_row(tmp_path: Path, where: str) -> None:
    def build_old(out: Path) -> None:
        segment(out, {"same": 1, "changed": 1})

    def operate(out: Path) -> None:
        index = ledger.settle(str(out))
        ledger.subtract(str(out), index, ledger.plan_work(make_manifest(now), index).redone)
        commit(out, {"changed": 2}, 2)

    now, reasons = {"same": 1, "changed": 2}, set()
    for out in list_deaths(operate, build_old, tmp_path, where):
        work = ledger.plan_work(make_manifest(now), ledger.settle(str(out)))
        if work.reasons["done"] != 2:  # else it died after its last write
            assert work.todo["image_id"].to_pylist() == ["changed"]
            reasons |= {reason for reason, count in work.reasons.items() if count and reason != "done"}
        segment(out, now)
        rows = pads.dataset(out / "rows", partitioning="hive").to_table().to_pylist()
        assert sorted((row["image_id"], row["input_bytes"]) for row in rows) == [("changed", 2), ("same", 1)]
        for row in rows:
            mask = decode_mask((out / row["mask"]["path"]).read_bytes(), "mask")
            assert np.array_equal(mask, draw_mask(row["image_id"], row["input_bytes"]))
        assert verify_output(str(out)).is_clean
    assert "new" in reasons  # its old row was gone before the new one came
