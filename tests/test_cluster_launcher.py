"""cluster.yaml and jobs/cluster-ssh.yaml, offline: against the schema, launcher and autoscaler code of Ray itself."""

import copy
import importlib
import json
import shlex
import subprocess
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import boto3
import jsonschema
import moto
import pytest
from cluster_pages import LAUNCHER_PAGES, PROJECT, load, read

from batchseg.outputs import JOB_VARIABLE, resolve_output

# Stands in for `ray`: writes down how it was called.
RECORDER = """#!/usr/bin/env bash
echo "$RAY_AUTH_MODE v2=$RAY_enable_autoscaler_v2 ray $*" >> "$HOME/calls"
"""
# vCPUs and GPUs, from AWS's pages on instance types.
INSTANCES = {"m6i.2xlarge": (8, 0), "m6i.4xlarge": (16, 0), "g5.2xlarge": (8, 1)}


def prepare(name: str) -> dict[str, Any]:
    """As `ray up` does before it asks a provider for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(load(name))
    validate_config(prepared)
    return prepared


@pytest.fixture
def aws_config(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Ray's AWS code; whatever asks AWS for something fails."""
    config = importlib.import_module("ray.autoscaler._private.aws.config")

    def ask_aws(*arguments: Any) -> None:
        raise AssertionError(f"AWS was asked for {arguments[0]}")

    monkeypatch.setattr(config, "_resource", ask_aws)
    return config


@pytest.mark.parametrize("name", LAUNCHER_PAGES)
def test_ray_takes_the_page(name: str) -> None:
    prepared = prepare(name)
    assert prepared["cluster_name"] == "batchseg"
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_ray_refuses_a_misspelt_key() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    page = load("cluster.yaml")
    page["available_node_types"]["head"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(page))


def test_own_machines_are_all_used() -> None:
    prepared, page = prepare("jobs/cluster-ssh.yaml"), load("jobs/cluster-ssh.yaml")
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(page["provider"]["worker_ips"]) == 2


