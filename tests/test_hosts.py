"""Training and segmenting over hosts that share nothing but a network and a disk."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hosts import BIN, Hosts, find_obstacle, run_hosts, wait_until

from batchseg import storage
from batchseg.bundle import check_weights, read_card
from batchseg.digest import digest_output
from batchseg.train_task import STATE_FILE
from batchseg.verify import verify_output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = 900


def skip_without_hosts() -> None:
    if obstacle := find_obstacle():
        pytest.skip(f"no hosts of our own: {obstacle}")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three of one CPU each."""
    skip_without_hosts()
    with run_hosts(tmp_path_factory.mktemp("hosts"), [1, 1, 1]) as hosts:
        yield hosts


def read_epochs(out: Path) -> list[dict[str, str]]:
    if not (out / "metrics.csv").exists():
        return []
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def read_losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in read_epochs(out)]


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


@pytest.fixture(scope="module")
def photos(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    sources = sorted((drawn_data.parent / "test" / "images").iterdir())
    for number in range(IMAGES):
        (folder / f"{number:04d}.png").symlink_to(sources[number % len(sources)])
    return folder


@pytest.fixture(scope="module")
def digest(photos: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of what one machine makes of the photos."""
    alone = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run([*segment_line(photos, bundle, alone), "--address", "local"], check=True, capture_output=True)
    return digest_output(str(alone))


def segment_line(photos: Path, bundle: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "batchseg", "segment", str(photos), "--model", str(bundle), "--out", str(out)]


def drain(hosts: Hosts, host: int, folder: Path) -> None:
    """A spot machine gets its notice, and is taken away three seconds later."""
    log = folder / "drain.log"
    code = hosts.run(
        host, str(BIN / "ray"), "drain-node", "--address", hosts.address, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "the price has risen", "--deadline-remaining-seconds", "3", log=log,
    )  # fmt: skip
    assert code == 0, log.read_text()
    time.sleep(3)
    hosts.kill(host)


def kill(hosts: Hosts, host: int, folder: Path) -> None:
    hosts.kill(host)


@pytest.mark.parametrize(("end", "host", "done"), [(kill, 3, IMAGES // 2), (drain, 2, IMAGES // 9)])
def test_a_host_goes_while_all_segment(
    end: Callable[[Hosts, int, Path], None], host: int, done: int, hosts: Hosts, bundle: Path, photos: Path,
    digest: str, tmp_path: Path,
) -> None:  # fmt: skip
    """Of three the third dies half way, then the second is drained and dies: all is done, and as on one machine."""
    out, log = tmp_path / "out", tmp_path / "segment.log"
    process = hosts.start(1, *segment_line(photos, bundle, out), log=log)
    masks = out / "masks"
    wait_until(lambda: masks.exists() and len(list(masks.iterdir())) > done, f"{done} masks", log)
    end(hosts, host, tmp_path)
    assert len(list(masks.iterdir())) < IMAGES, "not at the end of it"
    assert process.wait(timeout=300) == 0, log.read_text()
    found = verify_output(str(out))
    assert found.is_clean
    assert found.is_complete
    assert digest_output(str(out)) == digest


def find_unfinished(out: Path) -> list[int]:
    """Steps that checkpoints hold of an epoch that has not ended."""
    found = []
    for path in (out / "checkpoints").glob(f"*/{STATE_FILE}"):
        with suppress(OSError, ValueError):  # being written, or deleted
            found.append(len(json.loads(path.read_text())["losses"]))
    return [steps for steps in found if steps]


def test_a_training_keeps_what_it_has_when_aws_gives_notice(
    tiny_overrides: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The second of two workers is on a spot machine; the notice says when it goes. The first one goes on alone."""
    skip_without_hosts()
    notice, watching = tmp_path / "notice.json", tmp_path / "spot_notice.log"
    out, log = tmp_path / "out", tmp_path / "train.log"
    options = {
        **tiny_overrides,
        "out": str(out),
        "cluster.workers": "1,2",
        "cluster.cpus_per_worker": "1",
        "cluster.max_failures": "0",
        "training.batch_size": "2",
        "training.epochs": "300",
    }
    with run_hosts(tmp_path_factory.mktemp("spot"), [1, 1]) as hosts:
        server = str(Path(__file__).with_name("ec2_metadata.py"))
        hosts.start(2, sys.executable, server, "8000", str(notice), log=watching)
        watch = ["env", "-u", "RAY_ADDRESS", sys.executable, "-m", "batchseg.spot_notice"]
        watcher = hosts.start(2, *watch, "--metadata", "http://127.0.0.1:8000/latest", log=watching)
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        process = hosts.start(1, sys.executable, "-m", "batchseg", "train", *flags, log=log)
        wait_until(lambda: bool(read_epochs(out)), "an epoch", log)
        goes = datetime.now(UTC) + timedelta(seconds=55)
        storage.write_atomic(str(notice), json.dumps({"action": "terminate", "time": f"{goes:%Y-%m-%dT%H:%M:%SZ}"}))
        wait_until(lambda: bool(find_unfinished(out)), "a checkpoint within an epoch", log)
        assert watcher.wait(timeout=30) == 0, watching.read_text()
        time.sleep(max(0, (goes - datetime.now(UTC)).total_seconds()))
        hosts.kill(2)
        wait_until(lambda: "workers have started again, 1 now (start 2): after epoch" in log.read_text(), "alone", log)
        before = len(read_epochs(out))
        wait_until(lambda: len(read_epochs(out)) > before + 1, "two epochs more", log)
        assert process.poll() is None, log.read_text()
    assert log.read_text().count("a node is to be taken away: a checkpoint is made, after ") == 1
    epochs = [int(row["epoch"]) for row in read_epochs(out)]
    assert epochs == list(range(1, len(epochs) + 1))
