"""Keys of a page as text."""

import yaml

from batchseg.datasets.page import write_keys


def test_written_keys_are_read_as_they_were() -> None:
    lines = {
        "classes": ["ground", {"name": "a: b", "color": "#ff0000", "values": [1, "#010101"]}],
        "ignore": [9, 255],
        "resize_masks": "nearest",
        "exclude": [f"train/images/name with spaces {number}.png" for number in range(9)],
        "splits": {"train": {"images": "a", "masks": "b"}, "val": {"from": "train", "fraction": 0.2, "group": "(.*)_"}},
    }
    text = write_keys(lines)
    assert yaml.safe_load(text) == lines
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) == 3 + 1 + 1 + 10 + 3
