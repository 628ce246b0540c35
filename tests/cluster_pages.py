"""Where the files for clusters lie, and how tests read them."""

import re
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]
LAUNCHER_PAGES = ("cluster.yaml", "jobs/cluster-ssh.yaml")
RAY_JOBS = ("jobs/rayjob-train.yaml", "jobs/rayjob-segment.yaml")
STORAGE = "jobs/rayjob-storage.yaml"
DATA_POD = "jobs/rayjob-data.yaml"
SCRIPTS = ("jobs/submit.sh", "jobs/segment.sh", "jobs/aws-roles.sh")
ALL_FILES = (*LAUNCHER_PAGES, *RAY_JOBS, STORAGE, DATA_POD, "Dockerfile", *SCRIPTS)


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def load(name: str) -> Any:
    return yaml.safe_load(read(name))


def pinned(package: str) -> str:
    """Its version in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", read("constraints.txt"), re.MULTILINE | re.IGNORECASE)
    assert found, package
    return found[1]
