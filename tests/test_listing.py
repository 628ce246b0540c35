"""What INPUT can be, and that each image comes out once under a name that stays inside OUT."""

import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_proxy import S3Proxy

from batchseg import storage
from batchseg.errors import UserError
from batchseg.listing import MANIFEST_SCHEMA, Listing, ListOptions, list_input
from batchseg.listing.manifest import make_image_id
from batchseg.listing.patterns import PathPattern


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def list_all(location: Path | str, leave_out: str = "/out", **options: Any) -> Listing:
    return list_input(str(location), ListOptions(**options), leave_out=leave_out)


def ids_of(listing: Listing) -> list[str]:
    return listing.manifest["image_id"].to_pylist()


ODD = ["Übersicht.png", "日本/空.png", "with space.png", "100% #1?.png", "new\nline.png", "a.png", "a.jpg", "[x]*.png"]


def test_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, *ODD, "notes.txt", ".hidden.png", ".git/x.png", "out/masks/a.png", "out2/b.PNG")
    listing = list_all(tmp_path, f"{tmp_path}/out/")
    assert (listing.root, listing.kind, listing.note) == (str(tmp_path), "folder", "")
    assert listing.manifest.schema == MANIFEST_SCHEMA
    assert ids_of(listing) == sorted([*ODD, "out2/b.PNG"])
    for row in listing.manifest.to_pylist():
        found = os.stat(row["uri"])
        assert row["uri"] == f"{tmp_path}/{row['image_id']}"
        assert row["bytes"] == found.st_size == len(row["image_id"].encode())
        assert row["modified"].timestamp() == pytest.approx(found.st_mtime, abs=1e-5)
        assert row["row"] is None


def test_links_are_followed_loops_and_special_files_are_not(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "a/1.png", "b/2.png")
    fill(tmp_path / "else", "3.png")
    fill(root / "out", "4.png")
    (root / "link").symlink_to(tmp_path / "else")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "to_out").symlink_to(root / "out")
    (root / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(root / "s.png"))
        listing = list_all(root, str(root / "out"))
    assert ids_of(listing) == ["a/1.png", "b/2.png", "gone.png", "link/3.png"]
    assert listing.manifest["bytes"].to_pylist() == [7, 7, None, 5]


def test_nothing_in_out_is_listed_by_whatever_name(tmp_path: Path) -> None:
    out, root = tmp_path / "out", fill(tmp_path / "in", "a.png", "sub/b.png")
    fill(out, "masks/a.png.png", "masks/deep/b.png.png")
    (tmp_path / "alias").symlink_to(out)
    (root / "masks").symlink_to(out / "masks")
    (root / "deep").symlink_to("masks/deep")
    (root / "one.png").symlink_to(out / "masks" / "a.png.png")
    (root / "around").symlink_to(tmp_path)
    for name in (out, tmp_path / "alias", tmp_path / "in" / "around" / "out"):
        assert ids_of(list_all(root, str(name))) == ["a.png", "sub/b.png"]
    listed = [str(root / "a.png"), str(root / "one.png"), str(root / "deep" / "b.png.png"), f"{out}/masks/a.png.png"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    assert ids_of(list_all(tmp_path / "list.txt", str(tmp_path / "alias"))) == ["in/a.png"]
    for location in ("in/masks", "in/deep/*.png", "in/one.png", "alias", "out/masks"):
        with pytest.raises(UserError, match=r"lies in OUT .*, which is never segmented; give another --out"):
            list_all(tmp_path / location, str(out))


def test_a_deep_and_wide_tree(tmp_path: Path) -> None:
    names = [f"{i % 7}/{i % 11}/{i}.png" for i in range(300)] + ["/".join("abcdefghij") + "/x.png"]
    shown: list[str] = []
    listing = list_input(str(fill(tmp_path, *names)), ListOptions(), leave_out="/out", show=shown.append)
    assert ids_of(listing) == sorted(names)
    assert shown
    assert all(text.startswith(f"listing {tmp_path}: ") for text in shown)


def test_include_exclude_limit(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.jpg", "north/a.png", "north/deep/c.jpg", "south/a.png")
    assert ids_of(list_all(tmp_path, include=("*.jpg",))) == ["b.jpg", "north/deep/c.jpg"]
    assert ids_of(list_all(tmp_path, include=("a.*", "b.jpg"), exclude=("north/**",))) == [
        "a.png",
        "b.jpg",
        "south/a.png",
    ]
    assert ids_of(list_all(tmp_path, include=("north/",), limit=1)) == ["north/a.png"]
    assert ids_of(list_all(tmp_path, limit=2)) == ["a.png", "b.jpg"]
    with pytest.raises(UserError, match=r"--include '\*\.tif' leaves none of the 5 images of INPUT"):
        list_all(tmp_path, include=("*.tif",))
    with pytest.raises(UserError, match="--limit is 0; it must be at least 1"):
        ListOptions(limit=0)
    with pytest.raises(UserError, match="need a pattern"):
        ListOptions(exclude=("",))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.png", "a/b.png", True), ("a/*.png", "a/b.png", True), ("a/*.png", "a/b/c.png", False),
        ("a/**", "a/b/c.png", True), ("**/c.png", "c.png", True), ("a/**/c.png", "a/c.png", True),
        ("a/**/c.png", "a/x/y/c.png", True), ("/b.png", "a/b.png", False), ("?.png", "ab.png", False),
        ("[ab].png", "x/b.png", True), ("*.PNG", "a.png", False), ("a/", "a/b/c.png", True),
        ("*.png", "a\nb.png", True),
    ],
)  # fmt: skip
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert PathPattern.parse(pattern).matches(path) is matches


