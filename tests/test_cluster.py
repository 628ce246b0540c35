"""Sizes for clusters of any shape, the error behind Ray's errors, and where a submitted job writes.

The shapes are made up: `ray.nodes` and `ray.cluster_resources` are replaced, nothing else is.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from batchseg import board as boards
from batchseg import capacity, cluster, sizing
from batchseg.capacity import describe_absent
from batchseg.config import ClusterConfig
from batchseg.errors import StoppedError, UserError

Node = tuple[float, float]  # CPUs, GPUs
SetShape = Callable[[Sequence[Node]], None]

CPU_SHAPES: dict[str, list[Node]] = {
    "1x1": [(1, 0)],
    "1x2": [(2, 0)],
    "1x8": [(8, 0)],
    "1x32": [(32, 0)],
    "2x1": [(1, 0)] * 2,
    "3x4": [(4, 0)] * 3,
    "5x2": [(2, 0)] * 5,
    "4+2x8": [(4, 0), (8, 0), (8, 0)],
    "0+2x8": [(0, 0), (8, 0), (8, 0)],
}
GPU_SHAPES: dict[str, list[Node]] = {
    "2x8 with a GPU": [(8, 1)] * 2,
    "head and 2x8 with a GPU": [(4, 0), (8, 1), (8, 1)],
    "1x16 with 4 GPUs": [(16, 4)],
}
ALL_SHAPES = CPU_SHAPES | GPU_SHAPES


@pytest.fixture
def set_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SetShape:
    """Gives Ray these nodes, and a dead one that must not count."""
    monkeypatch.setenv("HOME", str(tmp_path))  # a cluster of Ray's launcher is known by a file in it
    monkeypatch.setattr(capacity, "_is_own_ray", lambda: False)

    def set_nodes(nodes: Sequence[Node]) -> None:
        resources = [
            {"memory": 1e9, **{name: float(n) for name, n in zip(("CPU", "GPU"), node, strict=True) if n}}
            for node in nodes
        ]
        alive = [{"Alive": True, "NodeID": str(i), "Resources": found} for i, found in enumerate(resources)]
        dead = {"Alive": False, "NodeID": "dead", "Resources": {"CPU": 64.0, "GPU": 8.0}}
        total = {name: sum(found.get(name, 0.0) for found in resources) for name in ("CPU", "GPU", "memory")}
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {name: n for name, n in total.items() if n})

    return set_nodes


def place(nodes: Sequence[Node], count: int, cpus: float, gpus: float) -> list[list[Node]]:
    """What stays free after `count` reservations: once with the nodes filled one by one, once spread out.

    Fails where one finds no place.
    """
    outcomes = []
    for spreads in (False, True):
        free = list(nodes)
        for _ in range(count):
            fitting = [i for i, (c, g) in enumerate(free) if c >= cpus - 1e-9 and g >= gpus - 1e-9]
            assert fitting, f"{count} x {cpus:g} CPU {gpus:g} GPU find no place on {list(nodes)}"
            chosen = max(fitting, key=lambda i: free[i]) if spreads else fitting[0]
            free[chosen] = (free[chosen][0] - cpus, free[chosen][1] - gpus)
        outcomes.append(free)
    return outcomes


def check_stream(nodes: Sequence[Node], plan: sizing.StreamPlan) -> None:
    assert plan.actors >= 1
    assert plan.threads >= 1
    assert plan.stage_cpus > 0
    # Ray would run the stages inside the actors.
    assert plan.cpus != plan.stage_cpus
    for free in place(nodes, plan.actors, plan.cpus, plan.gpus):
        assert max(cpus for cpus, _ in free) >= plan.stage_cpus - 1e-9, f"no stage fits beside {plan} on {list(nodes)}"
        # Decoding and writing at once: Ray Data stalls where one of them can never be given its share.
        assert sum(cpus for cpus, _ in free) >= 2 * plan.stage_cpus - 1e-9, f"{plan} leaves too little on {list(nodes)}"


# --- segment and evaluate ---


@pytest.mark.parametrize(
    ("shape", "actors", "threads"),
    [
        ("1x1", 1, 1),
        ("1x2", 1, 2),
        ("1x8", 1, 8),
        ("1x32", 4, 8),
        ("2x1", 2, 1),
        ("3x4", 3, 4),
        ("5x2", 5, 2),
        ("0+2x8", 2, 8),
    ],
)
def test_stream_without_gpus(set_shape: SetShape, shape: str, actors: int, threads: int) -> None:
    set_shape(CPU_SHAPES[shape])
    plan = sizing.plan_stream()
    assert (plan.actors, plan.threads, plan.gpus) == (actors, threads, 0)
    assert plan.cpus > 0
    check_stream(CPU_SHAPES[shape], plan)


def test_stream_on_uneven_nodes(set_shape: SetShape) -> None:
    set_shape(CPU_SHAPES["4+2x8"])
    plan = sizing.plan_stream()
    assert plan.actors == 3
    assert 4 <= plan.threads <= 8
    check_stream(CPU_SHAPES["4+2x8"], plan)


@pytest.mark.parametrize(("shape", "actors"), zip(GPU_SHAPES, [2, 2, 4], strict=True))
def test_stream_with_gpus(set_shape: SetShape, shape: str, actors: int) -> None:
    set_shape(GPU_SHAPES[shape])
    plan = sizing.plan_stream()
    assert (plan.actors, plan.gpus) == (actors, 1)
    check_stream(GPU_SHAPES[shape], plan)


def test_stream_with_gpus_that_are_not_wanted(set_shape: SetShape) -> None:
    set_shape(GPU_SHAPES["2x8 with a GPU"])
    plan = sizing.plan_stream(gpus_per_actor=0)
    assert (plan.actors, plan.gpus, plan.threads) == (2, 0, 8)
    check_stream(GPU_SHAPES["2x8 with a GPU"], plan)


def test_actors_may_share_a_gpu(set_shape: SetShape) -> None:
    set_shape(GPU_SHAPES["2x8 with a GPU"])
    plan = sizing.plan_stream(gpus_per_actor=0.5)
    assert (plan.actors, plan.gpus) == (4, 0.5)
    check_stream(GPU_SHAPES["2x8 with a GPU"], plan)


@pytest.mark.parametrize("shape", CPU_SHAPES)
def test_any_number_of_actors_fits_or_is_refused(set_shape: SetShape, shape: str) -> None:
    set_shape(CPU_SHAPES[shape])
    refused = []
    for actors in range(1, 81):
        try:
            plan = sizing.plan_stream(actors)
        except UserError:
            refused.append(actors)
            continue
        assert plan.actors == actors
        check_stream(CPU_SHAPES[shape], plan)
    assert refused
    assert 1 not in refused
    assert refused == list(range(refused[0], 81))


@pytest.mark.parametrize(("shape", "actors"), [("1x1", 2), ("1x2", 4), ("3x4", 100)])
def test_too_many_actors(set_shape: SetShape, shape: str, actors: int) -> None:
    set_shape(CPU_SHAPES[shape])
    with pytest.raises(UserError, match=rf"--actors {actors} leaves no CPU for decoding and writing; the cluster has"):
        sizing.plan_stream(actors)


@pytest.mark.parametrize(
    ("shape", "actors", "gpus_per_actor"),
    [
        ("2x8 with a GPU", 3, None),
        ("2x8 with a GPU", 3, 1),
        ("2x8 with a GPU", None, 3),
        ("2x8 with a GPU", None, 2),  # two there are, but not on one node
        ("2x8 with a GPU", 3, 0.6),  # 1.8 of 2, but the third has 0.4 on each node
        ("1x8", None, 1),
        ("1x8", 2, 0.5),
    ],
)
def test_too_many_gpus(set_shape: SetShape, shape: str, actors: int | None, gpus_per_actor: float | None) -> None:
    set_shape(ALL_SHAPES[shape])
    with pytest.raises(UserError, match=r"GPUs?; the cluster has"):
        sizing.plan_stream(actors, gpus_per_actor)


def test_parts_of_a_gpu_that_do_not_add_up(set_shape: SetShape) -> None:
    nodes = GPU_SHAPES["2x8 with a GPU"]
    set_shape(nodes)
    check_stream(nodes, sizing.plan_stream(gpus_per_actor=0.6))


# --- training ---


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        ("1x1", (1, 1, 0)),
        ("1x2", (1, 2, 0)),
        ("1x8", (1, 8, 0)),
        ("1x32", (1, 32, 0)),
        ("3x4", (1, 4, 0)),
        ("5x2", (1, 2, 0)),
        ("4+2x8", (1, 8, 0)),
        ("2x8 with a GPU", (2, 8, 1)),
        ("head and 2x8 with a GPU", (2, 8, 1)),
        ("1x16 with 4 GPUs", (4, 4, 1)),
    ],
)
def test_training_sizes_itself(set_shape: SetShape, shape: str, plan: tuple[int, int, int]) -> None:
    set_shape(ALL_SHAPES[shape])
    found = sizing.plan_training_workers(ClusterConfig(), batch_size=8)
    assert (found.workers, found.cpus, found.gpus) == plan
    assert found.threads == max(1, int(found.cpus))


@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("workers", range(1, 9))
def test_any_number_of_workers_finds_places(set_shape: SetShape, shape: str, workers: int) -> None:
    set_shape(ALL_SHAPES[shape])
    plan = sizing.plan_training_workers(ClusterConfig(workers=workers, gpus_per_worker=0), batch_size=8)
    assert (plan.workers, plan.gpus) == (workers, 0)
    assert plan.cpus > 0
    place(ALL_SHAPES[shape], plan.workers, plan.cpus, plan.gpus)


@pytest.mark.parametrize("shape", GPU_SHAPES)
@pytest.mark.parametrize("workers", range(1, 9))
def test_auto_gpus_are_one_for_each_or_none(set_shape: SetShape, shape: str, workers: int) -> None:
    set_shape(GPU_SHAPES[shape])
    plan = sizing.plan_training_workers(ClusterConfig(workers=workers), batch_size=8)
    assert plan.gpus == float(sum(gpus for _, gpus in GPU_SHAPES[shape]) >= workers)
    place(GPU_SHAPES[shape], plan.workers, plan.cpus, plan.gpus)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "cpus"),
    [
        ([(8, 0)], 2, 0, 4),
        ([(8, 0)], 3, 0, 2),
        ([(4, 0), (8, 0), (8, 0)], 3, 0, 4),
        ([(4, 0), (8, 0), (8, 0)], 2, 0, 8),
        ([(4, 0)] * 3, 4, 0, 2),  # 3 each would be 12 in all, but a node has room for one of 3
        ([(8, 2), (8, 0)], 2, 1, 4),  # both GPUs on one node
        ([(2, 0)], 4, 0, 0.45),
        ([(1, 0)], 2, 0, 0.45),
        ([(8, 0), (1, 2)], 2, 1, 0.45),  # the GPUs are where the CPUs are few
    ],
)
def test_share_of_cpus(set_shape: SetShape, nodes: list[Node], workers: int, gpus: float, cpus: float) -> None:
    set_shape(nodes)
    assert sizing._share_cpus(capacity.list_nodes(), workers, gpus) == cpus


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ("1x8", {"workers": 9}, r"cluster\.workers is 9, training\.batch_size is 8; each worker needs an image"),
        (
            "1x8",
            {"workers": 1, "gpus_per_worker": 1},
            r"wanted: 1 worker x 1 GPU; the cluster has 8 CPUs and 0 GPUs",
        ),
        (
            "2x8 with a GPU",
            {"workers": 3, "gpus_per_worker": 1},
            r"wanted: 3 workers x 1 GPU; the cluster has 16 CPUs and 2 GPUs",
        ),
        ("1x8", {"workers": 2, "cpus_per_worker": 5}, r"wanted: 2 workers x 5 CPUs; the cluster has 8"),
        ("3x4", {"workers": 1, "cpus_per_worker": 5}, r"wanted: 1 worker x 5 CPUs"),  # 12 in all, 4 on a node
        ("3x4", {"workers": 4, "cpus_per_worker": 3}, r"wanted: 4 workers x 3 CPUs"),
    ],
)
def test_what_a_cluster_cannot_hold(set_shape: SetShape, shape: str, config: dict[str, int], message: str) -> None:
    set_shape(ALL_SHAPES[shape])
    with pytest.raises(UserError, match=message):
        sizing.plan_training_workers(ClusterConfig.model_validate(config), batch_size=8)


# --- clusters that grow ---

LAUNCHER_PAGE = """
max_workers: 6
provider: {type: aws}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 2}}
  gpu_worker: {resources: {CPU: 8, GPU: 1}, max_workers: 4}
  cpu_worker: {resources: {CPU: 16}}