class Machine:
    """A home folder, and commands run there as Ray's launcher runs them over SSH."""

    def __init__(self, home: Path) -> None:
        self.home = home
        ray = home / f"batchseg-venv-{subprocess.check_output(['hostname'], text=True).strip()}" / "bin" / "ray"
        ray.parent.mkdir(parents=True)
        ray.write_text(RECORDER)
        ray.chmod(0o755)
        # As Ubuntu's begins; and no newline at its end.
        (home / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\nexport MINE=1")

    def run(self, command: str) -> list[str]:
        """Every call of `ray` so far."""
        from ray.autoscaler._private.command_runner import _with_interactive

        over_ssh = shlex.split(" ".join(_with_interactive(command)))
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        subprocess.run(over_ssh, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        calls = self.home / "calls"
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_own_machines_find_ray_where_the_launcher_calls_it_by_name(machine: Machine) -> None:
    """`ray down` runs `ray stop`, and `ray exec` what it is given; by that alone Ray ends on the head."""
    assert machine.run("ray stop") == []
    (command,) = [line for line in load("jobs/cluster-ssh.yaml")["setup_commands"] if ".bashrc" in line]
    machine.run(command)
    machine.run(command)
    assert machine.run("ray stop") == ["token v2= ray stop"]
    assert (machine.home / ".bashrc").read_text().count("batchseg-venv") == 1


def test_own_machines_start_with_the_older_autoscaler(machine: Machine) -> None:
    """Ray's launcher sets the newer one before our command; the command must have the last word."""
    from ray.autoscaler._private.util import with_envs

    line = load("jobs/cluster-ssh.yaml")["head_start_ray_commands"][-1]
    (call,) = machine.run(with_envs([line], {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": "10.0.0.1"})[0])
    assert call.startswith("token v2=0 ray start --head ")


def test_the_older_autoscaler_starts_all_own_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the head, where it reads the page that the launcher has left; of 2.60 the newer one leaves one machine out."""
    from ray.autoscaler._private import autoscaler, load_metrics, updater
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(updater.NodeUpdater, "do_update", lambda self: started.append(self.node_id))
    started: list[str] = []
    page = load("jobs/cluster-ssh.yaml")
    page["provider"].update(head_ip="10.0.0.1", worker_ips=["10.0.0.2", "10.0.0.3"])
    (tmp_path / "key").write_text("none")
    page["auth"]["ssh_private_key"] = str(tmp_path / "key")
    page["file_mounts"] = {}
    left = tmp_path / "ray_bootstrap_config.yaml"
    left.write_text(json.dumps(prepare_config(page)))
    scaler = autoscaler.StandardAutoscaler(str(left), load_metrics.LoadMetrics(), MagicMock(), update_interval_s=0)
    deadline = time.monotonic() + 30
    while len(started) < 2 and time.monotonic() < deadline:
        scaler.update()
        time.sleep(0.05)
    assert sorted(started) == ["10.0.0.2", "10.0.0.3"]


def test_aws_workers_scale_from_nothing_on_spot_and_the_head_stays() -> None:
    kinds = prepare("cluster.yaml")["available_node_types"]
    head = kinds.pop("head")
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()} == {"gpu_worker": 1, "cpu_worker": 0}
    for kind in kinds.values():
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert (kind["resources"]["CPU"], kind["resources"].get("GPU", 0)) == INSTANCES[
            kind["node_config"]["InstanceType"]
        ]
    assert sum(kind["max_workers"] for kind in kinds.values()) <= load("cluster.yaml")["max_workers"]


@pytest.mark.parametrize(
    ("demand", "launched"),
    [
        ([{"CPU": 7, "GPU": 1}] * 2, {"gpu_worker": 2}),  # workers of training
        ([{"GPU": 1}] * 3, {"gpu_worker": 3}),  # model actors
        ([{"GPU": 0.5}] * 4, {"gpu_worker": 2}),
        ([{"CPU": 0.5}] * 33, {"cpu_worker": 2}),  # decoding, writing: no GPU machine is paid for it
    ],
)
def test_rays_autoscaler_launches_the_right_machines(demand: list[dict[str, float]], launched: dict[str, int]) -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    kinds = prepare("cluster.yaml")["available_node_types"]
    score = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    found, unfulfilled = get_nodes_for(kinds, {}, "head", 8, demand, score)
    assert (found, unfulfilled) == (launched, [])


def test_aws_configuration_goes_without_asking_aws(aws_config: ModuleType) -> None:
    """Of bootstrap_aws all that reads the page alone: legacy fields, templates, interfaces, profile, images."""
    config = prepare("cluster.yaml")
    aws_config.check_legacy_fields(config)
    config["head_node"] = {}
    for step in ("_configure_from_launch_template", "_configure_from_network_interfaces", "_configure_iam_role"):
        config = getattr(aws_config, step)(config)
    before = copy.deepcopy(config)
    aws_config._check_ami(config)
    assert config == before, "Ray put an image of its own in"
    assert config["head_node"] == {}, "Ray would make a profile of its own for the head"


def test_only_ssh_is_open_to_the_outside(aws_config: ModuleType) -> None:
    extra = load("cluster.yaml")["provider"].get("security_group", {}).get("IpPermissions", [])
    rules = aws_config._create_default_inbound_rules({"sg-of-the-cluster"}, extra)
    outside = [(rule["FromPort"], rule["ToPort"]) for rule in rules if rule.get("IpRanges") or rule.get("Ipv6Ranges")]
    assert outside == [(22, 22)]


def test_ray_makes_the_machines_on_a_make_believe_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bootstrap_aws as a whole, and one machine of each kind."""
    (tmp_path / ".ssh").mkdir()
    for name, value in {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with moto.mock_aws():
        for profile in ("batchseg-head", "batchseg-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        image = boto3.client("ec2", region_name="us-west-2").describe_images()["Images"][0]["ImageId"]
        page = prepare("cluster.yaml")
        for kind in page["available_node_types"].values():
            kind["node_config"]["ImageId"] = image
        page = importlib.import_module("ray.autoscaler._private.aws.config").bootstrap_aws(page)
        provider_code = importlib.import_module("ray.autoscaler._private.aws.node_provider").AWSNodeProvider
        provider = provider_code(page["provider"], "batchseg")
        for name, kind in page["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-node-name": name, "ray-user-node-type": name}
            (made,) = provider.create_node(kind["node_config"], tags, 1).values()
            assert made.instance_lifecycle == (None if name == "head" else "spot")
        found = provider_code.fillout_available_node_types_resources(page)["available_node_types"]
        assert found["gpu_worker"]["resources"]["accelerator_type:A10G"] == 1


def test_aws_images_and_profiles_fit_the_machines() -> None:
    page = load("cluster.yaml")
    for name, kind in page["available_node_types"].items():
        image = {**page["docker"], **kind.get("docker", {})}
        has_gpu = "GPU" in kind["resources"]
        assert image.get("worker_image", image["image"]).endswith("-gpu" if has_gpu else "-cpu")
        assert ("[gpu]" in " ".join(kind.get("worker_setup_commands", []))) == has_gpu
        profile = "batchseg-head" if name == "head" else "batchseg-worker"
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": profile}
        assert profile in read("jobs/aws-roles.sh")


@pytest.mark.parametrize("name", LAUNCHER_PAGES)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_inside(name: str) -> None:
    page = load(name)
    (head,) = [line for line in page["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in page["worker_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    everywhere = " ".join(page.get("docker", {}).get("run_options", []))
    for line in (head, worker):
        assert "--metrics-export-port=8080" in line
        assert "RAY_AUTH_MODE=token" in everywhere + line
        assert "BATCHSEG_HOME=" in everywhere + line
    (remote,) = [there for there, here in page["file_mounts"].items() if here == "~/.ray/auth_token"]
    assert remote == "~/.ray/auth_token" or f"RAY_AUTH_TOKEN_PATH={remote}" in everywhere


@pytest.mark.parametrize("name", LAUNCHER_PAGES)
def test_what_is_sent_is_what_an_installation_needs(name: str) -> None:
    sent = {Path(here) for here in load(name)["file_mounts"].values() if here.startswith("./")}
    assert all((PROJECT / path).exists() for path in sent)
    needed = {"batchseg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert {path.name for path in sent} == needed
    assert '"LICENSE"' in read("pyproject.toml")
    assert 'readme = "README.md"' in read("pyproject.toml")


def test_relative_output_of_a_submitted_job_may_lie_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.setenv("BATCHSEG_HOME", "s3://bucket/batchseg")
    assert resolve_output("runs/fields") == "s3://bucket/batchseg/runs/fields"