def test_a_glob(tmp_path: Path) -> None:
    fill(tmp_path, "day1/cam/a.png", "day1/b.png", "day2/cam/a.png", "day2/cam/deep/a.png", "night/cam/a.png")
    listing = list_all(tmp_path / "day*" / "cam" / "*.png")
    assert (listing.root, listing.kind) == (str(tmp_path), "glob")
    assert ids_of(listing) == ["day1/cam/a.png", "day2/cam/a.png"]
    assert ids_of(list_all(f"{tmp_path}/day2/**")) == ["cam/a.png", "cam/deep/a.png"]
    fill(tmp_path, "x[1]/a.png", "x1/b.png")
    assert ids_of(list_all(tmp_path / "x[1]")) == ["a.png"], "a folder of that very name is no glob"
    with pytest.raises(UserError, match="holds no image"):
        list_all(tmp_path / "z*" / "*.png")


def test_one_image(tmp_path: Path) -> None:
    listing = list_all(fill(tmp_path, "a.png", "b.png") / "a.png")
    assert (listing.root, listing.kind, ids_of(listing)) == (str(tmp_path), "file", ["a.png"])


def test_what_is_no_input(tmp_path: Path) -> None:
    fill(tmp_path, "a.doc", "out/masks/a.png")
    for location, message in [
        ("none", r"INPUT .* does not exist"),
        ("a.doc", r"neither an image .* nor a list"),
        (".", r"holds no image"),
        ("out/masks", r"lies in OUT"),
    ]:
        with pytest.raises(UserError, match=message):
            list_all(tmp_path / location, str(tmp_path / "out"))


def test_text_list(tmp_path: Path) -> None:
    root = fill(tmp_path, "set/a/1.png", "set/b/ 2.png", "set/a/picture")
    lines = [
        "",
        "set/a/1.png\r",
        f"{root}/set/b/ 2.png",
        "set/a/../a/1.png",
        "set/a/gone.png",
        "set/a/picture",
    ]
    (root / "list.txt").write_text("\n".join(lines), newline="")
    listing = list_all(root / "list.txt")
    assert (listing.root, listing.kind) == (f"{root}/set", "list")
    assert ids_of(listing) == ["a/1.png", "a/gone.png", "a/picture", "b/ 2.png"]
    assert listing.manifest["bytes"].to_pylist() == [11, None, 13, 12]
    assert listing.manifest["modified"].null_count == 1
    (root / "list.txt").write_text("\n\r\n")
    with pytest.raises(UserError, match="holds no image"):
        list_all(root / "list.txt")


def test_a_list_has_no_comments(tmp_path: Path) -> None:
    root = fill(tmp_path, "#3.png", "# 4.png", " ")
    (root / "list.txt").write_text("#3.png\n# 4.png\n \n# gone\n")
    listing = list_all(root / "list.txt")
    assert ids_of(listing) == [" ", "# 4.png", "# gone", "#3.png"]
    assert listing.manifest["bytes"].to_pylist() == [1, 7, None, 6]


