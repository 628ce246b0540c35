"""The RayJob files against the fields that KubeRay publishes; the Dockerfile; versions, images and headers of all."""

import os
import re
import subprocess
import sys

import pytest
from cluster_pages import ALL_FILES, DATA_POD, PROJECT, RAY_JOBS, STORAGE, load, pinned, read
from kuberay_fields import POD, RAY_JOB, find_faults

import batchseg


@pytest.mark.parametrize("name", RAY_JOBS)
def test_kuberay_knows_every_field(name: str) -> None:
    assert find_faults(load(name), RAY_JOB) == []


def test_an_unknown_field_and_a_wrong_type_are_found() -> None:
    job = load(RAY_JOBS[0])
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": 0}
    job["spec"]["backoffLimit"] = "1"
    assert find_faults(job, RAY_JOB) == [
        ".spec.backoffLimit is '1', not int",
        ".spec.rayClusterSpec.headGroupSpec.rayStartParams is no map of strings: {'num-cpus': 0}",
        ".spec.rayClusterSpec.workerGroupSpecs[0].replica is no field",
    ]


@pytest.mark.parametrize("name", RAY_JOBS)
def test_groups_scale_and_hold_what_the_job_asks_for(name: str) -> None:
    spec = load(name)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is spec["shutdownAfterJobFinishes"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"gpu", "cpu"}
    for group in groups.values():
        assert group["minReplicas"] == 0 <= group["replicas"] <= group["maxReplicas"]
    (wanted,) = re.findall(r"--(?:cluster\.workers|actors) (\d+)", spec["entrypoint"])
    assert groups["gpu"]["replicas"] == int(wanted)


@pytest.mark.parametrize("name", RAY_JOBS)
def test_every_pod_sees_the_volume_and_keeps_to_its_share(name: str) -> None:
    cluster = load(name)["spec"]["rayClusterSpec"]
    claim = load(STORAGE)["metadata"]["name"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (box,) = pod["containers"]
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]
        assert box["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert box["env"] == [{"name": "BATCHSEG_HOME", "value": "/shared/batchseg"}]
        assert box["resources"]["requests"] == box["resources"]["limits"]
        assert box["image"].endswith("-gpu" if "nvidia.com/gpu" in box["resources"]["limits"] else "-cpu")
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_pod_for_copying_sees_the_volume_as_the_jobs_do() -> None:
    pod = load(DATA_POD)
    assert find_faults(pod, POD) == []
    jobs_pod = load(RAY_JOBS[0])["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (box,), (jobs_box,) = pod["spec"]["containers"], jobs_pod["containers"]
    assert pod["spec"]["volumes"] == jobs_pod["volumes"]
    assert pod["spec"]["securityContext"] == jobs_pod["securityContext"]
    assert (box["image"], box["volumeMounts"]) == (jobs_box["image"], jobs_box["volumeMounts"])


@pytest.mark.parametrize(("name", "retries"), zip(RAY_JOBS, (1, 0), strict=True))
def test_training_is_tried_again_and_broken_images_bring_no_second_cluster(name: str, retries: int) -> None:
    assert load(name)["spec"]["backoffLimit"] == retries


@pytest.mark.parametrize("name", [*RAY_JOBS, "README.md"])
def test_the_whole_log_is_asked_for(name: str) -> None:
    """With a selector kubectl shows ten lines, unless told."""
    asked = re.findall(r"kubectl logs .*--selector", read(name))
    assert asked
    assert all("--tail=-1" in line for line in asked)


def test_the_readme_names_the_metrics_as_ray_exports_them() -> None:
    """A counter gets `_total` after its name: opentelemetry's exporter and Ray's own one do so."""
    made = re.findall(r'(Counter|Gauge)\("(\w+)"', read("batchseg/board.py"))
    exported = {f"ray_{name}{'_total' if kind == 'Counter' else ''}" for kind, name in made}
    assert len(exported) == 5
    assert set(re.findall(r"`(ray_batchseg\w+)`", read("README.md"))) == exported


def test_versions_are_those_of_the_constraints() -> None:
    texts = {name: read(name) for name in (*ALL_FILES, "README.md")}
    images = {(name, tag) for name, text in texts.items() for tag in re.findall(r"rayproject/ray:(\S+?)[\"\s]", text)}
    assert {name for name, _ in images} >= {"cluster.yaml", "Dockerfile"}
    allowed = {f"{pinned('ray')}-py311-{platform}" for platform in ("cpu", "gpu", "${PLATFORM}")}
    assert {tag for _, tag in images} <= allowed, images
    for name in RAY_JOBS:
        assert load(name)["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    ours = {tag for text in texts.values() for tag in re.findall(r"REGISTRY/batchseg:([\w.]+)", text)}
    assert ours == {batchseg.__version__}


@pytest.mark.parametrize("name", ALL_FILES)
def test_no_registry_but_the_images_and_no_secret(name: str) -> None:
    text = read(name)
    images = re.findall(r"(?:image: |worker_image: |^FROM |--tag |docker push )\"?([^\s\"}]+)", text, re.MULTILINE)
    assert all(re.match(r"(rayproject/ray|REGISTRY/batchseg):", image) for image in images), images
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|\b\d{12}\b|\b[0-9a-f]{32,}\b|\bami-[0-9a-f]{8,}", text)
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)


@pytest.mark.parametrize("name", ALL_FILES)
def test_the_header_says_how(name: str) -> None:
    header = "\n".join(line for line in read(name).splitlines()[:30] if line.startswith("#"))
    assert "command:" in header
    if name.endswith(".yaml"):
        assert "CHANGE" in header
    if name not in (STORAGE, "Dockerfile"):
        assert "hardware:" in header
        assert "time, score:" in header


def test_the_image_copies_what_is_there_and_is_not_root() -> None:
    lines = read("Dockerfile").replace("\\\n", " ").splitlines()
    ignored = read(".dockerignore").split()
    for line in lines:
        if line.startswith("COPY"):
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert all((PROJECT / source).exists() and source not in ignored for source in sources), line
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]
    assert not [line for line in lines if line.startswith(("ENV", "ADD"))]


@pytest.mark.parametrize(("platform", "cuda"), [("gpu", True), ("cpu", False)])
def test_the_image_installs_the_dependencies_of_the_project(platform: str, cuda: bool) -> None:
    found = re.search(r"python -c '(.*?)'", read("Dockerfile"), re.DOTALL)
    assert found
    program = found[1].replace("\\\n", "")
    printed = subprocess.check_output([sys.executable, "-c", program, platform], cwd=PROJECT, text=True).split("\n")
    assert any(line.startswith("ray[") for line in printed)
    assert any("and-cuda" in line for line in printed) == cuda
    names = {re.split(r"[\[<>=]", line)[0] for line in printed if line}
    assert all(pinned(name) for name in names)


def test_files_are_executable_where_they_must_be() -> None:
    for name in ALL_FILES:
        assert os.access(PROJECT / name, os.X_OK) == name.endswith(".sh"), name
