"""Pictures as Arrow columns, without a copy where one picture is alone."""

import numpy as np
import pyarrow as pa

from batchseg.columns import pack_pictures, replace_columns, unpack_picture


def test_pictures_of_any_shape_come_back() -> None:
    pictures = [
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        np.zeros((0, 0, 3), np.uint8),
        np.full((3, 1), 7, np.uint8),
    ]
    column = pa.chunked_array([pack_pictures(pictures)])
    assert len(column) == 3
    joined = pa.chunked_array([*column.chunks, column.chunk(0).slice(1)])
    for row, picture in enumerate([*pictures, *pictures[1:]]):
        np.testing.assert_array_equal(unpack_picture(joined, row, picture.shape), picture)


def test_one_alone_is_not_copied() -> None:
    picture = np.zeros((50, 60, 3), np.uint8)
    view = unpack_picture(pa.chunked_array([pack_pictures([picture])]), 0, picture.shape)
    assert np.shares_memory(view, picture)


def test_no_picture_is_an_empty_column() -> None:
    assert len(pack_pictures([])) == 0


def test_columns_are_replaced_in_their_place() -> None:
    table = pa.table({"a": [1], "b": [2], "c": [3]})
    changed = replace_columns(table, drop=["b"], c=[4], d=[5])
    assert changed.to_pydict() == {"a": [1], "c": [4], "d": [5]}
