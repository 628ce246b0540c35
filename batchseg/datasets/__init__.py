"""Labelled data sets: a folder or a dataset.yaml -> classes and lists of (image, mask) by split."""

from batchseg.datasets.opening import open_dataset
from batchseg.datasets.problems import Problem
from batchseg.datasets.sample import Dataset, Sample

__all__ = ["Dataset", "Problem", "Sample", "open_dataset"]
