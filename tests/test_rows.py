"""The rows as other people read them: pandas, polars, DuckDB, Hugging Face datasets, pycocotools."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from batchseg.datasets.drawn import CLASSES, draw_scene
from batchseg.images import decode_mask
from batchseg.options import SegmentOptions
from batchseg.quality import InferenceOptions
from batchseg.segment import segment_images


@pytest.fixture(scope="module")
def out(bundle: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that are good and one that is not, with every column filled."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(3):
        (folder / "in" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        scene, _ = draw_scene(np.random.default_rng(number), (120, 160))
        scene = cv2.resize(scene, (90, 70))
        cv2.imwrite(str(folder / "in" / str(number % 2) / f"{number}.png"), scene[..., ::-1])
    (folder / "in" / "bad.png").write_text("no picture")
    options = SegmentOptions(rle=True, inference=InferenceOptions(score_map=True, min_confidence=0.25, min_region=5))
    result = segment_images(str(folder / "in"), str(bundle), str(folder / "out"), options=options)
    assert (result.ok, result.failed) == (3, 1)
    return folder / "out"


def test_pandas(out: Path) -> None:
    import pandas

    frame = pandas.read_parquet(out / "rows")
    assert len(frame) == 4
    assert set(frame["status"].astype(str)) == {"ok", "error"}
    assert frame.set_index("image_id").loc["bad.png", "error_kind"] == "decode"


def test_polars(out: Path) -> None:
    import polars

    frame = polars.read_parquet(out / "rows" / "**" / "*.parquet", hive_partitioning=True)
    assert frame.filter(polars.col("status") == "ok")["class_pixels"].list.sum().max() <= 70 * 90
    assert frame["mask"].struct.field("path").drop_nulls().len() == 3


def test_the_queries_of_the_readme(out: Path) -> None:
    import duckdb

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    queries = readme.split("```sql\n")[1].split("```")[0].split(";")[:-1]
    assert len(queries) == 3
    found = [duckdb.sql(query.replace("runs/photos", str(out))).fetchall() for query in queries]
    shares, uncertain, failures = found
    assert {row[0] for row in shares} == {"0", "1"}
    assert all(0 <= row[1] <= 1 for row in shares)
    assert len(uncertain) == 3
    assert failures == [("decode", 1)]


def test_hugging_face_shows_masks_as_pictures(out: Path) -> None:
    import datasets

    part = next((out / "rows" / "status=ok").glob("*.parquet"))
    rows = datasets.Dataset.from_parquet(str(part), cache_dir=str(out.parent / "cache"))
    assert isinstance(rows.features["mask"], datasets.Image)
    assert rows[0]["mask"].size == (90, 70)
    assert rows[0]["mask"].mode == "P"


def test_what_the_rows_say_is_what_the_masks_hold(out: Path) -> None:
    from pycocotools import mask as coco

    table = pyarrow.dataset.dataset(out / "rows", partitioning="hive").to_table()
    assert json.loads(table.schema.metadata[b"batchseg.classes"]) == [name for name, _ in CLASSES]
    for row in (row for row in table.to_pylist() if row["status"] == "ok"):
        mask = decode_mask((out / row["mask"]["path"]).read_bytes(), "mask")
        assert row["class_pixels"] == [int((mask == class_id).sum()) for class_id in range(len(CLASSES))]
        for code in row["rle"]:
            decoded = coco.decode({"size": code["size"], "counts": code["counts"].encode()})
            np.testing.assert_array_equal(decoded, mask == code["class_id"])
        assert {code["class_id"] for code in row["rle"]} == set(np.unique(mask).tolist()) - {255}
        scores = np.asarray(Image.open(out / row["score_map"]["path"]))
        assert scores.shape == mask.shape
        # Small regions took the class around them after the doubtful pixels had abstained.
        assert scores[mask == 255].max(initial=0) <= round(0.25 * 255)
