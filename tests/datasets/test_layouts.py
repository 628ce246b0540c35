"""Every page in the README opens its layout, and every mask comes back exactly as it was drawn."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS, SIZE_HW, Truth, read_examples, write_layout

from batchseg import storage
from batchseg.datasets import Dataset, open_dataset
from batchseg.datasets.page import parse_page, read_page
from batchseg.datasets.sample import load_mask


def stem_of(name: str) -> str:
    return storage.name_of(name).split(".")[0].removesuffix("_leftImg8bit")


def check_masks(dataset: Dataset, truth: Truth) -> None:
    """Every scene is in one split, and its mask is the one that was drawn."""
    samples = [sample for split in dataset.splits.values() for sample in split]
    assert sorted(stem_of(sample.name) for sample in samples) == sorted(truth)
    for sample in samples:
        mask = load_mask(sample, dataset.classes, SIZE_HW)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, truth[stem_of(sample.name)]), sample.name


def test_every_layout_has_its_page() -> None:
    assert list(read_examples()) == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_page_in_the_readme_opens_its_layout(name: str, tmp_path: Path) -> None:
    page, truth = write_layout(name, tmp_path)
    dataset = open_dataset(page)
    check_masks(dataset, truth)
    assert {"train", "val"} <= set(dataset.splits)
    assert all(dataset.splits.values())
    assert dataset.fingerprint() == open_dataset(str(tmp_path)).fingerprint()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_page_written_back_opens_the_same(name: str, tmp_path: Path) -> None:
    page, truth = write_layout(name, tmp_path)
    dataset = open_dataset(page)
    again = tmp_path / "again.yaml"
    again.write_text(dataset.page.to_yaml(), encoding="utf-8")
    assert read_page(str(again)) == dataset.page
    reopened = open_dataset(str(again))
    assert reopened.fingerprint() == dataset.fingerprint()
    check_masks(reopened, truth)


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_are_small_to_send(name: str, tmp_path: Path) -> None:
    page, _ = write_layout(name, tmp_path)
    samples = [sample for split in open_dataset(page).splits.values() for sample in split]
    sent = pickle.dumps(samples)
    assert pickle.loads(sent) == samples
    assert len(sent) / len(samples) < 1000


def test_pages_are_plain_data(tmp_path: Path) -> None:
    for name in LAYOUTS:
        page = read_page(write_layout(name, tmp_path / name.replace(" ", "_"))[0])
        assert parse_page(page.model_dump(by_alias=True, exclude_defaults=True), "again") == page
