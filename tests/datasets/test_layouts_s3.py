"""The same layouts on a real S3 server: opened by page or recognised, every mask as it was drawn."""

from pathlib import Path

import numpy as np
import pytest
from layouts import SIZE_HW, draw_splits, write_layout

from batchseg import storage
from batchseg.datasets import open_dataset
from batchseg.datasets.sample import load_mask
from batchseg.datasets.splitting import write_splits
from batchseg.errors import UserError

RECOGNISED = {"folders", "COCO", "COCO panoptic", "a mask for each instance"}


def upload(folder: Path, location: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_atomic(storage.join(location, path.relative_to(folder).as_posix()), path.read_bytes())


@pytest.mark.parametrize("name", ["Cityscapes", "lists of names", "PASCAL VOC", *sorted(RECOGNISED)])
def test_layouts_on_s3(name: str, s3_bucket: str, tmp_path: Path) -> None:
    page, truth = write_layout(name, tmp_path, draw_splits(4, 2))
    root = f"{s3_bucket}/data set"
    upload(tmp_path, root)
    dataset = open_dataset(root)
    assert dataset.location == f"{root}/dataset.yaml"
    samples = [sample for split in dataset.splits.values() for sample in split]
    assert len(samples) == len(truth)
    for sample in samples:
        assert sample.image.startswith(f"{root}/")
        stem = storage.name_of(sample.name).split(".")[0].removesuffix("_leftImg8bit")
        assert np.array_equal(load_mask(sample, dataset.classes, SIZE_HW), truth[stem])
    assert dataset.fingerprint() == open_dataset(page).fingerprint(), "the same set, wherever it lies"
    write_splits(dataset, f"{s3_bucket}/out/splits")
    assert open_dataset(f"{s3_bucket}/out/splits").fingerprint() == dataset.fingerprint()
    if name in RECOGNISED:
        storage.delete_file(dataset.location)
        assert open_dataset(root).format == dataset.format


def test_nothing_on_s3(s3_bucket: str) -> None:
    for location in (f"{s3_bucket}/nowhere", f"{s3_bucket}/nowhere/dataset.yaml"):
        with pytest.raises(UserError, match=rf"data {location} does not exist"):
            open_dataset(location)