def test_a_nul_in_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n\nb\0.png\n")
    with pytest.raises(UserError, match=r"list\.txt, line 3: 'b\\x00\.png' holds a NUL character"):
        list_all(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes("ab.png\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"line 1: .* Is the list UTF-16"):
        list_all(tmp_path / "list.txt")
    pq.write_table(pa.table({"uri": ["a.png", "b\0.png"]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=r"list\.parquet, entry 2: "):
        list_all(tmp_path / "list.parquet")


def test_csv_and_parquet_lists(tmp_path: Path) -> None:
    root = fill(tmp_path, "a\nb.png", "123.png", "x/c,d.png")
    (root / "list.csv").write_text('id,uri\n1,"a\nb.png"\n2,123.png\n3,"x/c,d.png"\n')
    pq.write_table(
        pa.table({"uri": ["a\nb.png", "123.png", "x/c,d.png"], "image": [b"", b"", b""]}), root / "l.parquet"
    )
    for name in ("list.csv", "l.parquet"):
        listing = list_all(root / name)
        assert listing.kind == "list"
        assert ids_of(listing) == ["123.png", "a\nb.png", "x/c,d.png"]
        assert listing.manifest["bytes"].null_count == 0
    (root / "list.csv").write_text("path\na.png\n")
    with pytest.raises(UserError, match="has no column `uri`; it has path"):
        list_all(root / "list.csv")


def write_images(path: Path, names: list[str | None], **options: Any) -> None:
    images = [{"bytes": f"{i}".encode(), "path": name} for i, name in enumerate(names)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, kind)}), path, **options)


def test_parquet_with_images(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", ["x/1.jpg", "/abs/2.jpg", "../3.jpg"])
    write_images(tmp_path / "sub" / "b.parquet", ["4.jpg", None])
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "c.parquet")
    listing = list_all(tmp_path)
    assert (listing.root, listing.kind) == (str(tmp_path), "parquet")
    rows = {row["image_id"]: (row["uri"], row["row"]) for row in listing.manifest.to_pylist()}
    assert rows == {
        "%2E%2E/3.jpg": (f"{tmp_path}/a.parquet", 2),
        "abs/2.jpg": (f"{tmp_path}/a.parquet", 1),
        "c.parquet/000000000": (f"{tmp_path}/c.parquet", 0),
        "c.parquet/000000001": (f"{tmp_path}/c.parquet", 1),
        "sub/b.parquet/000000000": (f"{tmp_path}/sub/b.parquet", 0),
        "sub/b.parquet/000000001": (f"{tmp_path}/sub/b.parquet", 1),
        "x/1.jpg": (f"{tmp_path}/a.parquet", 0),
    }
    assert set(listing.manifest["bytes"].to_pylist()) >= {(tmp_path / "a.parquet").stat().st_size}
    assert ids_of(list_all(tmp_path / "sub" / "b.parquet", limit=1)) == ["b.parquet/000000000"]
    assert len(list_all(tmp_path / "*.parquet").manifest) == 5
    fill(tmp_path, "z.png")
    mixed = list_all(tmp_path)
    assert (mixed.kind, ids_of(mixed)) == ("folder", ["z.png"])
    assert mixed.note == "3 Parquet files lie beside the images and were not read"


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"neither a column `uri` nor a column `image` .* it has img: binary"):
        list_all(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is no Parquet file that can be read"):
        list_all(tmp_path)


def test_two_images_of_one_id(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", ["1.jpg"])
    write_images(tmp_path / "b.parquet", ["0.jpg", "1.jpg"])
    with pytest.raises(UserError, match=r"have the id '1.jpg': .*a.parquet row 0 and .*b.parquet row 1\."):
        list_all(tmp_path)


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("a/b.png", "a/b.png"), ("a..b/...png", "a..b/...png"), ("%2E%2E/a.png", "%2E%2E/a.png"),
        ("/etc/a.png", "etc/a.png"), ("a/../b.png", "a/%2E%2E/b.png"), ("./a.png", "%2E/a.png"),
        ("a//b.png", "a/%/b.png"), ("a/", "a/%"), ("..", "%2E%2E"), ("a\0.png", "a%00.png"), (".x/a.png", ".x/a.png"),
    ],
)  # fmt: skip
def test_ids_stay_inside(path: str, image_id: str) -> None:
    assert make_image_id(path) == image_id
    assert storage.join("/out/masks", image_id).startswith("/out/masks/")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for name in (b"caf\xe9.png", b"caf\xe9.txt"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    with pytest.raises(UserError, match=r"caf\\xe9.png' is not UTF-8; rename it, .* --exclude 'caf\?.png'"):
        list_all(tmp_path)
    assert ids_of(list_all(tmp_path, exclude=("caf?.png",))) == ["a.png"]
    assert ids_of(list_all(tmp_path, include=("a.png",))) == ["a.png"]


def test_s3_prefix_glob_and_list(s3_bucket: str, tmp_path: Path) -> None:
    names = [
        "in/Übersicht.png",
        "in/a/1 #%.png",
        "in/a/b/new\nline.png",
        "in/.hidden/x.png",
        "in/out/m.png",
        "in/n.txt",
    ]
    names += [f"in/wide/{i}/deep/{i}.jpg" for i in range(20)]
    for name in names:
        storage.write_atomic(f"{s3_bucket}/{name}", name)
    listing = list_all(f"{s3_bucket}/in/", f"{s3_bucket}/in/out")
    wide = [f"wide/{i}/deep/{i}.jpg" for i in range(20)]
    assert (listing.root, listing.kind) == (f"{s3_bucket}/in", "folder")
    assert ids_of(listing) == sorted(["Übersicht.png", "a/1 #%.png", "a/b/new\nline.png", *wide])
    for row in listing.manifest.to_pylist():
        assert len(storage.read_bytes(row["uri"])) == row["bytes"]
    assert ids_of(list_all(f"{s3_bucket}/in/w*/1?/**", exclude=("*5.jpg",), limit=2)) == [
        "wide/10/deep/10.jpg", "wide/11/deep/11.jpg",
    ]  # fmt: skip
    storage.write_atomic(f"{s3_bucket}/in/n.txt", f"a/1 #%.png\n../in/gone.png\n{tmp_path}/x.png\n")
    mixed = list_all(f"{s3_bucket}/in/n.txt")
    bucket = s3_bucket.removeprefix("s3://")
    assert ids_of(mixed) == sorted([f"s3/{bucket}/in/a/1 #%.png", f"s3/{bucket}/in/gone.png", f"{tmp_path}/x.png"[1:]])
    assert mixed.manifest["bytes"].null_count == 2
    for location, message in [("none", "does not exist"), ("in/.hidden", None)]:
        if message:
            with pytest.raises(UserError, match=message):
                list_all(f"{s3_bucket}/{location}")
        else:
            assert ids_of(list_all(f"{s3_bucket}/{location}")) == ["x.png"]


def test_s3_listing_through_faults(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    names = [f"{i:02d}/{i}.png" for i in range(20)]
    for name in names:
        storage.write_atomic(f"{s3_bucket}/{name}", name)
    count = 0

    def spoil_every_fifth(method: str, path: str) -> str | None:
        nonlocal count
        count += 1
        return ["slow_down", "reset", "half_body"][count % 3] if count % 5 == 0 else None

    s3_proxy.fault = spoil_every_fifth
    assert ids_of(list_all(s3_bucket)) == names


def test_names_in_parquet_through_cut_answers(s3_bucket: str, s3_proxy: S3Proxy, tmp_path: Path) -> None:
    names = [f"{os.urandom(20).hex()}.jpg" for _ in range(2000)]
    write_images(tmp_path / "a.parquet", list(names))
    storage.write_atomic(f"{s3_bucket}/a.parquet", (tmp_path / "a.parquet").read_bytes())
    s3_proxy.requests.clear()
    assert ids_of(list_all(s3_bucket)) == sorted(names)
    got = 0

    def spoil(method: str, path: str) -> str | None:
        nonlocal got
        got += method == "GET" and path.endswith("a.parquet")
        return "cut" if method == "GET" and path.endswith("a.parquet") and got in (1, 2, 4) else None

    s3_proxy.fault = spoil
    assert ids_of(list_all(s3_bucket)) == sorted(names)
    reads = [path for method, path in s3_proxy.requests if method == "GET" and path.endswith("a.parquet")]
    assert got == len(reads) - got + 3, "each spoiled answer was noticed and asked for again"


def test_wrong_credentials_are_said_at_the_door(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"INPUT s3://.* cannot be looked at: .*ACCESS_DENIED"):
        list_all(f"{s3_bucket}/x")
