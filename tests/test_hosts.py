"""Training and segmenting over hosts that share nothing but a network and a disk."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, find_obstacle, run_hosts, wait_until

from batchseg.bundle import check_weights, read_card
from batchseg.digest import digest_output
from batchseg.verify import verify_output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = 400


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three of one CPU each."""
    obstacle = find_obstacle()
    if obstacle:
        pytest.skip(f"no hosts of our own: {obstacle}")
    with run_hosts(tmp_path_factory.mktemp("hosts"), [1, 1, 1]) as hosts:
        yield hosts


def read_losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_workers_on_two_hosts_train(
    hosts: Hosts, tiny_overrides: dict[str, str], trained_out: Path, tmp_path: Path
) -> None:
    """Each host has one CPU and each worker takes one, so they meet over the network."""
    out, log = tmp_path / "out", tmp_path / "train.log"
    options = {**tiny_overrides, "out": str(out), "cluster.workers": "2", "cluster.cpus_per_worker": "1"}
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert hosts.run(1, sys.executable, "-m", "batchseg", "train", *flags, log=log) == 0, log.read_text()
    check_weights(read_card(str(out / "bundle")))
    # The same config on one node: augmentation is seeded by sample, so only rounding differs.
    assert read_losses(out) == pytest.approx(read_losses(trained_out), rel=0.05)


def test_a_host_vanishes_while_three_segment(hosts: Hosts, bundle: Path, drawn_data: Path, tmp_path: Path) -> None:
    photos, out, log = tmp_path / "photos", tmp_path / "out", tmp_path / "segment.log"
    photos.mkdir()
    sources = sorted((drawn_data.parent / "test" / "images").iterdir())
    for number in range(IMAGES):
        (photos / f"{number:04d}.png").symlink_to(sources[number % len(sources)])
    line = [sys.executable, "-m", "batchseg", "segment", str(photos), "--model", str(bundle)]
    process = hosts.start(1, *line, "--out", str(out), log=log)
    masks = out / "masks"
    wait_until(lambda: masks.exists() and len(list(masks.iterdir())) > IMAGES // 4, "a quarter of the masks", log)
    hosts.kill(3)
    assert len(list(masks.iterdir())) < IMAGES * 3 // 4, "killed half way"
    assert process.wait(timeout=300) == 0, log.read_text()
    found = verify_output(str(out))
    assert found.is_clean
    assert found.is_complete
    alone = tmp_path / "alone"
    subprocess.run([*line, "--out", str(alone), "--address", "local"], check=True, capture_output=True, timeout=300)
    assert digest_output(str(out)) == digest_output(str(alone))
