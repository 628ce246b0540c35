"""verify finds every kind of damage, repair takes away just that, and a whole output is clean."""

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchseg import clearing, ledger, row_check, storage
from batchseg.classes import parse_classes
from batchseg.console import Console
from batchseg.digest import digest_output
from batchseg.errors import StoppedError, UserError
from batchseg.images import encode_mask
from batchseg.lease import Lease
from batchseg.listing import MANIFEST_SCHEMA
from batchseg.verify import Finding, Verification, show_verification, verify_output

CLASSES = parse_classes(["ground", "thing"])
SCHEMA = ledger.make_row_schema(CLASSES)
TIME = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ["a.jpg", "b/ü #1.png", "b/line\nbreak.jpg", "c.png"]


def make_row(out: Path, name: str, write: str = "parquet,png", **values: Any) -> dict[str, Any]:
    """The row of a finished image of 5x7 pixels, some of them abstained; its pictures are written."""
    rng = np.random.default_rng(len(name))
    mask = rng.choice(np.array([0, 1, 255], np.uint8), (5, 7))
    pictures = {
        "mask": (clearing.name_picture("masks", name), encode_mask(mask, CLASSES.palette)),
        "overlay": (clearing.name_picture("overlays", name, ".jpg"), b"jpg"),
        "score_map": (clearing.name_picture("scores", name), b"png"),
    }
    row = dict.fromkeys(SCHEMA.names) | {
        "image_id": name, "uri": f"/in/{name}", "input_bytes": 10, "input_modified": TIME, "height": 5, "width": 7,
        "class_pixels": np.bincount(mask.ravel(), minlength=256)[:2].tolist(), "bundle": "abc", "run": 1, "attempts": 1,
        "seconds": 0.5, "mean_confidence": 0.75, "rle": [],
    }  # fmt: skip
    for kind, (path, data) in pictures.items():
        if "png" in write:
            storage.write_atomic(str(out / path), data, str(out / ".tmp"))
        row[kind] = {"bytes": data if "parquet" in write else None, "path": path if "png" in write else None}
    return row | values


def commit(out: Path, rows: list[dict[str, Any]], status: str = "ok", run: int = 1) -> Path:
    return Path(ledger.commit_part(str(out), pa.Table.from_pylist(rows, SCHEMA), status, run))


def write_manifest(out: Path, names: list[str]) -> None:
    rows = [{"image_id": name, "uri": f"/in/{name}", "bytes": 10, "modified": TIME} for name in names]
    table = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    ledger.write_table(str(out / "manifest.parquet"), table, str(out))


def make_out(out: Path, write: str = "parquet,png") -> Path:
    """Four ok images in two parts, one that failed."""
    parameters = {
        "bundle_digest": "abc", "write": write.split(","), "overlays": "jpg", "score_map": True, "rle": True,
    }  # fmt: skip
    ledger.write_run(str(out), {"run": 1, "bundle": "b", "state": "complete", "parameters": parameters})
    write_manifest(out, [*NAMES, "bad.jpg"])
    commit(out, [make_row(out, name, write) for name in NAMES[:2]])
    commit(out, [make_row(out, name, write) for name in NAMES[2:]])
    failed = dict.fromkeys(SCHEMA.names) | {"image_id": "bad.jpg", "error_kind": "decode", "run": 1, "attempts": 1}
    commit(out, [failed], "error")
    return out


def list_kinds(result: Verification) -> list[tuple[str, str]]:
    return [(finding.kind, finding.subject) for finding in result.findings]


