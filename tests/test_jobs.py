"""On a cluster that runs already: ray job submit with and without a token, resuming, and RAY_ADDRESS."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

    def run(self, *command: str, cwd: Path, check: bool = True) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, project: Path, *entrypoint: str) -> str:
        return self.run(
            str(BIN / "ray"), "job", "submit", "--address", self.dashboard, "--working-dir", str(project), "--",
            "python", "-m", *entrypoint, cwd=project,
        )  # fmt: skip


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["token", "disabled"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp(f"head-{request.param}")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    home = folder / "home"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": request.param,
        "RAY_AUTH_TOKEN_PATH": str(token),
        "BATCHSEG_HOME": str(home),
    }
    port, dashboard = find_free_port(), find_free_port()
    # --block: this process ends its own node, and no other Ray of the machine, as `ray stop` would.
    node = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
         f"--dashboard-port={dashboard}", "--include-dashboard=true", "--disable-usage-stats",
         # Ports that are fixed by default, and taken when another Ray runs on this machine.
         "--dashboard-agent-listen-port=0", f"--ray-client-server-port={find_free_port()}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_port(dashboard, node)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, home)
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


def test_submitted_training_resumes_and_the_cluster_segments(head: Head, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    out = head.home / "runs" / "smoke"
    printed = head.submit(project, "batchseg.train", "jobs/smoke.yaml")
    assert f"out: {out}" in printed
    assert f"bundle: {out / 'bundle'}" in printed
    assert (out / "bundle" / "bundle.json").exists()

    # Another code version, more epochs: another working directory on the cluster, the same run.
    (project / "batchseg" / "changed.py").write_text('"""Not there before."""\n')
    printed = head.submit(project, "batchseg.train", "jobs/smoke.yaml", "--training.epochs", "3")
    assert "going on after epoch 2" in printed
    assert "epoch   3/3" in printed

    images = out / "data" / "test" / "images"
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    segmented = tmp_path / "segmented"
    command = [sys.executable, "-m", "batchseg", "segment", str(images), "--model", str(out / "bundle")]
    done = subprocess.run(
        [*command, "--out", str(segmented)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((segmented / "masks").iterdir())) == len(list(images.iterdir()))


def test_submitted_without_arguments_trains_on_the_drawn_set(head: Head, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    printed = head.submit(project, "batchseg.train")
    assert "no config given: training on the set that batchseg draws itself" in printed
    assert f"bundle: {head.home / 'runs' / 'drawn' / 'bundle'}" in printed


WAIT_FOR_TWO_NODES = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < 2:
    assert time.monotonic() < deadline, "the second node did not come"
    time.sleep(0.3)
"""


def test_output_that_a_node_does_not_see_is_refused(head: Head, drawn_data: Path, tmp_path: Path) -> None:
    """The second node has a disk of its own where the output would go."""
    hidden = tmp_path / "not shared"
    hidden.mkdir()
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
