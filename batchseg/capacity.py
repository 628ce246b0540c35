"""What the cluster has, what it may gain, and what a command waits for."""

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from batchseg.errors import UserError
from batchseg.runtime import silence_stderr

Nodes = list[dict[str, float]]
"""The resources of each node, by name."""

_LAUNCHER_PAGE = "~/ray_bootstrap_config.yaml"
_KUBERAY_VARIABLE = "KUBERAY_GEN_RAY_START_CMD"
_START_SECONDS = 10.0
_LAG_SECONDS = 2.0
"""Ray counts what a job before has left as taken for a moment."""


@dataclass(frozen=True)
class Wanted:
    """`count` places of so many cpus and gpus each, called by `noun` (worker, actor); `spare_cpus` beside on each
    node.
    """

    count: int
    noun: str
    cpus: float
    gpus: float
    spare_cpus: float = 0.0

    def describe(self) -> str:
        """2 actors x 1 GPU, 1 actor x 1 GPU."""
        amounts = [_count(amount, name) for amount, name in ((self.cpus, "CPU"), (self.gpus, "GPU")) if amount]
        return f"{self.count} {self.noun}{'' if self.count == 1 else 's'} x {' and '.join(amounts)}"

    def fits_on(self, nodes: Nodes) -> bool:
        return count_places(nodes, self.cpus, self.gpus, self.spare_cpus) >= self.count

    def check_possible(self) -> None:
        """Raises UserError where no node that is there or may come will ever do."""
        ceiling = find_ceiling()
        if ceiling is not None and not self.fits_on(ceiling):
            raise UserError(f"wanted: {self.describe()}; {describe_cluster()}, and its nodes have no place for them")

    def describe_wait(self, waited_s: float, begun: int = 0) -> str | None:
        """For the progress line while nothing moves: what is missing. None when there is room for all.

        begun: how many of them run. What starts holds its CPUs already, so that few are free is worth a word only
        after a while.
        """
        nodes, missing = list_nodes(), self.count - begun
        if not self.fits_on(nodes):
            return f"waiting for nodes; wanted: {self.describe()}; {describe_cluster()}"
        if waited_s < _START_SECONDS or missing <= 0:
            return None
        if not (short := self._describe_short(nodes, missing)):
            return None
        return f"wanted: {self.describe()}; {begun} have begun, the others start, or wait for another job: {short}"

    def list_remarks(self) -> list[str]:
        """What to say before anything is asked for: own machines that are not up, and what another job has."""
        absent = describe_absent()
        busy = f"wanted: {self.describe()}; {short}, the rest is in use" if (short := self._find_busy()) else None
        return [remark for remark in (absent, busy) if remark]

    def _find_busy(self) -> str:
        """As _describe_short; empty where nodes are missing, which is said while it waits."""
        nodes, deadline = list_nodes(), time.monotonic() + _LAG_SECONDS
        while short := self._describe_short(nodes, self.count) if self.fits_on(nodes) else "":
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return short

    def _describe_short(self, nodes: Nodes, missing: int) -> str:
        """0 of 2 GPUs are free; empty where `missing` places are."""
        free = ray.available_resources()
        short = [
            f"{free.get(name, 0.0):g} of {sum_up(nodes, name):g} {name}s"
            for name, amount in (("CPU", self.cpus), ("GPU", self.gpus))
            if amount and free.get(name, 0.0) + 1e-6 < amount * missing
        ]
        return f"{' and '.join(short)} are free" if short else ""


def list_nodes() -> Nodes:
    """Every living node; before a Ray runs, this machine, as an own Ray will count it."""
    if not ray.is_initialized():
        return [_count_this_machine()]
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@functools.cache
def _count_this_machine() -> dict[str, float]:
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    try:
        with silence_stderr():
            found = ResourceAndLabelSpec().resolve(is_head=True, node_ip_address="127.0.0.1")
    except ValueError as error:
        raise UserError(f"cannot start Ray on this machine: {error}") from error
    return {"CPU": float(found.num_cpus), "GPU": float(found.num_gpus)}


