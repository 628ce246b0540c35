"""What INPUT is, and which images it holds: folders, S3 prefixes, globs, lists and Parquet become one manifest."""

from batchseg.listing.inputs import Listing, ListOptions, list_input
from batchseg.listing.manifest import MANIFEST_SCHEMA

__all__ = ["MANIFEST_SCHEMA", "ListOptions", "Listing", "list_input"]
