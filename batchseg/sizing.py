"""How large to be on this cluster: workers of training, actors and tasks of the stream, threads in each."""

import math
from dataclasses import dataclass

from batchseg.capacity import (
    Nodes,
    Wanted,
    count_places,
    describe_absent,
    describe_cluster,
    find_ceiling,
    list_nodes,
    sum_up,
)
from batchseg.config import ClusterConfig, TrainConfig
from batchseg.errors import UserError

_LEAST_FOR_ACTOR = 8
"""Twentieths of a CPU; with less, many more actors than cores fight over them."""

_UNKNOWN_CPUS = 4.0


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

    @property
    def wanted(self) -> Wanted:
        """What must be there before it can begin."""
        return Wanted(self.min_workers or self.workers, "worker", self.cpus, self.gpus)

    def describe(self) -> str:
        """The number of workers for a person: 4, or 1 to 4."""
        return f"{self.workers}" if self.min_workers is None else f"{self.min_workers} to {self.workers}"


def plan_workers(config: TrainConfig) -> WorkerPlan:
    """As plan_training_workers, for a whole config."""
    return plan_training_workers(config.cluster, config.training.batch_size, config.training.accumulation)


def plan_training_workers(config: ClusterConfig, batch_size: int, accumulation: int = 1) -> WorkerPlan:
    """Turns `auto` into numbers for this cluster. Raises UserError for what the cluster can never hold."""
    nodes = list_nodes()
    gpus_there = sum_up(nodes, "GPU")
    fewest, most = _read_workers(config, gpus_there)
    if config.gpus_per_worker == "auto" and gpus_there < fewest:
        _check_no_gpus_come()
    gpus = float(gpus_there >= fewest) if config.gpus_per_worker == "auto" else config.gpus_per_worker
    if gpus:
        Wanted(fewest, "worker", 0.0, gpus).check_possible()
    # An elastic group begins with what is there now; each worker's share is taken from that.
    now = most if fewest == most else max(fewest, min(most, count_places(nodes, 0 if gpus else 1, gpus)))
    if count_places(nodes, 0 if gpus else 1, gpus) < now:
        ceiling = find_ceiling()
        if ceiling is None and config.cpus_per_worker == "auto":
            raise UserError(
                f"{describe_cluster()}, but how large its nodes will be is not known: give what each worker takes, "
                f"such as --cluster.cpus_per_worker 4"
            )
        nodes = ceiling or nodes
    cpus = _share_cpus(nodes, now, gpus) if config.cpus_per_worker == "auto" else config.cpus_per_worker
    if most * accumulation > batch_size:
        raise UserError(
            f"cluster.workers is {most}, training.batch_size is {batch_size}; each worker needs an image"
            + (f" for each of the {accumulation} parts of training.accumulation" if accumulation > 1 else "")
        )
    plan = WorkerPlan(most, cpus, gpus, fewest if fewest < most else None)
    plan.wanted.check_possible()
    return plan


def _check_no_gpus_come() -> None:
    """Raises UserError where GPUs may come later: nobody wants to train on CPUs for days because none is up yet."""
    if describe_absent():
        return  # own machines, some of which are not up: it is said, and nobody asks for what a broken one may have
    ceiling = find_ceiling()
    if ceiling is None or sum_up(ceiling, "GPU") > sum_up(list_nodes(), "GPU"):
        raise UserError(
            f"{describe_cluster()}; say what to wait for, such as --cluster.workers 2 --cluster.gpus_per_worker 1, or "
            f"--cluster.gpus_per_worker 0 to train on CPUs"
        )


def _read_workers(config: ClusterConfig, gpus: float) -> tuple[int, int]:
    """(fewest, most) workers that are wanted."""
    if config.workers == "auto":
        return (max(1, int(gpus)),) * 2
    return config.workers if isinstance(config.workers, tuple) else (config.workers, config.workers)


