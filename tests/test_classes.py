"""Raw mask values become class ids, or an error that names the file, the value and the table."""

import json

import numpy as np
import pytest

from batchseg.classes import IGNORE_ID, MAX_CLASSES, ClassTable, default_color, parse_classes, parse_color
from batchseg.errors import UserError


def test_names_in_id_order() -> None:
    table = parse_classes(["sky", "road"])
    raw = np.array([[0, 1], [1, 255]], np.uint8)
    ids = table.to_class_ids(raw, "m.png")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[0, 1], [1, 255]]
    assert (len(table), table.names) == (2, ["sky", "road"])


def test_ignored_values_become_255() -> None:
    table = parse_classes(["sky", "road"], [11, 200])
    assert table.to_class_ids(np.array([[0, 11], [200, 1]], np.uint8), "m.png").tolist() == [[0, 255], [255, 1]]


def test_values_are_mapped() -> None:
    table = parse_classes([{"name": "flat", "values": [7, 8, 300]}, {"name": "sky", "values": [23]}], [0])
    raw = np.array([[7, 8, 23], [0, 255, 300]], np.uint16)
    assert table.to_class_ids(raw, "m.png").tolist() == [[0, 0, 1], [255, 255, 0]]


def test_sixteen_bits() -> None:
    table = parse_classes([{"name": "a", "values": [1000]}, {"name": "b", "values": [65535]}])
    assert table.to_class_ids(np.array([[1000, 65535, 255]], np.uint16), "m.png").tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match=r"mask m\.png holds class id 0, but"):
        table.to_class_ids(np.array([[0]], np.uint16), "m.png")


def test_unknown_id_names_file_id_and_table() -> None:
    table = parse_classes([f"c{i}" for i in range(21)])
    message = (
        r"^mask masks/0007\.png holds class id 21, but the class table has 21 classes \(0-20\) and ignores 255\. "
        r"Add the class, map the value to one with `values`, or put it under `ignore`\.$"
    )
    with pytest.raises(UserError, match=message):
        table.to_class_ids(np.array([[0, 21]], np.uint8), "masks/0007.png")


def test_unknown_ids_are_counted_out_and_ranges_have_gaps() -> None:
    table = parse_classes([{"name": "a", "values": [1, 2, 3]}, {"name": "b", "values": [7]}], [9])
    with pytest.raises(UserError, match=r"holds class id 0, 8, but .* \(1-3, 7\) and ignores 9, 255\."):
        table.to_class_ids(np.array([[0, 8, 1, 9, 0]], np.uint8), "m.png")
    with pytest.raises(UserError, match=r"holds class id 10, 11, 12, 13, 14, 15, 16, 17 …, but"):
        table.to_class_ids(np.arange(10, 40, dtype=np.uint8)[None], "m.png")


def test_colours_are_looked_up() -> None:
    table = parse_classes([{"name": "sky", "color": "#4477AA"}, {"name": "road", "color": "#000000"}])
    raw = np.array([[[0x44, 0x77, 0xAA], [0, 0, 0], [255, 255, 255]]], np.uint8)
    assert table.to_class_ids(raw, "m.png").tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match=r"mask m\.png is an RGB picture and holds #0000ff, #010203, which is no color"):
        table.to_class_ids(np.array([[[1, 2, 3], [0, 0, 255]]], np.uint8), "m.png")


def test_white_may_be_a_class() -> None:
    table = parse_classes([{"name": "ground", "color": "#000000"}, {"name": "thing", "color": "#ffffff"}])
    raw = np.array([[[0, 0, 0], [255, 255, 255]], [[255, 255, 255], [0, 0, 0]]], np.uint8)
    assert table.to_class_ids(raw, "m.png").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(
        UserError, match=r"holds #fffffe, which is no color .* \(white is ignored unless a class has it"
    ):
        table.to_class_ids(np.array([[[255, 255, 254]]], np.uint8), "m.png")


def test_one_colour_for_two_classes_is_refused_for_rgb_masks() -> None:
    table = parse_classes(
        [{"name": "a", "color": "#0102ff"}, {"name": "b", "color": "#0102FF"}, {"name": "c", "color": "#000000"}]
    )
    # Even where the mask holds only the third colour: the next one may not.
    with pytest.raises(UserError, match=r"mask masks/1\.png is an RGB picture, but two classes have the same color"):
        table.to_class_ids(np.zeros((2, 2, 3), np.uint8), "masks/1.png")
    # Masks of ids need no colours.
    assert table.to_class_ids(np.array([[0, 1, 2, 255]], np.uint8), "m.png").tolist() == [[0, 1, 2, 255]]


