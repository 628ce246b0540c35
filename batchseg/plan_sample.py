"""A sample of images sent through all that `segment` does with an image, each step timed by itself. No Ray.

fetch -> decode, fit -> model -> render (restore, draw, encode) -> write
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchseg import ledger, storage
from batchseg.bundle import BundleCard, read_card
from batchseg.columns import replace_columns
from batchseg.errors import ImageError
from batchseg.fetching import fetch_image
from batchseg.images import decode_image
from batchseg.options import SegmentOptions
from batchseg.results import render_image
from batchseg.stages import FETCHES_AT_ONCE, Decode, FitStage, PredictStage

_KEPT_BYTES = 2**30  # of encoded images, in a temporary folder


@dataclass(frozen=True)
class SampleCost:
    """Means per image over `images`, in seconds of one core, those of the model of one actor with its threads.

    failures: how many have failed, by kind. left_out: ids of more images, whose decoding kills its process.
    write_seconds: pictures and rows; where `is_remote`, which is an OUT on S3, rows are made and nothing is sent.
    file_bytes: of pictures as files. row_bytes: of its row in a part, with pictures if they are written there.
    stage_memory_bytes: at the peak of a process that fetches and decodes. model_memory_bytes: of one with the model.
    """

    images: int
    failures: dict[str, int]
    left_out: tuple[str, ...]
    fetch_seconds: float
    decode_seconds: float
    model_seconds: float
    render_seconds: float
    write_seconds: float
    is_remote: bool
    input_bytes: float
    file_bytes: float
    row_bytes: float
    stage_memory_bytes: int
    model_memory_bytes: int


@dataclass
class _Rendered:
    """rows: of the ledger, one per good image. files: path under OUT -> bytes."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class _StopWatch:
    """Adds up the seconds of `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


def measure_sample(
    todo: pa.Table, bundle: str, options: SegmentOptions, threads: int, out: str, decode: Decode = decode_image
) -> SampleCost:
    """What these manifest rows take. OUT is not touched; what is written goes to a temporary folder and away again.

    Later images are left away when the encoded ones come to more than 1 GiB. decode: as images.decode_image.
    """
    card = read_card(bundle)
    overlay_size = options.overlay_size if options.overlay_suffix else None
    fit = FitStage(card.geometry, options.max_megapixels, overlay_size, decode)
    fetching, decoding, modelling, rendering, writing = (_StopWatch() for _ in range(5))
    _reset_peak()
    with tempfile.TemporaryDirectory(prefix="batchseg-plan-") as folder:
        todo, kinds = _fetch_all(todo, folder, fetching)
        fetched_bytes = sum(size or 0 for size in todo["bytes"].to_pylist())
        fetched = todo.filter(pa.array([kind is None for kind in kinds]))
        good, left_out = _leave_out_deadly(fit, fetched)
        _warm_up(fit, good)
        with decoding:
            for _ in fit(good):
                pass
        stage_memory = _read_peak()
        predict = PredictStage(bundle, options.batch_size, threads, options.inference)
        rendered = _Rendered()
        for table in _predict_all(predict, fit(good), modelling):
            kinds += table["error_kind"].to_pylist()
            with rendering:
                kinds += _render_all(table, card, options, rendered)
    row_bytes = _write_all(rendered, card, out, writing)
    count = len(todo) - len(left_out)
    each = 1 / max(1, count)
    return SampleCost(
        images=count,
        failures=dict(Counter(kind for kind in kinds if kind is not None)),
        left_out=left_out,
        fetch_seconds=fetching.seconds / len(todo),
        decode_seconds=decoding.seconds * each,
        model_seconds=modelling.seconds * each,
        render_seconds=rendering.seconds * each,
        write_seconds=writing.seconds * each,
        is_remote=storage.is_remote(out),
        input_bytes=fetched_bytes / len(todo),
        file_bytes=sum(map(len, rendered.files.values())) * each,
        row_bytes=row_bytes * each,
        stage_memory_bytes=stage_memory,
        model_memory_bytes=_read_peak(),
    )


def _fetch_all(todo: pa.Table, folder: str, watch: _StopWatch) -> tuple[pa.Table, list[str | None]]:
    """The images as files in `folder`, and why some are not there. Rows of Parquet become files, too."""
    items = list(zip(todo["uri"].to_pylist(), todo["row"].to_pylist(), todo["bytes"].to_pylist(), strict=True))
    sizes: list[int] = []
    kinds: list[str | None] = []
    with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
        while len(kinds) < len(items) and sum(sizes) <= _KEPT_BYTES:
            with watch:
                found = list(pool.map(_fetch, items[len(kinds) : len(kinds) + FETCHES_AT_ONCE]))
            for data in found:
                Path(folder, str(len(kinds))).write_bytes(b"" if isinstance(data, str) else data)
                kinds.append(data if isinstance(data, str) else None)
                sizes.append(0 if isinstance(data, str) else len(data))
    local = replace_columns(
        todo.slice(0, len(kinds)),
        uri=pa.array([os.path.join(folder, str(number)) for number in range(len(kinds))], pa.string()),
        bytes=pa.array(sizes, pa.int64()),
        row=pa.nulls(len(kinds), pa.int64()),
    )
    return local, kinds


def _fetch(item: tuple[str, int | None, int | None]) -> bytes | str:
    """The bytes, or the kind of the error."""
    try:
        return fetch_image(*item)
    except ImageError as error:
        return error.kind


def _leave_out_deadly(fit: FitStage, todo: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The images that can be decoded in this process, and the ids of the others: all are tried in a child first."""
    kinds = [kind for table in fit(todo, isolates=True) for kind in table["error_kind"].to_pylist()]
    is_deadly = [kind == "crash" for kind in kinds]
    left_out = tuple(todo["image_id"].filter(pa.array(is_deadly, pa.bool_())).to_pylist())
    return todo.filter(pa.array([not deadly for deadly in is_deadly], pa.bool_())), left_out