def rewrite(out: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes the row of one image where it lies."""
    for _, part in ledger.list_parts(str(out)):
        rows = ledger.read_part(part).to_pylist()
        if name in [row["image_id"] for row in rows]:
            changed = [change(row) if row["image_id"] == name else row for row in rows]
            ledger.write_table(part, pa.Table.from_pylist(changed, SCHEMA), str(out))


@pytest.mark.parametrize("write", ["parquet", "png", "parquet,png"])
def test_a_whole_output_is_clean(tmp_path: Path, write: str) -> None:
    out = make_out(tmp_path / "out", write)
    shown: list[str] = []
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    result = verify_output(str(out), show=shown.append)
    assert result == Verification(str(out), manifest=5, ok=4, failed=1)
    assert (result.is_clean, result.is_complete, result.held_by) == (True, True, None)
    assert shown[-1] == "verified 3/3 parts, 5 rows"
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


def test_pending_and_gone_are_no_damage(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_manifest(out, ["a.jpg", "bad.jpg", "new.jpg", "newer.jpg"])
    # Written by a run that was killed before the row: the same line will replace it.
    storage.write_atomic(str(out / "masks/new.jpg.png"), b"of a killed run")
    result = verify_output(str(out))
    assert (result.manifest, result.ok, result.failed, result.pending, result.gone) == (4, 1, 1, 2, 3)
    assert (result.is_clean, result.is_complete) == (True, False)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def other_mask(out: Path, name: str, shape: tuple[int, int] = (5, 7)) -> bytes:
    """Writes another mask into file and row, and returns it."""
    data = encode_mask(np.ones(shape, np.uint8), CLASSES.palette)
    (out / f"masks/{name}.png").write_bytes(data)
    rewrite(out, name, lambda row: row | {"mask": row["mask"] | {"bytes": data}})
    return data


def write_stray(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stray")


DAMAGES: list[tuple[str, Callable[[Path], object], list[tuple[str, str, str]], int]] = [
    ("mask missing", lambda out: (out / "masks/a.jpg.png").unlink(), [("mask", "a.jpg", "is missing")], 1),
    ("mask cut", lambda out: cut(out / "masks/a.jpg.png"), [("mask", "a.jpg", "not the mask that the row holds")], 1),
    ("mask empty", lambda out: (out / "masks/c.png.png").write_bytes(b""), [("mask", "c.png", "not the mask")], 1),
    ("pixels", lambda out: other_mask(out, "a.jpg"), [("mask", "a.jpg", "pixels of class 0, 1 are not as many")], 1),
    ("size", lambda out: other_mask(out, "a.jpg", (7, 5)), [("mask", "a.jpg", "the mask is 5x7, its image 7x5")], 1),
    ("mask bytes", lambda out: rewrite(out, "a.jpg", lambda r: r | {"mask": r["mask"] | {"bytes": None}}),
     [("mask", "a.jpg", "does not hold its bytes")], 1),
    ("no mask", lambda out: rewrite(out, "a.jpg", lambda r: r | {"mask": None}),
     [("mask", "a.jpg", "the row has none"), ("stray", "masks/a.jpg.png", "no row names it")], 1),
    ("path", lambda out: rewrite(out, "a.jpg", lambda r: r | {"mask": r["mask"] | {"path": "../x.png"}}),
     [("mask", "a.jpg", "'../x.png'; its name is 'masks/a.jpg.png'"), ("stray", "masks/a.jpg.png", "no row")], 1),
    ("overlay missing", lambda out: (out / "overlays/a.jpg.jpg").unlink(), [("overlay", "a.jpg", "is missing")], 1),
    ("overlay empty", lambda out: (out / "overlays/a.jpg.jpg").write_bytes(b""), [("overlay", "a.jpg", "empty")], 1),
    ("no overlay", lambda out: rewrite(out, "a.jpg", lambda r: r | {"overlay": None}),
     [("overlay", "a.jpg", "the row has none"), ("stray", "overlays/a.jpg.jpg", "no row names it")], 1),
    ("other overlay", lambda out: rewrite(out, "a.jpg", lambda r: r | {"overlay": r["overlay"] | {"path": "a.png"}}),
     [("overlay", "a.jpg", "'a.png'; its name is 'overlays/a.jpg.jpg'"), ("stray", "overlays/a.jpg.jpg", "no row")], 1),
    ("no score map", lambda out: rewrite(out, "c.png", lambda r: r | {"score_map": None}),
     [("score map", "c.png", "the row has none"), ("stray", "scores/c.png.png", "no row names it")], 1),
    ("score map missing", lambda out: (out / "scores/c.png.png").unlink(), [("score map", "c.png", "is missing")], 1),
    ("no run lengths", lambda out: rewrite(out, "c.png", lambda r: r | {"rle": None}),
     [("row", "c.png", "has no run-length codes")], 1),
    ("other bundle", lambda out: rewrite(out, "c.png", lambda r: r | {"bundle": "xyz"}),
     [("row", "c.png", "was made with bundle xyz, OUT with abc")], 1),
    ("ok with error", lambda out: rewrite(out, "c.png", lambda r: r | {"error_kind": "oom"}),
     [("row", "c.png", "has the error_kind oom")], 1),
    ("error without", lambda out: rewrite(out, "bad.jpg", lambda r: r | {"error_kind": None}),
     [("row", "bad.jpg", "has no error_kind")], 1),
    ("stray", lambda out: write_stray(out / "masks/b/gone.jpg.png"), [("stray", "masks/b/gone.jpg.png", "no row")], 0),
    ("hidden stray", lambda out: write_stray(out / "scores/.x/y"), [("stray", "scores/.x/y", "no row")], 0),
    ("of a failed one", lambda out: write_stray(out / "masks/bad.jpg.png"), [("stray", "masks/bad.jpg.png", "no")], 0),
    ("leftover", lambda out: write_stray(out / ".tmp/.0123.tmp"), [("leftover", ".tmp/.0123.tmp", "killed")], 0),
    ("probe", lambda out: write_stray(out / ".probe-1"), [("leftover", ".probe-1", "half-written")], 0),
    ("beside", lambda out: write_stray(out / "masks/.1.tmp"), [("leftover", "masks/.1.tmp", "half-written")], 0),
    ("twice", lambda out: commit(out, [make_row(out, "a.jpg", run=2)], run=2), [("twice", "a.jpg", "part-000001-")], 0),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "expected", "pending"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_found_and_repaired(
    tmp_path: Path, damage: Callable[[Path], object], expected: list[tuple[str, str, str]], pending: int
) -> None:
    out = make_out(tmp_path)
    damage(out)
    for repair in (False, True):
        result = verify_output(str(out), repair=repair)
        assert list_kinds(result) == [(kind, subject) for kind, subject, _ in expected]
        for finding, (_, _, text) in zip(result.findings, expected, strict=True):
            assert text in finding.message
    # Just the gap is to do; nothing else was touched.
    after = verify_output(str(out))
    assert after.findings == []
    assert (after.manifest, after.ok + after.failed, after.pending) == (5, 5 - pending, pending)
    assert (result.pending, result.was_repaired) == (pending, True)
    assert not (out / "lease.json").exists()


@pytest.mark.parametrize("content", [b"", b"PAR1", "cut", "flipped"])
def test_a_damaged_part_is_deleted_and_its_images_wait(tmp_path: Path, content: bytes | str) -> None:
    out = make_out(tmp_path)
    parts = [Path(part) for _, part in ledger.list_parts(str(out))]
    part = next(part for part in parts if "a.jpg" in ledger.read_part(str(part))["image_id"].to_pylist())
    whole = part.read_bytes()
    flipped = whole[:200] + bytes([255 - whole[200]]) + whole[201:]
    part.write_bytes(content if isinstance(content, bytes) else whole[:-100] if content == "cut" else flipped)
    found = verify_output(str(out))
    assert list_kinds(found) == [("part", f"rows/status=ok/{part.name}")]
    assert (found.ok, found.pending) == (2, 2)
    if content != "flipped":  # that byte is in no column of the index
        with pytest.raises(ledger.DamagedPartError, match="verify OUT --repair"):
            ledger.read_index(str(out))
    assert verify_output(str(out), repair=True).pending == 2
    assert not part.exists()
    assert verify_output(str(out)).is_clean
    assert (out / "masks/a.jpg.png").exists()


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no"])
def test_a_manifest_that_cannot_be_read_is_a_finding(tmp_path: Path, content: bytes | None) -> None:
    out = make_out(tmp_path)
    (out / "manifest.parquet").unlink()
    if content is not None:
        (out / "manifest.parquet").write_bytes(content)
    result = verify_output(str(out), repair=True)
    assert list_kinds(result) == [("manifest", "manifest.parquet")]
    assert "the same segment line writes it anew" in result.findings[0].message
    assert (result.manifest, result.gone) == (0, 5)
    assert len(ledger.read_index(str(out))) == 5  # no row goes for it


@pytest.mark.parametrize("size_hw", [(1, 1), (3000, 2000)])
def test_a_mask_of_any_size_is_counted_exactly(size_hw: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), size_hw)
    counts = np.bincount(ids.ravel(), minlength=8)[:8].tolist()
    data = encode_mask(ids, CLASSES.palette)
    assert row_check.compare_mask(data, size_hw, counts) == ""
    assert "pixels of class 0 " in row_check.compare_mask(data, size_hw, [counts[0] + 1, *counts[1:]])
    assert "the mask is" in row_check.compare_mask(data, (None, None), counts)
    if size_hw != (1, 1):
        assert "pixels of class 7 " in row_check.compare_mask(data, size_hw, counts[:7])
        assert "cannot be decoded" in row_check.compare_mask(data[: len(data) // 2], size_hw, counts)


def test_a_colour_picture_is_no_mask() -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (7, 5)).save(buffer, "PNG")
    assert "mode RGB" in row_check.compare_mask(buffer.getvalue(), (5, 7), [35, 0])


def test_a_job_at_work_is_named_and_repair_waits_for_it(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_stray(out / ".tmp/.0123.tmp")
    with Lease.acquire(str(out), say=print):
        result = verify_output(str(out))
        assert f"pid {os.getpid()}" in str(result.held_by)
        assert result.is_clean  # what is half-written is the job's own
        with pytest.raises(UserError, match="in use by another job"):
            verify_output(str(out), repair=True)
    assert (out / ".tmp/.0123.tmp").exists()


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_job_that_starts_during_the_look_is_no_fault(tmp_path: Path, has_ended: bool) -> None:
    out, held = make_out(tmp_path / "out"), []

    def start_job(text: str) -> None:
        if not held:
            held.append(Lease.acquire(str(out), say=print))
            parts = [Path(part) for _, part in ledger.list_parts(str(out))]
            parts[1].unlink()  # not looked at yet
            if has_ended:
                held[0].release()

    result = verify_output(str(out), show=start_job)
    held[0].release()
    assert ("ended meanwhile" if has_ended else f"pid {os.getpid()}") in str(result.held_by)
    assert (result.ok, result.pending) == (2, 2)


def test_a_part_that_vanishes_under_repair_stops_it(tmp_path: Path) -> None:
    out = make_out(tmp_path / "out")

    def remove_part(text: str) -> None:
        for _, part in ledger.list_parts(str(out))[1:]:
            Path(part).unlink()

    with pytest.raises(StoppedError, match="has vanished: somebody else changes OUT"):
        verify_output(str(out), repair=True, show=remove_part)
    assert not (out / "lease.json").exists()


LONG = ["ü" * 130 + ".jpg", f"{'d' * 300}/x.png", "a" * 251, "a" * 252]


def test_a_name_that_no_disk_takes_is_found_and_repaired_like_any_other(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    rows = [make_row(out, name) for name in LONG]
    for row, name in zip(rows, LONG, strict=True):
        for column, folder, suffix in (("mask", "masks", "png"), ("overlay", "overlays", "jpg")):
            assert row[column]["path"] == clearing.name_picture(folder, name, f".{suffix}")
    commit(out, rows, run=2)
    write_manifest(out, [*NAMES, "bad.jpg", *LONG])
    assert verify_output(str(out)).is_clean
    (out / clearing.name_picture("overlays", LONG[0], ".jpg")).unlink()
    assert list_kinds(verify_output(str(out), repair=True)) == [("overlay", LONG[0])]
    # A killed run left the mask of a pending image: no stray.
    storage.write_atomic(str(out / clearing.name_picture("masks", LONG[0])), b"x")
    result = verify_output(str(out))
    assert (result.is_clean, result.pending) == (True, 1)


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an output of batchseg"):
        verify_output(str(tmp_path / "none"))
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not an output of batchseg"):
        verify_output(str(tmp_path), repair=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_repair_leaves_alone_what_a_link_leads_to(tmp_path: Path) -> None:
    out, photos = make_out(tmp_path / "out"), tmp_path / "photos"
    write_stray(photos / "mine.png")
    (out / "masks/linked").symlink_to(photos, target_is_directory=True)
    with suppress(UserError):  # whether links are followed by the listing is storage's to say
        verify_output(str(out), repair=True)
    assert (photos / "mine.png").exists()
    with pytest.raises(UserError, match="outside of OUT; it is left alone"):
        clearing.delete_pictures(str(out), ["masks/linked/mine.png"])
    assert (photos / "mine.png").exists()


def test_the_table(tmp_path: Path) -> None:
    stream = io.StringIO()
    findings = [Finding("stray", f"masks/{i}.png", "no row names it") for i in range(30)]
    show_verification(Console(stream), Verification("/out", 1234, 1000, 34, 200, 5, findings))
    text = stream.getvalue()
    assert "1,234" in text
    assert text.count("stray: masks/") == 20
    assert "30 findings (30 stray); 10 more not shown" in text
    assert "--repair removes what is wrong" in text
    stream = io.StringIO()
    show_verification(Console(stream), Verification("/out", 1, 1, held_by="host h, pid 1, since now"))
    assert "clean: nothing is wrong" in stream.getvalue()
    assert "the output is in motion (host h, pid 1" in stream.getvalue()


# --- the digest ---


def test_the_digest_does_not_know_how_rows_came_about(tmp_path: Path) -> None:
    first, second = make_out(tmp_path / "1"), tmp_path / "2"
    for name in reversed(NAMES):
        commit(second, [make_row(second, name, run=7, seconds=9.0, attempts=3)], run=7)
    failed = dict.fromkeys(SCHEMA.names) | {"image_id": "bad.jpg", "error_kind": "decode", "error": "x", "run": 9}
    commit(second, [failed], "error", 9)
    assert digest_output(str(first)) == digest_output(str(second))
    assert len(digest_output(str(first))) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda out: cut(out / "masks/a.jpg.png"),
        lambda out: rewrite(out, "a.jpg", lambda row: row | {"class_pixels": [0, 0]}),
        lambda out: rewrite(out, "bad.jpg", lambda row: row | {"error_kind": "oom"}),
        lambda out: rewrite(out, "a.jpg", lambda row: row | {"image_id": "z.jpg"}),
        lambda out: commit(out, [make_row(out, "new.jpg")]),
        lambda out: os.remove(ledger.list_parts(str(out))[0][1]),
    ],
)
def test_the_digest_knows_what_counts(tmp_path: Path, change: Callable[[Path], object]) -> None:
    out = make_out(tmp_path)
    before = digest_output(str(out))
    change(out)
    assert digest_output(str(out)) != before


def test_the_digest_of_masks_in_rows_only(tmp_path: Path) -> None:
    out = make_out(tmp_path, "parquet")
    before = digest_output(str(out))
    assert not (out / "masks").exists()
    rewrite(out, "a.jpg", lambda row: row | {"mask": {"bytes": b"other", "path": None}})
    assert digest_output(str(out)) != before


def test_a_missing_mask_has_no_digest(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    (out / "masks/a.jpg.png").unlink()
    with pytest.raises(FileNotFoundError):
        digest_output(str(out))


def test_parts_keep_their_metadata_through_a_repair(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    (out / "masks/a.jpg.png").unlink()
    verify_output(str(out), repair=True)
    for _, part in ledger.list_parts(str(out)):
        assert json.loads(pq.read_schema(part).metadata[b"batchseg.classes"]) == ["ground", "thing"]
