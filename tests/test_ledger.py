"""The rows are the ledger: who is to do and why, parts with fixed names, and never two rows for one image."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from batchseg import ledger, storage
from batchseg.classes import parse_classes
from batchseg.errors import UserError
from batchseg.listing import MANIFEST_SCHEMA, ListOptions, list_input

SCHEMA = ledger.make_row_schema(parse_classes(["ground", "thing"]))
TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def make_rows(ids: list[str], run: int = 1, **values: Any) -> pa.Table:
    """Rows with the fields a test needs; all others are null."""
    known = {"input_bytes": 10, "input_modified": TIME, "attempts": 1, "run": run, **values}
    rows = [dict.fromkeys(SCHEMA.names) | known | {"image_id": image_id, "uri": f"/in/{image_id}"} for image_id in ids]
    return pa.Table.from_pylist(rows, SCHEMA)


def make_manifest(ids: list[str], size: int = 10, modified: datetime = TIME) -> pa.Table:
    rows = [{"image_id": name, "uri": f"/in/{name}", "bytes": size, "modified": modified} for name in ids]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def test_a_finished_image_that_cannot_be_seen_now_stays_finished(tmp_path: Path) -> None:
    """A disk that is not there must not cost the masks that were made from it."""
    out = str(tmp_path)
    ledger.commit_part(out, make_rows(["a"]), "ok", 1)
    ledger.commit_part(out, make_rows(["b"]), "error", 1)
    manifest = make_manifest(["a", "b", "c"])
    unknown = pa.nulls(3, pa.int64()), pa.nulls(3, manifest.schema.field("modified").type)
    for name, values in zip(("bytes", "modified"), unknown, strict=True):
        manifest = manifest.set_column(manifest.schema.get_field_index(name), name, values)
    work = ledger.plan_work(manifest, ledger.read_index(out))
    assert work.todo["image_id"].to_pylist() == ["b", "c"]
    assert work.redone.to_pylist() == ["b"]
    assert (work.reasons["done"], work.reasons["changed"], work.unseen) == (1, 0, 1)


def test_rows_of_a_parquet_file_are_done_as_they_lie(tmp_path: Path) -> None:
    rows = [{"image_id": name, "uri": "/in/images.parquet", "row": row} for row, name in enumerate("cab")]
    work = ledger.plan_work(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), ledger.read_index(str(tmp_path)))
    assert work.todo["row"].to_pylist() == [0, 1, 2], "by name, each would read its group of rows anew"


def list_rows(out: Path) -> list[tuple[str, str, int]]:
    """(image_id, status, run) of every row, as any reader of Hive folders sees them."""
    table = pads.dataset(out / "rows", partitioning="hive").to_table(columns=["image_id", "status", "run"])
    return sorted((row["image_id"], row["status"], row["run"]) for row in table.to_pylist())


def list_hidden(out: Path) -> list[Path]:
    """What half-written files would leave."""
    return [path for path in out.rglob("*") if path.is_file() and ".tmp" in str(path.relative_to(out))]


# --- what is to do ---


def test_everything_is_new_at_first(tmp_path: Path) -> None:
    work = ledger.plan_work(make_manifest(["b", "a"]), ledger.read_index(str(tmp_path)))
    assert work.todo["image_id"].to_pylist() == ["a", "b"]
    assert work.todo["attempts"].to_pylist() == [0, 0]
    assert work.redone.to_pylist() == []
    assert work.reasons == {"new": 2, "changed": 0, "failed before": 0, "done": 0}


def test_reasons(tmp_path: Path) -> None:
    out = str(tmp_path)
    ledger.commit_part(out, make_rows(["done", "grown", "touched", "gone"]), "ok", 1)
    ledger.commit_part(out, make_rows(["failed", "failed and grown"], attempts=2), "error", 1)
    manifest = pa.concat_tables(
        [
            make_manifest(["done", "failed", "new"]),
            make_manifest(["grown", "failed and grown"], size=11),
            make_manifest(["touched"], modified=TIME + timedelta(microseconds=1)),
        ]
    )
    work = ledger.plan_work(manifest, ledger.read_index(out))
    attempts = dict(zip(work.todo["image_id"].to_pylist(), work.todo["attempts"].to_pylist(), strict=True))
    assert attempts == {"failed": 2, "failed and grown": 2, "grown": 1, "new": 0, "touched": 1}
    assert work.todo["image_id"].to_pylist() == sorted(attempts)
    assert sorted(work.redone.to_pylist()) == ["failed", "failed and grown", "grown", "touched"]
    assert work.reasons == {"new": 1, "changed": 3, "failed before": 1, "done": 1}


def test_an_older_time_is_a_change_too(tmp_path: Path) -> None:
    ledger.commit_part(str(tmp_path), make_rows(["a"]), "ok", 1)
    manifest = make_manifest(["a"], modified=TIME - timedelta(days=1))
    assert ledger.plan_work(manifest, ledger.read_index(str(tmp_path))).reasons["changed"] == 1


def test_a_row_without_size_is_redone(tmp_path: Path) -> None:
    ledger.commit_part(str(tmp_path), make_rows(["a"], input_bytes=None), "ok", 1)
    assert ledger.plan_work(make_manifest(["a"]), ledger.read_index(str(tmp_path))).redone.to_pylist() == ["a"]


def test_a_listed_file_that_is_missing_has_failed_before(tmp_path: Path) -> None:
    out = str(tmp_path)
    missing = {"input_bytes": None, "input_modified": None, "error_kind": "missing"}
    ledger.commit_part(out, make_rows(["listed"], **missing), "error", 1)
    ledger.commit_part(out, make_rows(["was there"]), "ok", 1)
    ledger.commit_part(out, make_rows(["in a table"], input_modified=None), "ok", 1)
    rows = [
        {"image_id": "listed", "bytes": None, "modified": None, "row": None},
        {"image_id": "was there", "bytes": None, "modified": None, "row": None},
        {"image_id": "in a table", "bytes": 10, "modified": None, "row": 7},
        {"image_id": "in a table too", "bytes": 10, "modified": None, "row": 8},
    ]
    manifest = pa.Table.from_pylist([row | {"uri": "/in/x"} for row in rows], MANIFEST_SCHEMA)
    work = ledger.plan_work(manifest, ledger.read_index(out))
    assert work.reasons == {"new": 1, "changed": 0, "failed before": 1, "done": 2}
    assert work.todo.column_names == [*MANIFEST_SCHEMA.names, "attempts"]
    todo = {row["image_id"]: (row["row"], row["attempts"]) for row in work.todo.to_pylist()}
    assert todo == {"listed": (None, 1), "in a table too": (8, 0)}


def test_a_listing_on_disk_matches_its_own_rows(tmp_path: Path) -> None:
    # Times of a real disk have nanoseconds; the rows keep microseconds.
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"x")
    os.utime(tmp_path / "in/a.png", ns=(1_700_000_000_123_456_789,) * 2)
    manifest = list_input(str(tmp_path / "in"), ListOptions(), leave_out="").manifest
    row = manifest.to_pylist()[0]
    rows = make_rows(["a.png"], input_bytes=row["bytes"], input_modified=row["modified"])
    ledger.commit_part(str(tmp_path / "out"), rows, "ok", 1)
    again = list_input(str(tmp_path / "in"), ListOptions(), leave_out="").manifest
    assert ledger.plan_work(again, ledger.read_index(str(tmp_path / "out"))).reasons["done"] == 1


# --- parts ---


def test_part_names_depend_on_run_and_ids_only(tmp_path: Path) -> None:
    out = str(tmp_path)
    first = ledger.commit_part(out, make_rows(["a", "b"]), "ok", 7)
    assert Path(first).parent == tmp_path / "rows" / "status=ok"
    assert Path(first).name.startswith("part-000007-")
    # A retried write lands on its own name, whatever the order and however long it took.
    assert ledger.commit_part(out, make_rows(["b", "a"], seconds=9.0), "ok", 7) == first
    assert len(ledger.list_parts(out)) == 1
    others = {
        ledger.commit_part(out, make_rows(["a", "b"]), "ok", 8),
        ledger.commit_part(out, make_rows(["a"]), "ok", 7),
        ledger.commit_part(out, make_rows(["ab"]), "ok", 7),
        ledger.commit_part(out, make_rows(["a", "b"]), "error", 7),
    }
    assert len(others | {first}) == 5
    assert list_hidden(tmp_path) == []


def test_a_part_never_holds_an_image_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a part of run 3 would hold an image twice"):
        ledger.commit_part(str(tmp_path), make_rows(["a", "b", "a"]), "ok", 3)
    assert ledger.list_parts(str(tmp_path)) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and no more than that PAR1"])
def test_a_damaged_part_is_named(tmp_path: Path, content: bytes) -> None:
    part = ledger.commit_part(str(tmp_path), make_rows(["a"]), "ok", 1)
    Path(part).write_bytes(content)
    with pytest.raises(ledger.DamagedPartError, match=r"part-000001-.* is damaged .*verify OUT --repair"):
        ledger.read_index(str(tmp_path))


def test_a_byte_that_the_disk_has_lost_shows(tmp_path: Path) -> None:
    mask = {"bytes": bytes(range(256)) * 8, "path": None}
    part = Path(ledger.commit_part(str(tmp_path), make_rows(["a"], mask=mask), "ok", 1))
    data = part.read_bytes()
    place = data.index(bytes(range(100, 120)))
    part.write_bytes(data[:place] + b"!" + data[place + 1 :])
    # No rewriting of a part makes a good one of it.
    with pytest.raises(ledger.DamagedPartError, match="is damaged"):
        ledger.subtract(str(tmp_path), ledger.read_index(str(tmp_path)), ["b", "a"])


def test_rows_read_as_one_table(tmp_path: Path) -> None:
    picture = {"bytes": b"\x89PNG", "path": "a.png"}
    rows = make_rows(["a"], mask=picture, class_pixels=[3, 4], height=2, width=3, mean_confidence=0.5)
    ledger.commit_part(str(tmp_path), rows, "ok", 1)
    ledger.commit_part(str(tmp_path), make_rows(["b"], error_kind="decode", error="cut off"), "error", 1)
    table = pads.dataset(tmp_path / "rows", partitioning="hive").to_table().sort_by("image_id")
    assert table["status"].to_pylist() == ["ok", "error"]
    first, second = table.to_pylist()
    assert (first["mask"], first["class_pixels"], first["height"]) == (picture, [3, 4], 2)
    assert (second["error_kind"], second["error"], second["mask"]) == ("decode", "cut off", None)
    assert first["input_modified"] == TIME
    metadata = pq.read_schema(ledger.list_parts(str(tmp_path))[0][1]).metadata
    assert json.loads(metadata[b"batchseg.classes"]) == ["ground", "thing"]
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["mask"] == {"_type": "Image"}


def test_index_of_an_empty_folder(tmp_path: Path) -> None:
    index = ledger.read_index(str(tmp_path))
    assert len(index) == 0
    assert index.column_names == ["image_id", "input_bytes", "input_modified", "run", "attempts", "status", "part"]
    assert ledger.count_rows(index, make_manifest([])) == {"manifest": 0, "ok": 0, "error": 0, "gone": 0}
    assert ledger.count_rows(index, make_manifest(["a"])) == {"manifest": 1, "ok": 0, "error": 0, "gone": 0}
    assert len(ledger.settle(str(tmp_path))) == 0


def test_count_rows(tmp_path: Path) -> None:
    ledger.commit_part(str(tmp_path), make_rows(["a", "b", "c"]), "ok", 1)
    ledger.commit_part(str(tmp_path), make_rows(["d", "e"]), "error", 1)
    index = ledger.read_index(str(tmp_path))
    listed = make_manifest(["a", "b", "c", "d", "e"])
    assert ledger.count_rows(index, listed) == {"manifest": 5, "ok": 3, "error": 2, "gone": 0}
    # b and e are listed no more, new has no row yet; a listing may come in chunks.
    changed = pa.concat_tables([make_manifest(["a", "c"]), make_manifest(["d", "new"])])
    assert ledger.count_rows(index, changed) == {"manifest": 4, "ok": 2, "error": 1, "gone": 2}
    assert ledger.count_rows(index, make_manifest([])) == {"manifest": 0, "ok": 0, "error": 0, "gone": 5}


def test_subtract_rewrites_and_deletes(tmp_path: Path) -> None:
    out = str(tmp_path)
    both = ledger.commit_part(out, make_rows(["a", "b"]), "ok", 1)
    alone = ledger.commit_part(out, make_rows(["c"]), "error", 1)
    untouched = ledger.commit_part(out, make_rows(["d"]), "ok", 1)
    inode = os.stat(untouched).st_ino
    assert ledger.subtract(out, ledger.read_index(out), ["a", "c", "c", "unknown"]) == 2
    assert list_rows(tmp_path) == [("b", "ok", 1), ("d", "ok", 1)]
    assert os.path.exists(both)
    assert not os.path.exists(alone)
    assert os.stat(untouched).st_ino == inode
    assert pq.read_schema(both).metadata == SCHEMA.metadata
    assert list_hidden(tmp_path) == []
    assert ledger.subtract(out, ledger.read_index(out), []) == 0


# --- one row per image ---


def test_settle_keeps_the_higher_run(tmp_path: Path) -> None:
    ledger.commit_part(str(tmp_path), make_rows(["a", "b"], run=1), "ok", 1)
    # Even a failure: it was the last to look at the file.
    ledger.commit_part(str(tmp_path), make_rows(["a"], run=2), "error", 2)
    index = ledger.settle(str(tmp_path))
    assert list_rows(tmp_path) == [("a", "error", 2), ("b", "ok", 1)]
    assert sorted(index["image_id"].to_pylist()) == ["a", "b"]


def test_settle_keeps_ok_within_a_run(tmp_path: Path) -> None:
    ledger.commit_part(str(tmp_path), make_rows(["a"]), "error", 1)
    ledger.commit_part(str(tmp_path), make_rows(["a", "b"]), "ok", 1)
    ledger.settle(str(tmp_path))
    assert list_rows(tmp_path) == [("a", "ok", 1), ("b", "ok", 1)]
    assert len(ledger.list_parts(str(tmp_path))) == 1


def test_settle_keeps_the_smaller_part_name(tmp_path: Path) -> None:
    parts = [ledger.commit_part(str(tmp_path), make_rows(ids), "ok", 1) for ids in (["a", "b"], ["a", "c"], ["a"])]
    index = ledger.settle(str(tmp_path))
    assert list_rows(tmp_path) == [("a", "ok", 1), ("b", "ok", 1), ("c", "ok", 1)]
    kept = {row["image_id"]: row["part"] for row in index.to_pylist()}
    assert kept["a"] == min(parts)


def test_settle_without_duplicates_writes_nothing(tmp_path: Path) -> None:
    part = ledger.commit_part(str(tmp_path), make_rows(["a", "b"]), "ok", 1)
    inode = os.stat(part).st_ino
    first, second = ledger.settle(str(tmp_path)), ledger.settle(str(tmp_path))
    assert first.equals(second)
    assert os.stat(part).st_ino == inode


def test_settle_is_the_same_in_any_order(tmp_path: Path) -> None:
    parts = [(["a", "b"], "ok", 1), (["a"], "error", 2), (["b", "c"], "ok", 2), (["c"], "error", 2), (["a"], "ok", 2)]
    settled = []
    for number, order in enumerate([parts, parts[::-1]]):
        out = tmp_path / str(number)
        for ids, status, run in order:
            ledger.commit_part(str(out), make_rows(ids, run=run), status, run)
        ledger.settle(str(out))
        settled.append(list_rows(out))
        assert list_hidden(out) == []
    assert settled[0] == settled[1] == [("a", "ok", 2), ("b", "ok", 2), ("c", "ok", 2)]


# --- whose folder this is ---


def test_new_and_empty_folders_have_no_run(tmp_path: Path) -> None:
    assert ledger.read_run(str(tmp_path / "none")) is None
    assert ledger.read_run(str(tmp_path)) is None


def test_run_round_trip(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    ledger.write_run(out, {"run": 1, "bundle": "b", "parameters": {"overlays": "png"}})
    ledger.write_run(out, {"run": 2, "bundle": "b", "parameters": {"overlays": "png"}})
    assert ledger.read_run(out) == {"run": 2, "bundle": "b", "parameters": {"overlays": "png"}}
    assert list_hidden(tmp_path / "out") == []


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"OUT .* exists and is not an output of batchseg \(it has no run\.json\)"):
        ledger.read_run(str(tmp_path))
    with pytest.raises(UserError, match="is not an output of batchseg"):
        ledger.read_run(str(tmp_path / "sub" / "thesis.txt"))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".ssh").mkdir()
    with pytest.raises(UserError, match="is not an output of batchseg"):
        ledger.read_run(str(tmp_path / "hidden"))


def test_what_a_run_killed_at_once_leaves_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / ".abc.tmp").write_bytes(b"half")
    assert ledger.read_run(str(tmp_path)) is None


def test_a_run_refused_at_its_start_is_forgotten(tmp_path: Path) -> None:
    ledger.write_run(str(tmp_path), {"run": 1, "bundle": "b", "parameters": {}})
    (tmp_path / "classes.json").touch()
    ledger.forget_run(str(tmp_path))
    assert ledger.read_run(str(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "3", '{"run": 1}'])
def test_damaged_or_foreign_run_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"OUT .*: (run\.json is damaged|its run\.json is not one of batchseg)"):
        ledger.read_run(str(tmp_path))


def test_a_folder_with_no_more_than_a_lease_and_a_log_is_free(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{}")
    (tmp_path / "batchseg.log").write_text("")
    assert ledger.read_run(str(tmp_path)) is None


def test_a_first_run_that_came_to_nothing_is_forgotten(tmp_path: Path) -> None:
    out = str(tmp_path)
    for has_picture in (True, False):
        ledger.write_run(out, {"run": 1, "bundle": "b", "parameters": {}})
        storage.write_atomic(f"{out}/classes.json", "{}")
        if has_picture:
            storage.write_atomic(f"{out}/masks/a.png", b"x")
        ledger.forget_run(out)
        assert (tmp_path / "run.json").exists() == has_picture
        (tmp_path / "masks/a.png").unlink(missing_ok=True)
        if has_picture:
            (tmp_path / "masks").rmdir()
    assert ledger.read_run(out) is None
    ledger.write_run(out, {"run": 1, "bundle": "b", "parameters": {}})
    ledger.commit_part(out, make_rows(["a"]), "ok", 1)
    ledger.forget_run(out)
    assert ledger.read_run(out) == {"run": 1, "bundle": "b", "parameters": {}}


def test_a_half_removed_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an --overwrite was cut short .* give --overwrite again"):
        ledger.check_same_run("/out", {"state": ledger.OVERWRITING, "parameters": {"size": 1}}, {"size": 1})


def test_other_parameters_are_named(tmp_path: Path) -> None:
    before = {"parameters": {"bundle": "abc", "overlays": "png", "size": 512}}
    ledger.check_same_run("/out", before, {"bundle": "abc", "overlays": "png", "size": 512})
    with pytest.raises(UserError) as caught:
        ledger.check_same_run("/out", before, {"bundle": "xyz", "overlays": "png", "size": 0})
    assert "differing: bundle ('abc' there, 'xyz' now); size (512 there, 0 now)" in str(caught.value)
    assert "overlays" not in str(caught.value)


def test_local_staging_and_no_staging_on_s3() -> None:
    assert ledger.staging_of("/out") == "/out/.tmp"
    assert ledger.staging_of("s3://bucket/out") is None


def test_sweep_staging_takes_all_that_is_half_written(tmp_path: Path) -> None:
    out = str(tmp_path)
    ledger.sweep_staging(out)  # nothing there: no error
    part = Path(ledger.commit_part(out, make_rows(["a"]), "ok", 1))
    for name in [".old.tmp", "deep/.other.tmp", "plain"]:
        path = tmp_path / ".tmp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    ledger.sweep_staging(out)
    assert list_hidden(tmp_path) == []
    assert part.exists()


def test_sweep_staging_of_s3_does_nothing() -> None:
    ledger.sweep_staging("s3://bucket/out")


def test_format_now() -> None:
    moment = datetime.fromisoformat(ledger.format_now())
    assert moment.utcoffset() == timedelta(0)
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 5