def _warm_up(fit: FitStage, todo: pa.Table) -> None:
    """Decodes until one image is done: the first one loads the codecs."""
    for row in range(len(todo)):
        if any(table["error_kind"].null_count for table in fit(todo.slice(row, 1))):
            return


def _predict_all(predict: PredictStage, tables: Iterator[pa.Table], watch: _StopWatch) -> Iterator[pa.Table]:
    """The tables with ids. The first one with an image in it is done twice: the first call of a model compiles it."""
    is_compiled = False
    for table in tables:
        if not is_compiled and table["error_kind"].null_count:
            predict(table)
            is_compiled = True
        with watch:
            predicted = predict(table)
        yield predicted


def _render_all(table: pa.Table, card: BundleCard, options: SegmentOptions, rendered: _Rendered) -> list[str]:
    """As WriteStage does, without writing. Returns the kinds of what has failed only here."""
    kinds = []
    for index in range(len(table)):
        if table["error_kind"][index].is_valid:
            continue
        try:
            found = render_image(table, index, card.geometry, card.classes, options)
        except ImageError as error:
            kinds.append(error.kind)
        except MemoryError:
            kinds.append("oom")
        else:
            facts = {name: table[name][index].as_py() for name in ("image_id", "height", "width")}
            rendered.rows.append(facts | found.to_row(options) | {"bundle": card.digest})
            rendered.files |= found.files(options)
    return kinds


def _write_all(rendered: _Rendered, card: BundleCard, out: str, watch: _StopWatch) -> int:
    """Writes pictures and a part as a run would, into a folder beside OUT that goes away again; on S3 nothing is sent.

    Returns the bytes of the part.
    """
    if not rendered.rows:
        return 0
    empty = dict.fromkeys(ledger.make_row_schema(card.classes).names)
    rows = pa.Table.from_pylist([empty | row for row in rendered.rows], ledger.make_row_schema(card.classes))
    if storage.is_remote(out):
        buffer = pa.BufferOutputStream()
        with watch:
            pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
        return int(buffer.getvalue().size)
    with _open_scratch(out) as scratch:
        with watch:
            for path, data in rendered.files.items():
                storage.write_atomic(storage.join(scratch, path), data, ledger.staging_of(scratch))
            part = ledger.commit_part(scratch, rows, "ok", 1)
        return os.path.getsize(part)


def _open_scratch(out: str) -> "tempfile.TemporaryDirectory[str]":
    """On the disk of OUT, whose speed is asked for; where that may not be written, among the temporary files.

    Its name begins with a dot, so that no listing takes pictures from it.
    """
    parent = Path(out).parent
    while not parent.is_dir():
        parent = parent.parent
    with suppress(OSError):
        return tempfile.TemporaryDirectory(prefix=".batchseg-plan-", dir=parent)
    return tempfile.TemporaryDirectory(prefix=".batchseg-plan-")


def _reset_peak() -> None:
    """Of _read_peak, as far as the system allows: the process may have done something else before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read_peak() -> int:
    """Bytes that this process has held at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
