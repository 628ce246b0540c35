"""On a cluster that runs already: ray job submit with a token, resuming, and RAY_ADDRESS."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.dataset as ds
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
COPIED = ("batchseg", "jobs", "pyproject.toml")


@dataclass(frozen=True)
class Head:
    """A running head node, and the environment in which commands reach it."""

    address: str
    dashboard: str
    environment: dict[str, str]
    home: Path
    metrics: str

    def read_metric(self, name: str) -> float:
        """The sum of what Ray exports to Prometheus under that name; 0 while there is nothing."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name}_total{{")))

    def run(self, *command: str, cwd: Path, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, project: Path, *entrypoint: str, code: int = 0, flags: Sequence[str] = ()) -> str:
        """Returns the log, once the job has ended with that exit code of `ray job submit`."""
        return self.run(
            str(BIN / "ray"), "job", "submit", "--address", self.dashboard, "--working-dir", str(project), *flags, "--",
            "python", "-m", *entrypoint, cwd=project, code=code,
        )  # fmt: skip

    def job(self, verb: str, submission_id: str) -> str:
        """`ray job stop`, `status` or `logs`."""
        return self.run(str(BIN / "ray"), "job", verb, "--address", self.dashboard, submission_id, cwd=self.home)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """It wants a token; the Rays that other tests start do not."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    home = folder / "home"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "BATCHSEG_HOME": str(home),
        "RAY_metrics_report_interval_ms": "500",
    }
    port, dashboard, metrics = find_free_port(), find_free_port(), find_free_port()
    # --block: this process ends its own node, and no other Ray of the machine, as `ray stop` would.
    node = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
         f"--dashboard-port={dashboard}", "--include-dashboard=true", "--disable-usage-stats",
         # Ports that are fixed by default, and taken when another Ray runs on this machine.
         "--dashboard-agent-listen-port=0", f"--ray-client-server-port={find_free_port()}",
         f"--metrics-export-port={metrics}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_port(dashboard, node)
        yield Head(
            f"127.0.0.1:{port}",
            f"http://127.0.0.1:{dashboard}",
            environment,
            home,
            f"http://127.0.0.1:{metrics}/metrics",
        )
    finally:
        node.terminate()
        node.wait(timeout=60)


def wait_for_port(port: int, node: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and node.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    pytest.fail(f"ray start --head did not come up on port {port}")


def copy_project(target: Path) -> Path:
    target.mkdir()
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


@dataclass(frozen=True)
class Trained:
    """A submitted training that has ended: the copy of the project it was submitted from, its `out`, its log."""

    project: Path
    out: Path
    printed: str

    @property
    def bundle(self) -> str:
        return str(self.out / "bundle")

    @property
    def images(self) -> Path:
        return self.out / "data" / "test" / "images"


@pytest.fixture(scope="module")
def trained(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = copy_project(tmp_path_factory.mktemp("submitted") / "project")
    printed = head.submit(project, "batchseg.train", "jobs/smoke.yaml")
    return Trained(project, head.home / "runs" / "smoke", printed)


def read_images(out: Path, status: str) -> list[str]:
    """The images that have a row of that status."""
    return sorted(ds.dataset(out / "rows" / f"status={status}").to_table(["image_id"])["image_id"].to_pylist())


def test_a_submitted_training_resumes(head: Head, trained: Trained) -> None:
    assert f"out: {trained.out}" in trained.printed
    assert f"bundle: {trained.bundle}" in trained.printed
    assert "succeeded" in trained.printed
    assert (trained.out / "bundle" / "bundle.json").exists()

    # Another code version, more epochs: another working directory on the cluster, the same run.
    (trained.project / "batchseg" / "changed.py").write_text('"""Not there before."""\n')
    printed = head.submit(trained.project, "batchseg.train", "jobs/smoke.yaml", "--training.epochs", "3")
    assert "going on after epoch 2" in printed
    assert "epoch   3/3" in printed


def test_the_cluster_of_ray_address_segments(head: Head, trained: Trained, tmp_path: Path) -> None:
    segmented = tmp_path / "segmented"
    done = subprocess.run(
        [sys.executable, "-m", "batchseg", "segment", str(trained.images), "--model", trained.bundle,
         "--out", str(segmented)],
        cwd=PROJECT, env={**head.environment, "RAY_ADDRESS": head.address}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((segmented / "masks").iterdir())) == len(list(trained.images.iterdir()))


def test_a_command_without_the_token_is_told(head: Head, trained: Trained, tmp_path: Path) -> None:
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-m", "batchseg", "segment", str(trained.images), "--model", trained.bundle,
         "--out", str(tmp_path / "out"), "--address", head.address],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"cannot connect to Ray at {head.address}" in done.stderr
    assert "wants RAY_AUTH_MODE=token" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_submitted_training_without_arguments_takes_the_drawn_set(head: Head, trained: Trained) -> None:
    printed = head.submit(trained.project, "batchseg.train", "--dry-run")
    assert "no config given: training on the set that batchseg draws itself" in printed
    assert f"out: {head.home / 'runs' / 'drawn'}" in printed


def test_bad_arguments_fail_the_job_with_their_message(head: Head, trained: Trained) -> None:
    printed = head.submit(trained.project, "batchseg.train", "--training.epoch", "1", code=1)
    assert "training.epoch" in printed
    assert "failed with exit code 2" in printed
    assert "Traceback" not in printed


def test_a_submitted_segment_with_a_failed_image(head: Head, trained: Trained, tmp_path: Path) -> None:
    """The job fails, since not all is well; the log says why, and everything has its row."""
    mixed, out = tmp_path / "mixed", tmp_path / "out"
    shutil.copytree(trained.images, mixed)
    (mixed / "broken.png").write_bytes(b"no picture")
    line = ("batchseg.segment", str(mixed), "--model", trained.bundle, "--out", str(out))
    printed = head.submit(trained.project, *line, code=1)
    assert "failed with exit code 3" in printed
    assert "Traceback" not in printed
    assert read_images(out, "error") == ["broken.png"]
    assert len(read_images(out, "ok")) == len(list(trained.images.iterdir()))


def test_a_stopped_job_is_completed_by_the_same_line(head: Head, trained: Trained, tmp_path: Path) -> None:
    """`ray job stop` while images are being written; nothing of the stopped run is lost or done wrong.

    Meanwhile the metrics of the job are where a Grafana would find them.
    """
    many, out = tmp_path / "many", tmp_path / "out"
    many.mkdir()
    sources = sorted(trained.images.iterdir())
    for number in range(1500):
        (many / f"{number:04d}.png").symlink_to(sources[number % len(sources)])
    line = ("batchseg.segment", str(many), "--model", trained.bundle, "--out", str(out))
    before = head.read_metric("ray_batchseg_images_ok")
    head.submit(trained.project, *line, flags=("--no-wait", "--submission-id", "stopped"))
    deadline = time.monotonic() + 120
    while not (out / "masks").exists() or head.read_metric("ray_batchseg_images_ok") in (0, before):
        assert time.monotonic() < deadline, head.job("logs", "stopped")
        time.sleep(0.1)
    assert head.read_metric("ray_batchseg_bytes") > 0
    head.job("stop", "stopped")
    assert "was stopped" in head.job("status", "stopped")
    assert len(list((out / "masks").iterdir())) < 1500, "stopped half way"
    head.submit(trained.project, *line)
    assert len(read_images(out, "ok")) == 1500
    assert "clean: nothing is wrong" in head.run(sys.executable, "-m", "batchseg", "verify", str(out), cwd=PROJECT)


COUNT_ACTORS = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print("actors:", sum("Predict" in actor["ActorClassName"] for actor in ray._private.state.actors().values()))
"""