def sum_up(nodes: Nodes, name: str) -> float:
    """How much of a resource they have together."""
    return sum(node.get(name, 0.0) for node in nodes)


def count_places(nodes: Nodes, cpus: float, gpus: float, spare_cpus: float = 0.0) -> int:
    """How many times cpus and gpus fit on the nodes, when `spare_cpus` stay free on each."""
    places = 0
    for node in nodes:
        wanted = [(node.get("CPU", 0.0) - spare_cpus, cpus), (node.get("GPU", 0.0), gpus)]
        places += max(0, min((int(there / each + 1e-6) for there, each in wanted if each > 0), default=10**6))
    return places


def describe_cluster() -> str:
    """the cluster has 0 CPUs and 0 GPUs and may grow to 32 CPUs and 4 GPUs."""
    nodes, ceiling = list_nodes(), find_ceiling()
    text = f"the cluster has {_describe(nodes)}"
    if ceiling is None:
        return f"{text} and may grow"
    return text if ceiling == nodes else f"{text} and may grow to {_describe(ceiling)}"


def _describe(nodes: Nodes) -> str:
    return " and ".join(_count(sum_up(nodes, name), name) for name in ("CPU", "GPU"))


def _count(amount: float, name: str) -> str:
    """1 GPU, 2 GPUs, 0.5 GPUs."""
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def find_ceiling() -> Nodes | None:
    """The nodes of the cluster when it has grown as far as it may; None where it may grow, but nobody says how far.

    Ray's launcher leaves its page on the head, where a submitted job runs; KubeRay starts the head of a cluster that
    scales with --no-monitor, since its autoscaler is a container of its own. Elsewhere a cluster counts as it is.
    """
    if page := _read_launcher_page():
        return read_launcher_page(page)
    grows = "--no-monitor" in os.environ.get(_KUBERAY_VARIABLE, "") and not _is_own_ray()
    return None if grows else list_nodes()


def _is_own_ray() -> bool:
    """Whether this process has started the Ray that it uses, or will, perhaps on a machine of a cluster."""
    node = ray._private.worker._global_node
    return not ray.is_initialized() or (node is not None and bool(node.head))


def read_launcher_page(page: dict[str, Any]) -> Nodes | None:
    """As find_ceiling, from a cluster.yaml. A list of own machines (provider local) grows until all are up."""
    if page.get("provider", {}).get("type") == "local":
        return list_nodes() if _count_absent(page) <= 0 else None
    kinds = page.get("available_node_types") or {}
    if not kinds or not all(kind.get("resources") for kind in kinds.values()):
        return None
    most = int(page.get("max_workers", 0))
    nodes: Nodes = []
    for name, kind in kinds.items():
        count = 1 if name == page.get("head_node_type") else min(most, int(kind.get("max_workers", most)))
        nodes += [kind["resources"]] * count
    return nodes


def describe_absent() -> str | None:
    """Own machines that the launcher's page names and that are not up: a job that starts now goes without them."""
    page = _read_launcher_page()
    absent = _count_absent(page)
    if absent <= 0:
        return None
    return (
        f"{absent} of the {absent + len(list_nodes())} machines of this cluster are not up (yet); `ray status` shows "
        f"which. This job takes those that are, unless it is told how many to wait for"
    )


def _count_absent(page: dict[str, Any]) -> int:
    """Of the machines that a page of own machines lists; 0 for every other page."""
    provider = page.get("provider") or {}
    if provider.get("type") != "local" or not provider.get("worker_ips"):
        return 0
    return 1 + len(provider["worker_ips"]) - len(list_nodes())


def _read_launcher_page() -> dict[str, Any]:
    """Empty where there is none, or the Ray in use is not that cluster."""
    if _is_own_ray():
        return {}
    page = Path(os.path.expanduser(_LAUNCHER_PAGE))
    found = yaml.safe_load(page.read_text()) if page.exists() else None
    return found if isinstance(found, dict) else {}
