"""What leaves an output folder: only what rows name, and never through a link out of it."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchseg import clearing, ledger, storage
from batchseg.classes import parse_classes
from batchseg.errors import UserError

SCHEMA = ledger.make_row_schema(parse_classes(["ground", "thing"]))


def commit(out: Path, names: list[str], status: str = "ok", run: int = 1, **values: Any) -> None:
    """Rows with a mask and an overlay each, unless `values` say otherwise."""
    rows = []
    for name in names:
        row = dict.fromkeys(SCHEMA.names) | {"image_id": name, "run": run, "attempts": 1}
        if status == "ok":
            for column, folder in (("mask", "masks"), ("overlay", "overlays")):
                row[column] = {"bytes": None, "path": clearing.name_picture(folder, name)}
                storage.write_atomic(str(out / row[column]["path"]), name)
        rows.append(row | values)
    ledger.commit_part(str(out), pa.Table.from_pylist(rows, SCHEMA), status, run)


def list_files(out: Path, folder: str = "") -> list[str]:
    return sorted(str(path.relative_to(out)) for path in (out / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("image_id", ["../x", "a/../../x", "..", "/etc/x", "a/..", "../../etc/passwd"])
def test_no_name_leaves_the_folder(tmp_path: Path, image_id: str) -> None:
    try:
        place = storage.join(str(tmp_path), clearing.name_picture("masks", image_id))
    except UserError as error:
        assert "would leave" in str(error)  # noqa: PT017
    else:
        assert Path(place).resolve().is_relative_to(tmp_path / "masks")


def test_names_of_pictures() -> None:
    assert clearing.name_picture("masks", "a/ü #%.jpg") == "masks/a/ü #%.jpg.png"
    assert clearing.name_all_pictures("a.jpg") == [
        "masks/a.jpg.png", "overlays/a.jpg.png", "overlays/a.jpg.jpg", "scores/a.jpg.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image_id", "stem"),
    [
        ("a" * 251, "a" * 251),
        ("a" * 252, "a" * 234 + "~03aaf5773717feae"),
        ("d" * 256 + "/" + "d" * 255 + "/x", "d" * 238 + "~?/" + "d" * 255 + "/x"),
        ("ü" * 130, "ü" * 117 + "~?"),
        ("日" * 90 + "/b", "日" * 79 + "~?/b"),
    ],
)
def test_names_that_are_too_long_are_shortened(tmp_path: Path, image_id: str, stem: str) -> None:
    path = clearing.name_picture("masks", image_id)
    for part in image_id.split("/"):
        stem = stem.replace("~?", f"~{hashlib.sha256(part.encode()).hexdigest()[:16]}", 1)
    assert path == f"masks/{stem}.png"
    assert max(len(part.encode()) for part in path.split("/")) <= 255
    storage.write_atomic(str(tmp_path / path), b"x", str(tmp_path / ".tmp"))
    assert clearing.name_picture("masks", f"{image_id[:-1]}z") != path
    expected = {} if stem == image_id else {stem: image_id}
    assert clearing.find_shortened([pa.array([image_id, "a.jpg"]), pa.array([], pa.string())]) == expected


def test_prune_takes_rows_and_pictures_of_what_is_listed_no_more(tmp_path: Path) -> None:
    commit(tmp_path, ["a", "old/b", "c"])
    commit(tmp_path, ["bad"], "error")
    assert clearing.prune(str(tmp_path), ledger.read_index(str(tmp_path)), pa.array(["a", "c"])) == 2
    assert sorted(ledger.read_index(str(tmp_path))["image_id"].to_pylist()) == ["a", "c"]
    assert list_files(tmp_path, "masks") == ["masks/a.png", "masks/c.png"]
    assert list_files(tmp_path, "overlays") == ["overlays/a.png", "overlays/c.png"]
    assert not (tmp_path / "masks/old").exists()
    assert clearing.prune(str(tmp_path), ledger.read_index(str(tmp_path)), pa.chunked_array([["a"], ["c"]])) == 0


def test_a_row_that_names_another_file_takes_nothing_with_it(tmp_path: Path) -> None:
    commit(tmp_path, ["a"], mask={"bytes": None, "path": "masks/b.png"})
    storage.write_atomic(str(tmp_path / "masks/b.png"), "of another image")
    with pytest.raises(UserError, match=r"the row of 'a' names 'masks/b\.png', which is no picture of it"):
        clearing.prune(str(tmp_path), ledger.read_index(str(tmp_path)), pa.array([], pa.string()))
    assert "masks/b.png" in list_files(tmp_path)
    assert len(ledger.read_index(str(tmp_path))) == 1


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    out, photos = tmp_path / "out", tmp_path / "photos"
    commit(out, ["album/a"])
    photos.mkdir()
    (photos / "a.png").write_text("mine")
    (out / "masks/album/a.png").unlink()
    (out / "masks/album").rmdir()
    (out / "masks/album").symlink_to(photos, target_is_directory=True)
    with pytest.raises(UserError, match=r"outside of OUT; it is left alone"):
        clearing.delete_pictures(str(out), ["masks/album/a.png"])
    ledger.write_run(str(out), {"run": 1, "bundle": "b", "parameters": {}})
    with pytest.raises(UserError, match=r"outside of OUT; it is left alone"):
        clearing.remove_output(str(out))
    assert (photos / "a.png").read_text() == "mine"


def test_a_failure_leaves_no_picture(tmp_path: Path) -> None:
    for run, name in ((1, "before"), (2, "bad")):
        commit(tmp_path, [name], "error", run)
        storage.write_atomic(str(tmp_path / f"masks/{name}.png"), "of an older file")
    storage.write_atomic(str(tmp_path / "overlays/bad.jpg"), "half a write")
    commit(tmp_path, ["good"], run=2)
    assert clearing.delete_failed_pictures(str(tmp_path), ledger.read_index(str(tmp_path)), 2) == 1
    assert list_files(tmp_path, "masks") == ["masks/before.png", "masks/good.png"]
    assert list_files(tmp_path, "overlays") == ["overlays/good.png"]


@pytest.mark.parametrize("image_id", ["a" * 300, "d/" * 2100 + "x", "日" * 2000])
def test_a_failure_with_a_name_that_no_disk_takes(tmp_path: Path, image_id: str) -> None:
    commit(tmp_path, [image_id], "error", 2)
    assert clearing.delete_failed_pictures(str(tmp_path), ledger.read_index(str(tmp_path)), 2) == 1


def test_a_failure_with_a_key_that_s3_does_not_take(s3_bucket: str) -> None:
    row = dict.fromkeys(SCHEMA.names) | {"image_id": "d/" * 600 + "x", "run": 2, "attempts": 1}
    ledger.commit_part(s3_bucket, pa.Table.from_pylist([row], SCHEMA), "error", 2)
    assert clearing.delete_failed_pictures(s3_bucket, ledger.read_index(s3_bucket), 2) == 1


def test_remove_output_takes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    commit(tmp_path, ["a", "old/b"])
    commit(tmp_path, ["bad"], "error")
    commit(tmp_path, ["damaged"], run=2)
    damaged = next(part for _, part in ledger.list_parts(str(tmp_path)) if "part-000002" in part)
    Path(damaged).write_bytes(b"PAR1")
    ledger.write_run(str(tmp_path), {"run": 2, "bundle": "b", "parameters": {"size": 1}})
    for name in ["classes.json", "manifest.parquet", "report.html", "batchseg.log", "lease.json", ".tmp/.x.tmp"]:
        storage.write_atomic(str(tmp_path / name), "ours")
    for name in ["notes.txt", "masks/mine.png", "rows/mine.csv", "other/x"]:
        storage.write_atomic(str(tmp_path / name), "theirs")
    clearing.remove_output(str(tmp_path))
    # damaged.png is named by no row that can be read; `verify` calls it a stray.
    left = ["lease.json", "masks/damaged.png", "masks/mine.png", "notes.txt", "other/x", "overlays/damaged.png"]
    assert list_files(tmp_path) == sorted([*left, "rows/mine.csv", "run.json"])
    assert ledger.read_run(str(tmp_path)) == {
        "run": 2,
        "bundle": "b",
        "parameters": {"size": 1},
        "state": "overwriting",
    }
    assert not (tmp_path / "masks/old").exists()


@pytest.mark.parametrize("run", [None, {"jobs": 3}])
def test_remove_output_only_where_we_have_written(tmp_path: Path, run: dict[str, Any] | None) -> None:
    if run is not None:
        ledger.write_run(str(tmp_path), run)
    commit(tmp_path, ["a"])
    before = list_files(tmp_path)
    with pytest.raises(UserError, match=r"is not (an output|one) of batchseg"):
        clearing.remove_output(str(tmp_path))
    assert list_files(tmp_path) == before