HOLD_GPUS = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_gpus=2)
class Holder:
    def answer(self): return "held"

holder = Holder.remote()
print(ray.get(holder.answer.remote()), flush=True)
time.sleep(600)
"""


def wait_for_another_job(head: Head, line: Sequence[str], out: Path, log: Path) -> None:
    """Runs `line` while another job holds both GPUs; that one ends once the log says what is waited for."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_GPUS, head.address], env=head.environment, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with log.open("w") as stream:
            job = subprocess.Popen(
                [*line, "--gpus-per-actor", "1", "--out", str(out)],
                cwd=PROJECT, env=head.environment, stdout=stream, stderr=stream,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while "0 have begun, the others start, or wait for another job: 0 of 2 GPUs are free" not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        other.kill()
    assert job.wait(timeout=300) == 0, log.read_text()


def test_one_actor_on_each_gpu_or_two_that_share_one(
    head: Head, drawn_data: Path, bundle: Path, tmp_path: Path
) -> None:
    """Logical GPUs of a second node: what Ray schedules; TensorFlow finds no device there."""
    node = subprocess.Popen(
        [str(BIN / "ray"), "start", "--block", f"--address={head.address}", "--num-cpus=2", "--num-gpus=2",
         "--dashboard-agent-listen-port=0"],
        env=head.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    line = [sys.executable, "-m", "batchseg", "segment", str(drawn_data.parent / "test" / "images"),
            "--model", str(bundle), "--address", head.address]  # fmt: skip
    count = (sys.executable, "-c", COUNT_ACTORS, head.address)
    try:
        head.run(sys.executable, "-c", WAIT_FOR_TWO_NODES, head.address, cwd=tmp_path)
        seen = [int(re.findall(r"actors: (\d+)", head.run(*count, cwd=PROJECT))[0])]
        for share in ("1", "0.5"):
            out = tmp_path / share
            if share == "1":
                wait_for_another_job(head, line, out, tmp_path / "waiting.log")
            else:
                head.run(*line, "--gpus-per-actor", share, "--out", str(out), cwd=PROJECT)
            assert len(read_images(out, "ok")) == len(list((drawn_data.parent / "test" / "images").iterdir()))
            seen.append(int(re.findall(r"actors: (\d+)", head.run(*count, cwd=PROJECT))[0]))
    finally:
        node.terminate()
        node.wait(timeout=60)
    assert [after - before for before, after in pairwise(seen)] == [2, 4]


WAIT_FOR_TWO_NODES = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < 2:
    assert time.monotonic() < deadline, "the second node did not come"
    time.sleep(0.3)
"""


def test_what_a_node_does_not_see_is_refused(head: Head, drawn_data: Path, bundle: Path, tmp_path: Path) -> None:
    """The second node has a disk of its own where the output would go, or the images are."""
    hidden = tmp_path / "not shared"
    hidden.mkdir()
    photos = hidden / "photos"
    shutil.copytree(drawn_data.parent / "test" / "images", photos)
    own_disk = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
    if not shutil.which("unshare") or subprocess.run([*own_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a node with a disk of its own needs `unshare --mount` and the right to use it")
    node = subprocess.Popen(
        [*own_disk, str(BIN / "ray"), "start", "--block", f"--address={head.address}", "--num-cpus=1",
         "--dashboard-agent-listen-port=0"],
        env=head.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        head.run(sys.executable, "-c", WAIT_FOR_TWO_NODES, head.address, cwd=tmp_path)
        printed = head.run(
            sys.executable, "-m", "batchseg", "segment", str(photos), "--model", str(bundle),
            "--out", str(tmp_path / "shared"), "--address", head.address, cwd=PROJECT, code=2,
        )  # fmt: skip
        assert f"{photos}" in printed
        assert "is not shared: node" in printed
        shutil.rmtree(photos)
        done = subprocess.run(
            [sys.executable, "-m", "batchseg", "train", "--data", str(drawn_data), "--out", str(hidden)],
            cwd=PROJECT,
            env={**head.environment, "RAY_ADDRESS": head.address},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        node.terminate()
        node.wait(timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{hidden} is not shared: node" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(hidden.iterdir())