"""


@pytest.fixture
def growing(set_shape: SetShape, tmp_path: Path) -> None:
    """The head of Ray's launcher, before any worker came."""
    set_shape([(2, 0)])
    (tmp_path / "ray_bootstrap_config.yaml").write_text(LAUNCHER_PAGE)


def test_a_cluster_that_grows_may_be_asked_for_more(growing: None) -> None:
    config = ClusterConfig(workers=4, gpus_per_worker=1, cpus_per_worker=4)
    assert sizing.plan_training_workers(config, batch_size=8) == sizing.WorkerPlan(4, 4, 1)
    alone = ClusterConfig(workers=4, gpus_per_worker=1)
    assert sizing.plan_training_workers(alone, batch_size=8).cpus == 8, "of the nodes that come, not of the head"
    assert sizing.plan_stream(gpus_per_actor=1, actors=4).actors == 4
    assert sizing.plan_stream(gpus_per_actor=0.5, actors=8).actors == 8
    on_cpus = sizing.plan_stream(actors=7)
    assert (on_cpus.actors, on_cpus.gpus) == (7, 0)
    assert on_cpus.cpus > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"workers": 5, "gpus_per_worker": 1, "cpus_per_worker": 4},
            r"wanted: 5 workers x 1 GPU; the cluster has 2 CPUs and 0 GPUs and may grow to 130 CPUs and 4 GPUs",
        ),
        (
            {"workers": 1, "cpus_per_worker": 17, "gpus_per_worker": 0},
            "wanted: 1 worker x 17 CPUs; .* its nodes have no place for them",
        ),
    ],
)
def test_what_a_cluster_that_grows_can_never_hold(growing: None, config: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizing.plan_training_workers(ClusterConfig.model_validate(config), batch_size=8)


def test_actors_that_a_cluster_that_grows_can_never_hold(growing: None) -> None:
    with pytest.raises(UserError, match=r"wanted: 5 actors x 1 GPU; .* may grow to 130 CPUs and 4 GPUs"):
        sizing.plan_stream(actors=5, gpus_per_actor=1)
    with pytest.raises(
        UserError, match=r"--actors 900 leaves no CPU for decoding and writing; .* may grow to 130 CPUs"
    ):
        sizing.plan_stream(actors=900)


def test_own_machines_never_grow(set_shape: SetShape, tmp_path: Path) -> None:
    set_shape(CPU_SHAPES["1x2"])
    (tmp_path / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\nmax_workers: 9\n")
    with pytest.raises(UserError, match="wanted: 4 actors x 1 GPU; the cluster has 2 CPUs and 0 GPUs, and"):
        sizing.plan_stream(gpus_per_actor=1, actors=4)


def test_own_machines_that_are_not_up_yet(set_shape: SetShape, tmp_path: Path) -> None:
    set_shape(CPU_SHAPES["1x2"])
    assert describe_absent() is None
    page = tmp_path / "ray_bootstrap_config.yaml"
    page.write_text("provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}\nmax_workers: 2\n")
    assert "2 of the 3 machines of this cluster are not up (yet)" in str(describe_absent())
    assert sizing.plan_stream(gpus_per_actor=1, actors=4).actors == 4, "who knows what they have"
    set_shape([(2, 0)] * 3)
    assert describe_absent() is None
    with pytest.raises(UserError, match="wanted: 4 actors x 1 GPU; the cluster has 6 CPUs and 0 GPUs, and"):
        sizing.plan_stream(gpus_per_actor=1, actors=4)


@pytest.mark.parametrize("workers", ["auto", 2, (1, 4)])
def test_nobody_trains_on_cpus_because_no_gpu_is_up_yet(growing: None, workers: Any) -> None:
    with pytest.raises(UserError, match=r"4 GPUs; say what to wait for, such as --cluster.workers 2"):
        sizing.plan_training_workers(ClusterConfig(workers=workers), batch_size=8)
    assert sizing.plan_training_workers(ClusterConfig(workers=workers, gpus_per_worker=0), batch_size=8).gpus == 0


def test_a_share_of_nodes_that_nobody_knows(set_shape: SetShape, monkeypatch: pytest.MonkeyPatch) -> None:
    set_shape([(0, 0)])
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor --num-cpus=0")
    with pytest.raises(UserError, match=r"how large its nodes will be is not known: .* --cluster.cpus_per_worker 4"):
        sizing.plan_training_workers(ClusterConfig(workers=2, gpus_per_worker=1), batch_size=8)
    given = ClusterConfig(workers=2, gpus_per_worker=1, cpus_per_worker=4)
    assert sizing.plan_training_workers(given, batch_size=8).threads == 4


def test_gpus_are_whole_or_a_part_of_one(set_shape: SetShape) -> None:
    set_shape(GPU_SHAPES["2x8 with a GPU"])
    with pytest.raises(UserError, match=r"--gpus-per-actor is 1.5; allowed are whole GPUs, or a part of one"):
        sizing.plan_stream(gpus_per_actor=1.5)


def test_kuberay_with_an_autoscaler_may_grow(set_shape: SetShape, monkeypatch: pytest.MonkeyPatch) -> None:
    set_shape([(0, 0)])
    with pytest.raises(UserError, match="wanted: 4 actors x 1 GPU"):
        sizing.plan_stream(gpus_per_actor=1, actors=4)
    with pytest.raises(UserError, match=r"the cluster has 0 CPUs and 0 GPUs; say what to wait for, such as --actors 2"):
        sizing.plan_stream()
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor --num-cpus=0")
    assert sizing.plan_stream(gpus_per_actor=1, actors=4).actors == 4
    assert sizing.plan_stream(actors=4).actors == 4


def test_actors_on_gpus_become_more_unless_their_number_is_given(set_shape: SetShape) -> None:
    set_shape(GPU_SHAPES["2x8 with a GPU"])
    assert sizing.plan_stream().may_grow
    assert not sizing.plan_stream(actors=2).may_grow
    assert not sizing.plan_stream(gpus_per_actor=0).may_grow


def test_what_is_waited_for(growing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sizing.plan_stream(actors=2, gpus_per_actor=1)
    assert plan.wanted.describe_wait(0) == (
        "waiting for nodes; wanted: 2 actors x 1 GPU; "
        "the cluster has 2 CPUs and 0 GPUs and may grow to 130 CPUs and 4 GPUs"
    )
    training = sizing.plan_training_workers(ClusterConfig(workers=2, gpus_per_worker=0, cpus_per_worker=1), 8)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    assert training.wanted.describe_wait(5) is None, "they may just be starting"
    assert training.wanted.describe_wait(60) == (
        "wanted: 2 workers x 1 CPU; 0 have begun, the others start, or wait for another job: 0.5 of 2 CPUs are free"
    )
    assert training.wanted.describe_wait(60, 2) is None, "both have begun"
    assert training.wanted.list_remarks() == ["wanted: 2 workers x 1 CPU; 0.5 of 2 CPUs are free, the rest is in use"]
    assert plan.wanted.list_remarks() == [], "nodes are missing: that is said while it waits"
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    assert training.wanted.describe_wait(60) is None
    assert training.wanted.list_remarks() == []
    left = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": next(left)})
    assert training.wanted.list_remarks() == [], "Ray had not yet counted what a job before had left"


def _run_without_ray(*arguments: str, resources: dict[str, int], **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which is connected to no Ray, on a machine that Ray counts as `resources`."""
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**visible, **variables, "RAY_OVERRIDE_RESOURCES": json.dumps(resources)},
    )


def test_an_own_ray_has_what_was_counted_before_it_started() -> None:
    script = """
from batchseg import capacity, cluster
def read(): return [[(node["CPU"], node["GPU"]) for node in nodes] for nodes in (capacity.list_nodes(), capacity.find_ceiling())]
before = read()
with cluster.connect("local"):
    print(before, read())
"""  # noqa: E501
    # As on the head of a cluster that may grow: an own Ray there does not.
    done = _run_without_ray("-c", script, resources={"CPU": 3, "GPU": 2}, KUBERAY_GEN_RAY_START_CMD="--no-monitor")
    assert done.stdout == "[[(3.0, 2.0)], [(3.0, 2.0)]] [[(3.0, 2.0)], [(3.0, 2.0)]]\n", done.stderr


def test_a_machine_that_ray_cannot_count_is_an_error_of_its_own() -> None:
    script = "from batchseg import capacity; capacity.list_nodes()"
    done = _run_without_ray("-c", script, resources={"CPU": 2, "GPU": 2}, CUDA_VISIBLE_DEVICES="0")
    assert "UserError: cannot start Ray on this machine: Attempting to start raylet with 2 GPU" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train", "--data", "photos", "--cluster.workers", "2", "--cluster.gpus_per_worker", "1"],
            "wanted: 2 workers x 1 GPU",
        ),
        (
            ["train", "--dry-run", "--data", "photos", "--cluster.workers", "99"],
            "cluster.workers is 99, training.batch_size is ",
        ),
        (["segment", "photos", "--model", "BUNDLE", "--gpus-per-actor", "1"], "wanted: 1 actor x 1 GPU"),
        (["plan", "photos", "--model", "BUNDLE", "--actors", "900"], "--actors 900 leaves no CPU"),
        (["evaluate", "photos", "--model", "BUNDLE", "--gpus-per-actor", "1"], "wanted: 1 actor x 1 GPU"),
    ],
    ids=["train", "dry run", "segment", "plan", "evaluate"],
)
def test_what_this_machine_can_never_hold_is_refused_before_anything_else(
    bundle: Path, tmp_path: Path, command: list[str], message: str
) -> None:
    """The folder photos is not there: a command that looked for it first would say so."""
    out = tmp_path / "out"
    places = {"BUNDLE": str(bundle), "photos": str(tmp_path / "photos")}
    filled = [places.get(part, part) for part in command]
    where = [] if command[0] == "plan" else ["--out", str(out)]
    done = _run_without_ray("-m", "batchseg", *filled, *where, "--address", "local", resources={"CPU": 2, "GPU": 0})
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    assert "may grow" not in done.stdout + done.stderr
    assert not out.exists()


# --- shared storage ---


def test_a_node_that_goes_while_it_is_asked(ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = ray.nodes()
    nodes.append({**nodes[0], "NodeID": "ab" * 28})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    cluster.check_shared(str(tmp_path))
    assert not list(tmp_path.iterdir())


# --- errors ---


def wrap_as_ray_does(cause: Exception) -> Exception:
    """What `ray.get` raises for a task that raised `cause`: an error of both types, its text a traceback."""
    return RayTaskError("task", "Traceback: a long text", cause, "worker", 1, "127.0.0.1").as_instanceof_cause()


def chain(*errors: BaseException, by: str = "__cause__") -> BaseException:
    """The first error, each one pointing to the next."""
    for outer, inner in pairwise(errors):
        setattr(outer, by, inner)
    return errors[0]


@pytest.mark.parametrize("by", ["__cause__", "__context__", "cause"])
@pytest.mark.parametrize("wanted", [UserError("the mask is wrong"), StoppedError("the disk is full")])
def test_cause_at_the_end_of_a_chain(wanted: Exception, by: str) -> None:
    assert boards.find_cause(wanted) is wanted
    assert boards.find_cause(chain(RuntimeError("a"), ValueError("b"), KeyError("c"), wanted, by=by)) is wanted


@pytest.mark.parametrize("kind", [UserError, StoppedError])
def test_the_inner_error_is_preferred_to_rays_copy(kind: type[Exception]) -> None:
    wrapped = wrap_as_ray_does(kind("mask m.png is wrong"))
    assert isinstance(wrapped, kind)
    assert "Traceback" in str(wrapped)
    for error in (wrapped, chain(RuntimeError("a"), wrapped), wrap_as_ray_does(chain(RuntimeError("a"), wrapped))):
        found = boards.find_cause(error)
        assert type(found) is kind
        assert str(found) == "mask m.png is wrong"


def test_no_cause() -> None:
    assert boards.find_cause(None) is None
    assert boards.find_cause(chain(RuntimeError("a"), ValueError("b"))) is None
    assert boards.find_cause(wrap_as_ray_does(PermissionError(errno.EACCES, "denied"))) is None
    circle = RuntimeError("a")
    assert boards.find_cause(chain(circle, ValueError("b"), circle)) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_stop(number: int) -> None:
    full = OSError(number, "no space", "/out/rows/part")
    for error in (full, chain(RuntimeError("a"), full), wrap_as_ray_does(full)):
        found = boards.find_cause(error)
        assert isinstance(found, StoppedError)
        assert "/out/rows/part" in str(found)
        assert "Traceback" not in str(found)


def test_a_full_disk_met_while_another_error_was_handled() -> None:
    full = OSError(errno.ENOSPC, "no space", "/out/x")
    assert isinstance(boards.find_cause(chain(full, KeyError("unrelated"), by="__context__")), StoppedError)


# --- where a submitted job writes ---


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As inside `ray job submit`; returns HOME."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BATCHSEG_HOME", raising=False)
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path


def test_output_outside_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("BATCHSEG_HOME", "/elsewhere")
    monkeypatch.chdir(tmp_path)
    assert not cluster.is_submitted_job()
    assert cluster.resolve_output("runs/a") == str(tmp_path / "runs" / "a")


def test_output_of_a_submitted_job(submitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.is_submitted_job()
    # Not in the working copy, which is thrown away.
    assert cluster.resolve_output("runs/a/") == str(submitted / "batchseg" / "runs" / "a")
    monkeypatch.setenv("BATCHSEG_HOME", "")
    assert cluster.resolve_output("runs/a") == str(submitted / "batchseg" / "runs" / "a")
    monkeypatch.setenv("BATCHSEG_HOME", "/shared/team")
    assert cluster.resolve_output("runs/a") == "/shared/team/runs/a"
    monkeypatch.setenv("BATCHSEG_HOME", "~/team")
    assert cluster.resolve_output("runs/a") == str(submitted / "team" / "runs" / "a")
    assert cluster.resolve_output("/data/out/") == "/data/out"


def test_home_in_the_output_of_a_submitted_job(submitted: Path) -> None:
    assert cluster.resolve_output("~/runs/a") == str(submitted / "runs" / "a")


def test_bundle_of_a_submitted_job(submitted: Path) -> None:
    assert cluster.resolve_bundle("runs/a/bundle") == str(submitted / "batchseg" / "runs" / "a" / "bundle")
    (submitted / "copy" / "bundle").mkdir()
    assert cluster.resolve_bundle("bundle") == "bundle"


@pytest.fixture
def silent_address() -> str:
    """host:port at which nothing answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_variables_of_a_submitted_job_are_left_to_it(submitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime_env": {"env_vars": {"GRPC_VERBOSITY": "INFO"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    variables = cluster._worker_environment(is_local=False)["env_vars"]
    assert "GRPC_VERBOSITY" not in variables
    assert variables["KERAS_BACKEND"] == "tensorflow"


def test_an_address_where_nothing_answers_is_refused_at_once(silent_address: str) -> None:
    # In a process of its own: this one may be connected to the Ray of the session.
    script = "import sys; from batchseg import cluster; cluster.connect(sys.argv[1]).__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", script, silent_address], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"UserError: cannot connect to Ray at {silent_address}: " in done.stderr
    assert "refused" in done.stderr


def test_another_cluster_than_the_connected_one_is_refused(silent_address: str, ray_session: None) -> None:
    with pytest.raises(UserError, match=f"cannot connect to Ray at {silent_address}"), cluster.connect(silent_address):
        pass
    connected = ray.get_runtime_context().gcs_address
    port = connected.rpartition(":")[2]
    with (
        pytest.raises(UserError, match=f"connected to Ray at {connected} already; it cannot work on localhost:{port}"),
        cluster.connect(f"localhost:{port}"),
    ):
        pass
    for address in (None, "local", "auto", connected):
        with cluster.connect(address):
            assert ray.is_initialized()
