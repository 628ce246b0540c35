"""How large to be on this cluster: workers of training, actors and tasks of the stream, threads in each."""

import math
import os
from dataclasses import dataclass

import ray

from batchseg.config import ClusterConfig
from batchseg.errors import UserError

_LEAST_FOR_ACTOR = 8
"""Twentieths of a CPU; with less, many more actors than cores fight over them."""


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each holds. `threads` is what TensorFlow may use in one.

    min_workers: fewer than `workers` where the group may shrink and grow; None where its size is fixed.
    """

    workers: int
    cpus: float
    gpus: float
    min_workers: int | None = None

    @property
    def threads(self) -> int:
        return max(1, math.floor(self.cpus))

    @property
    def size(self) -> int | tuple[int, int]:
        """As Ray Train takes it."""
        return self.workers if self.min_workers is None else (self.min_workers, self.workers)

    def describe(self) -> str:
        """The number of workers for a person: 4, or 1 to 4."""
        return f"{self.workers}" if self.min_workers is None else f"{self.min_workers} to {self.workers}"


def plan_training_workers(config: ClusterConfig, batch_size: int, accumulation: int = 1) -> WorkerPlan:
    """Turns `auto` into numbers for this cluster. Raises UserError for what the cluster can never hold."""
    gpus_there = ray.cluster_resources().get("GPU", 0.0)
    fewest, most = _read_workers(config, gpus_there)
    gpus = float(gpus_there >= fewest) if config.gpus_per_worker == "auto" else config.gpus_per_worker
    # An elastic group begins with what is there now; each worker's share is taken from that.
    now = most if fewest == most else max(fewest, min(most, int(_count_places(0 if gpus else 1, gpus))))
    cpus = _share_cpus(now, gpus) if config.cpus_per_worker == "auto" else config.cpus_per_worker
    if most * accumulation > batch_size:
        raise UserError(
            f"cluster.workers is {most}, training.batch_size is {batch_size}; each worker needs an image"
            + (f" for each of the {accumulation} parts of training.accumulation" if accumulation > 1 else "")
        )
    _check_room(fewest, cpus, gpus)
    return WorkerPlan(most, cpus, gpus, fewest if fewest < most else None)


def _read_workers(config: ClusterConfig, gpus: float) -> tuple[int, int]:
    """(fewest, most) workers that are wanted."""
    if config.workers == "auto":
        return (max(1, int(gpus)),) * 2
    return config.workers if isinstance(config.workers, tuple) else (config.workers, config.workers)


def _check_room(workers: int, cpus: float, gpus: float) -> None:
    """Raises UserError for what the cluster cannot hold.

    A cluster that scales may have more later; what it has now is all that can be checked on a fixed one.
    """
    if _can_grow():
        return
    there = ray.cluster_resources()
    if gpus * workers > there.get("GPU", 0.0):
        raise UserError(f"{workers} workers x {gpus:g} GPUs are wanted; the cluster has {there.get('GPU', 0.0):g}")
    if cpus * workers > there.get("CPU", 1.0):
        raise UserError(f"{workers} workers x {cpus:g} CPUs are wanted; the cluster has {there.get('CPU', 1.0):g}")
    if _count_places(cpus, gpus) < workers:
        raise UserError(
            f"{workers} workers x {cpus:g} CPUs are wanted; the nodes of the cluster have no place for them"
        )


def _share_cpus(workers: int, gpus_per_worker: float) -> float:
    """The most whole cores that each worker can have, no node giving more than it has.

    Where there are more workers than cores, a part of one, and a tenth stays free for Ray.
    """
    nodes = [node.get("CPU", 0.0) for node in _list_nodes()]
    for cores in range(int(sum(nodes) // workers), 0, -1):
        if _count_places(cores, gpus_per_worker) >= workers:
            return float(cores)
    parts = [node / count for node in nodes if node for count in range(1, workers + 1)]
    fitting = [part for part in parts if _count_places(part, gpus_per_worker) >= workers]
    return math.floor(min(1.0, max(fitting, default=1.0)) * 90) / 100


def _list_nodes() -> list[dict[str, float]]:
    """The resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _count_places(cpus: float, gpus: float, spare_cpus: float = 0.0) -> int:
    """How many times cpus and gpus fit on the nodes, when `spare_cpus` stay free on each."""
    places = 0
    for node in _list_nodes():
        wanted = [(node.get("CPU", 0.0) - spare_cpus, cpus), (node.get("GPU", 0.0), gpus)]
        places += max(0, min((int(there / each + 1e-6) for there, each in wanted if each > 0), default=10**6))
    return places


@dataclass(frozen=True)
class StreamPlan:
    """Of segment and evaluate: how many model actors, what Ray reserves for one and for a task of the CPU stages.

    threads: what TensorFlow may use in an actor.
    """

    actors: int
    cpus: float
    gpus: float
    threads: int
    stage_cpus: float


def plan_stream(actors: int | None = None, gpus_per_actor: float | None = None) -> StreamPlan:
    """One actor per GPU; without GPUs one per eight CPUs, with all their threads and half of their reservation.

    The other half is for the stages that decode and write. Raises UserError for what the cluster cannot hold.
    """
    cpus = [float(node["CPU"]) for node in _list_nodes() if node.get("CPU", 0) > 0]
    gpus = float(ray.cluster_resources().get("GPU", 0.0))
    # Small machines get small tasks: one of each stage must find a place beside the actor.
    stage_cpus = 0.5 if max(cpus, default=2) >= 2 else 0.2
    per_actor = gpus_per_actor if gpus_per_actor is not None else float(gpus >= 1)
    if per_actor > 0:
        places = _count_places(0.0, per_actor)
        if places < (actors or 1) and not _can_grow():
            raise UserError(f"{actors or 1} actors x {per_actor:g} GPUs are wanted; the cluster has {gpus:g}")
        return StreamPlan(actors or max(1, places), 0.0, per_actor, 2, stage_cpus)
    if not cpus:
        raise UserError("the cluster has no CPUs yet; say what to wait for, such as --actors 2 --gpus-per-actor 1")
    count = actors or sum(max(1, int(node // 8)) for node in cpus)
    threads = max(1, min(int(max(cpus)), int(sum(cpus) // count)))
    reserved = min(cpus) / 2 if len(cpus) >= count else min(threads, min(cpus)) / 2
    for share in [reserved, *(step / 20 for step in range(int(reserved * 20), _LEAST_FOR_ACTOR - 1, -1))]:
        # Never equal to what the CPU stages have: Ray would run those inside the actor. And decoding and writing must
        # both find a place beside all actors: Ray Data stalls, without a word, where one of them never can.
        leaves_room = count * share + 2 * stage_cpus <= sum(cpus) + 1e-9
        if share != stage_cpus and leaves_room and _count_places(share, 0.0, stage_cpus) >= count:
            return StreamPlan(count, share, 0.0, threads, stage_cpus)
    raise UserError(f"--actors {count} leaves no CPU for decoding and writing; the cluster has {sum(cpus):g} CPUs")


def _can_grow() -> bool:
    """True on a cluster that Ray's launcher made: its head holds this file, and nodes come when they are asked for."""
    return os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))
