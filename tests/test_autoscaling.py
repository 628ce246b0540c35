"""A cluster that scales: the autoscaler of Ray, with nodes that it starts on this machine; GPUs are logical ones."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from hosts import Hosts, find_obstacle, run_hosts

from batchseg.verify import verify_output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMAGES = 1600  # the last actor starts while the others work: they must not end before it
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
# Written where Ray's launcher leaves its page on a head.
PAGE = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
    },
    "auth": {},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu_worker": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                           "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
                           "rsync_exclude", "rsync_filter")},
    "file_mounts": {}, "file_mounts_sync_continuously": False, "docker": {}, "upscaling_speed": 1.0,
}  # fmt: skip
# The autoscaler tells nodes apart by these names, as ray.cluster_utils.AutoscalingCluster gives them.
SCALING = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
# Looks on while a command runs: how many nodes there are, and how many model actors on each, at the busiest moment.
WATCH = """
import json, sys, time, ray
from collections import Counter
from pathlib import Path
ray.init(sys.argv[1], log_to_driver=False)
stop, found = Path(sys.argv[2]), Path(sys.argv[3])
most, at_most = 0, []
while not stop.exists():
    actors = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE" and "Predict" in a["ActorClassName"]]
    if len(actors) > most:
        most, at_most = len(actors), sorted(Counter(a["Address"]["NodeID"] for a in actors).values())
        found.write_text(json.dumps(at_most))
    time.sleep(0.2)
deadline = time.monotonic() + 90
while sum(node["Alive"] for node in ray.nodes()) > 1:
    assert time.monotonic() < deadline, "the nodes did not go"
    time.sleep(0.5)
"""  # noqa: E501


def test_nodes_come_for_a_job_and_go(bundle: Path, drawn_data: Path, tmp_path: Path) -> None:
    """Two actors share each GPU; test_jobs has one on each."""
    obstacle = find_obstacle()
    if obstacle:
        pytest.skip(f"no host of our own: {obstacle}")
    page = tmp_path / "ray_bootstrap_config.yaml"
    page.write_text(yaml.safe_dump(PAGE))
    photos, out, log = tmp_path / "photos", tmp_path / "out", tmp_path / "segment.log"
    photos.mkdir()
    sources = sorted((drawn_data.parent / "test" / "images").iterdir())
    for number in range(IMAGES):
        (photos / f"{number:04d}.png").symlink_to(sources[number % len(sources)])
    head_flags = [f"--autoscaling-config={page}", "--resources={}"]
    with run_hosts(tmp_path, [0], head_flags, {"HOME": str(tmp_path), **SCALING}) as hosts:
        stop, seen, watched = tmp_path / "stop", tmp_path / "seen.json", tmp_path / "watch.log"
        watch = hosts.start(1, sys.executable, "-c", WATCH, Hosts.address, str(stop), str(seen), log=watched)
        code = hosts.run(
            1, sys.executable, "-m", "batchseg", "segment", str(photos), "--model", str(bundle), "--out", str(out),
            "--actors", "4", "--gpus-per-actor", "0.5", log=log,
        )  # fmt: skip
        stop.touch()
        assert code == 0, log.read_text()
        printed = log.read_text()
        wait = "waiting for nodes; wanted: 4 actors x 0.5 GPUs; the cluster has 0 CPUs and 0 GPUs and may grow to 4"
        assert wait in printed
        assert json.loads(seen.read_text()) == [2, 2]
        assert watch.wait(timeout=120) == 0, watched.read_text()
    found = verify_output(str(out))
    assert found.is_clean
    assert found.is_complete