def test_a_raw_mask_is_not_changed() -> None:
    raw = np.array([[0, 11]], np.uint8)
    parse_classes(["a", "b"], [11]).to_class_ids(raw, "m.png")
    assert raw.tolist() == [[0, 11]]


@pytest.mark.parametrize("where", ["values", "ignore"])
def test_a_value_that_no_mask_can_hold_is_refused(where: str) -> None:
    # -1 would silently stand for the largest value of the mask.
    entries = ["a", {"name": "b", "values": [-1]}] if where == "values" else ["a", "b"]
    with pytest.raises(UserError, match="-1"):
        parse_classes(entries, [-1] if where == "ignore" else [])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a"], f"1 given; between 2 and {MAX_CLASSES} are allowed"),
        ([f"c{i}" for i in range(256)], "256 given; between 2 and 255"),
        (["a", "b", "a"], "the name 'a' is given twice"),
        ([{"name": "a", "values": [1]}, {"name": "b", "values": [1, 2]}], "one raw value belongs to two classes"),
        ([{"name": "a", "colour": "#000000"}, "b"], r"entry 0 is .*'colour'.*allowed are name, color, values"),
        (["a", {"color": "#000000"}], "entry 1 is .*allowed are name"),
        ([{"name": "a", "color": "red"}, "b"], r"color 'red' is not of the form #rrggbb"),
        ([{"name": "a", "color": "#12345"}, "b"], r"color '#12345' is not of the form #rrggbb"),
        ([{"name": "a", "color": "#12345g"}, "b"], r"color '#12345g' is not"),
    ],
)
def test_wrong_tables(entries: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_classes(entries)  # type: ignore[arg-type]


def test_colours_and_palette() -> None:
    table = parse_classes([{"name": "a", "color": "#0102FF"}, "b"])
    palette = table.palette
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert palette[0].tolist() == [1, 2, 255]
    assert palette[1].tolist() == list(parse_color(default_color(1)))
    assert palette[IGNORE_ID].tolist() == [255, 255, 255]
    assert not palette[2:IGNORE_ID].any()


def test_default_colours_differ() -> None:
    colors = [default_color(class_id) for class_id in range(60)]
    assert len(set(colors)) == 60
    assert all(len(parse_color(color)) == 3 for color in colors)
    assert "#ffffff" not in colors  # white means ignored


def test_the_largest_table() -> None:
    table = parse_classes([f"c{i}" for i in range(MAX_CLASSES)])
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(table.to_class_ids(raw, "m.png"), raw)


def test_json_round_trip() -> None:
    table = parse_classes([{"name": "a", "values": [3, 4]}, {"name": "b", "color": "#00ff00"}], [9])
    data = json.loads(json.dumps(table.to_json()))
    assert data["classes"][1] == {"id": 1, "name": "b", "color": "#00ff00", "values": [1]}
    assert data["ignore"] == [9, 255]
    again = ClassTable.from_json(data)
    assert again.to_json() == table.to_json()
    raw = np.array([[3, 4, 1, 9, 255]], np.uint8)
    assert np.array_equal(again.to_class_ids(raw, "m"), table.to_class_ids(raw, "m"))


def test_255_is_ignored_unless_a_class_has_it() -> None:
    table = parse_classes(["a", {"name": "b", "values": [255]}], [7])
    assert table.ignored_values == [7]
    assert table.to_class_ids(np.array([[0, 255, 7]], np.uint8), "m").tolist() == [[0, 1, 255]]
    assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))).lookup == table.lookup
    with pytest.raises(
        UserError, match=r"holds class id 1, but the class table has 2 classes \(0, 255\) and ignores 7\."
    ):
        table.to_class_ids(np.array([[1]], np.uint8), "m")


def test_several_raw_colours_of_one_class() -> None:
    table = parse_classes(
        [{"name": "a", "color": "#0000ff", "values": ["#FF0000", "#00ff00"]}, {"name": "b", "color": "#0000ff"}],
        ["#000000"],
    )
    raw = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]]], np.uint8)
    assert table.to_class_ids(raw, "m").tolist() == [[0, 0, 1, 255, 255]]
    assert table.classes[0].color == "#0000ff"
    assert table.color_lookup == {0xFF0000: 0, 0x00FF00: 0, 0x0000FF: 1, 0: 255, 0xFFFFFF: 255}
    again = ClassTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.to_json() == table.to_json()
    assert again.to_class_ids(raw, "m").tolist() == [[0, 0, 1, 255, 255]]
    unnamed = parse_classes([{"name": "a", "values": ["#FF0000"]}, "b"])
    assert unnamed.classes[0].color == "#ff0000", "drawn as its masks draw it"
    with pytest.raises(UserError, match=r"color '#12' is not of the form #rrggbb"):
        parse_classes([{"name": "a", "values": ["#12"]}, "b"])
