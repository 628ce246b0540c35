"""The index of an output folder: of each row who, when and where. Pure functions on that table."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

STATUSES = ("ok", "error")
TIME = pa.timestamp("us", tz="UTC")
INDEX_FIELDS = [
    ("image_id", pa.string()),
    ("input_bytes", pa.int64()),
    ("input_modified", TIME),
    ("run", pa.int32()),
    ("attempts", pa.int32()),
]
INDEX_COLUMNS = [name for name, _ in INDEX_FIELDS]


def build_index(parts: list[tuple[str, str]], tables: list[pa.Table]) -> pa.Table:
    """The index from the INDEX_COLUMNS of each part. parts: (status, location), in the order of `tables`.

    Adds the columns status and part, as dictionaries: a million rows take 60 MB.
    """
    tables = [table.replace_schema_metadata(None) for table in tables]
    lengths = [len(table) for table in tables]
    codes = [STATUSES.index(status) for status, _ in parts]
    status = _repeat_each(np.array(codes, np.int8), lengths, list(STATUSES))
    part = _repeat_each(np.arange(len(parts), dtype=np.int32), lengths, [location for _, location in parts])
    index = pa.concat_tables([pa.schema(INDEX_FIELDS).empty_table(), *tables])
    return index.append_column("status", status).append_column("part", part).combine_chunks()


def _repeat_each(codes: Any, lengths: list[int], words: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.repeat(codes, np.array(lengths, np.int64)), pa.array(words, pa.string()))


def group_by_part(rows: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """(part, image ids in it) of some rows of an index, in the order of the parts' names."""
    parts = pc.dictionary_encode(rows["part"].cast(pa.string())).combine_chunks()
    if not len(rows):
        return
    codes, names = parts.indices.to_numpy(), parts.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    for group in sorted(groups, key=lambda group: names[codes[group[0]]]):
        yield names[codes[group[0]]], rows["image_id"].take(pa.array(group)).combine_chunks()


def find_losers(index: pa.Table) -> pa.Table:
    """The rows of an index that another row of the same image overrules; none when each image has one row."""
    ids = index["image_id"]
    if pc.count_distinct(ids).as_py() == len(index):
        return index.slice(0, 0)
    counted = pc.value_counts(ids)
    twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    hit = index.filter(pc.is_in(ids, value_set=twice))
    for name in ("status", "part"):  # dictionaries sort by their codes
        hit = hit.set_column(hit.schema.get_field_index(name), name, hit[name].cast(pa.string()))
    ranked = hit.sort_by(
        [("image_id", "ascending"), ("run", "descending"), ("status", "descending"), ("part", "ascending")]
    ).combine_chunks()
    names = ranked["image_id"].combine_chunks()
    return ranked.slice(1).filter(pc.equal(names.slice(1), names.slice(0, len(names) - 1)))