def _share_cpus(nodes: Nodes, workers: int, gpus_per_worker: float) -> float:
    """The most whole cores that each worker can have, no node giving more than it has.

    Where there are more workers than cores, a part of one, and a tenth stays free for Ray.
    """
    for cores in range(int(sum_up(nodes, "CPU") // workers), 0, -1):
        if count_places(nodes, cores, gpus_per_worker) >= workers:
            return float(cores)
    parts = [node["CPU"] / count for node in nodes if node.get("CPU") for count in range(1, workers + 1)]
    fitting = [part for part in parts if count_places(nodes, part, gpus_per_worker) >= workers]
    return math.floor(min(1.0, max(fitting, default=1.0)) * 90) / 100


@dataclass(frozen=True)
class StreamPlan:
    """Of segment and evaluate: how many model actors, what Ray reserves for one and for a task of the CPU stages.

    threads: what TensorFlow may use in an actor. may_grow: take what GPUs the cluster gains as well.
    """

    actors: int
    cpus: float
    gpus: float
    threads: int
    stage_cpus: float
    may_grow: bool = False

    @property
    def wanted(self) -> Wanted:
        """All actors, and room for the CPU stages."""
        return Wanted(self.actors, "actor", self.cpus, self.gpus, 0.0 if self.gpus else self.stage_cpus)


def plan_stream(actors: int | None = None, gpus_per_actor: float | None = None) -> StreamPlan:
    """One actor per GPU; without GPUs one per eight CPUs, with all their threads and half of their reservation.

    The other half is for the stages that decode and write. actors: as many, no fewer and no more; without, the actors
    on GPUs become more when the cluster does. Raises UserError for what the cluster can never hold.
    """
    nodes = list_nodes()
    gpus = sum_up(nodes, "GPU")
    per_actor = gpus_per_actor if gpus_per_actor is not None else float(gpus >= 1)
    if per_actor > 0:
        if per_actor > 1 and per_actor != int(per_actor):
            raise UserError(f"--gpus-per-actor is {per_actor:g}; allowed are whole GPUs, or a part of one (below 1)")
        count = actors or max(1, count_places(nodes, 0.0, per_actor))
        most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        plan = StreamPlan(count, 0.0, per_actor, 2, _size_stages(most_cpus or 2.0), may_grow=actors is None)
        plan.wanted.check_possible()
        return plan
    found = _plan_on_cpus(nodes, actors)
    if found is None and actors:
        ceiling = find_ceiling()
        # Where nobody says what may come, it is taken to be machines that will do for one actor each.
        found = _plan_on_cpus([{"CPU": _UNKNOWN_CPUS}] * actors if ceiling is None else ceiling, actors)
    if found:
        return found
    if not sum_up(nodes, "CPU"):
        raise UserError(f"{describe_cluster()}; say what to wait for, such as --actors 2 (--gpus-per-actor 1 for GPUs)")
    raise UserError(f"--actors {actors} leaves no CPU for decoding and writing; {describe_cluster()}")


def _size_stages(cpus: float) -> float:
    """Small machines get small tasks: one of each stage must find a place beside the actor."""
    return 0.5 if cpus >= 2 else 0.2


def _plan_on_cpus(nodes: Nodes, actors: int | None) -> StreamPlan | None:
    """For these nodes; None where they have no room."""
    nodes = [node for node in nodes if node.get("CPU", 0) > 0]
    if not nodes:
        return None
    cpus = [float(node["CPU"]) for node in nodes]
    stage_cpus = _size_stages(max(cpus))
    count = actors or sum(max(1, int(node // 8)) for node in cpus)
    threads = max(1, min(int(max(cpus)), int(sum(cpus) // count)))
    reserved = min(cpus) / 2 if len(cpus) >= count else min(threads, min(cpus)) / 2
    for share in [reserved, *(step / 20 for step in range(int(reserved * 20), _LEAST_FOR_ACTOR - 1, -1))]:
        # Never equal to what the CPU stages have: Ray would run those inside the actor. And decoding and writing must
        # both find a place beside all actors: Ray Data stalls, without a word, where one of them never can.
        leaves_room = count * share + 2 * stage_cpus <= sum(cpus) + 1e-9
        if share != stage_cpus and leaves_room and count_places(nodes, share, 0.0, stage_cpus) >= count:
            return StreamPlan(count, share, 0.0, threads, stage_cpus)
    return None
