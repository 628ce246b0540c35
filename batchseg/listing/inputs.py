"""list_input: what INPUT is (folder, glob, image, list, Parquet) is decided here, once."""

import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from batchseg import storage
from batchseg.errors import UserError
from batchseg.images import is_image_name
from batchseg.listing.left_out import LeftOut
from batchseg.listing.lists import LIST_SUFFIXES, add_listed, find_common_folder, read_uris
from batchseg.listing.manifest import ManifestBuilder, make_image_id
from batchseg.listing.parquet import URI_COLUMN, add_rows, read_columns
from batchseg.listing.patterns import Filters, PathPattern, is_glob, split_glob
from batchseg.listing.walk import PARQUET_SUFFIX, Walk

_SHOW_EVERY_S = 0.5


@dataclass(frozen=True)
class ListOptions:
    """Which images of INPUT are taken.

    include, exclude: glob patterns on the image_id; one without `/` is for the file's name at any depth.
    limit: only the first N by image_id.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit is {self.limit}; it must be at least 1")
        if "" in self.include + self.exclude:
            raise UserError("--include and --exclude need a pattern, such as '*.png' or 'north/**'")


@dataclass(frozen=True)
class Listing:
    """What INPUT holds. kind: folder, glob, file, list or parquet. note: what was decided and is worth a line, or ''.

    manifest: MANIFEST_SCHEMA in the order of image_id; `row` is the row in a Parquet file, else null; `bytes` and
    `modified` are null for a listed file that is missing.
    """

    root: str
    kind: str
    manifest: pa.Table
    note: str = ""


def list_input(
    location: str, options: ListOptions, *, leave_out: str, show: Callable[[str], None] | None = None
) -> Listing:
    """Every image of INPUT, once.

    leave_out: the folder OUT; what lies in it, symbolic links followed, is never listed.
    show: takes a line of progress now and then.
    Raises UserError when INPUT is missing, holds no image, or names two images alike.
    """
    source = storage.to_absolute(location)
    left_out = LeftOut(leave_out)
    try:
        kind = storage.file_type(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"INPUT {location} cannot be looked at: {error}") from None
    as_glob = kind == "missing" and is_glob(source)
    if kind == "missing" and not as_glob:
        raise UserError(f"INPUT {location} does not exist")
    root, pattern = split_glob(source) if as_glob else (source, "")
    if left_out.holds(root or "/"):
        raise UserError(f"INPUT {location} lies in OUT {leave_out}, which is never segmented; give another --out")
    filters = Filters(
        tuple(map(PathPattern.parse, options.include)),
        tuple(map(PathPattern.parse, options.exclude)),
        PathPattern.parse(pattern, anchored=True) if as_glob else None,
    )
    builder = ManifestBuilder(filters)
    tick = _make_ticker(source, builder, show)
    if kind == "file":
        listed = _list_file(source, left_out, builder, tick)
    else:
        listed = _list_folder(root or "/", "glob" if as_glob else "folder", left_out, builder, tick)
    return Listing(listed[0], listed[1], _select(location, builder, options), listed[2])


def _make_ticker(source: str, builder: ManifestBuilder, show: Callable[[str], None] | None) -> Callable[[], None]:
    shown_at = 0.0

    def tick() -> None:
        nonlocal shown_at
        if show and time.monotonic() - shown_at > _SHOW_EVERY_S:
            shown_at = time.monotonic()
            show(f"listing {source}: {builder.seen:,} images")

    return tick


def _list_folder(
    root: str, kind: str, left_out: LeftOut, builder: ManifestBuilder, tick: Callable[[], None]
) -> tuple[str, str, str]:
    """Images, or if there are none, the rows of Parquet files. Returns root, kind and note."""
    if storage.file_type(root) != "folder":
        raise UserError(f"INPUT does not exist: {root}, the folder before its first wildcard, is none")
    walk = Walk(root, builder, left_out, tick)
    walk.run()
    if not walk.parquets:
        return root, kind, ""
    if builder.seen:
        return root, kind, f"{len(walk.parquets)} Parquet files lie beside the images and were not read"
    add_rows(root, walk.parquets, builder, tick)
    return root, "parquet", ""


def _list_file(
    source: str, left_out: LeftOut, builder: ManifestBuilder, tick: Callable[[], None]
) -> tuple[str, str, str]:
    folder, name = storage.folder_of(source), storage.name_of(source)
    suffix = posixpath.splitext(name)[1].lower()
    if is_image_name(name):
        builder.add([(make_image_id(name), source, storage.stat_file(source), None)])
        return folder, "file", ""
    if suffix in LIST_SUFFIXES or (suffix == PARQUET_SUFFIX and URI_COLUMN in read_columns(source).names):
        uris = read_uris(source)
        common = find_common_folder(uris) if uris else ""
        add_listed(uris, common, left_out, builder, tick)
        return common.rstrip("/") or "/", "list", ""
    stamp = storage.stat_file(source)
    if suffix != PARQUET_SUFFIX or stamp is None:
        raise UserError(
            f"INPUT {source} is a file, but neither an image (.jpg, .png, .tif, .webp, …), nor a list (.txt, .csv), "
            f"nor .parquet"
        )
    add_rows(folder, [(name, stamp)], builder, tick)
    return folder, "parquet", ""


def _select(location: str, builder: ManifestBuilder, options: ListOptions) -> pa.Table:
    if not builder.seen:
        raise UserError(f"INPUT {location} holds no image (.jpg, .png, .tif, .webp, …), at any depth")
    manifest = builder.finish()
    if not len(manifest):
        given = [f"--{flag} {text!r}" for flag in ("include", "exclude") for text in getattr(options, flag)]
        raise UserError(f"{' '.join(given)} leaves none of the {builder.seen:,} images of INPUT {location}")
    return manifest if options.limit is None else manifest.slice(0, options.limit).combine_chunks()
