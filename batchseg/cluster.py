"""All Ray policy: where to connect, how large to be, what workers print, how progress comes back."""

import json
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import batchseg
from batchseg import storage
from batchseg.config import ClusterConfig
from batchseg.errors import StoppedError, UserError, describe_no_space
from batchseg.outputs import JOB_VARIABLE
from batchseg.outputs import is_submitted_job as is_submitted_job
from batchseg.outputs import resolve_output as resolve_output
from batchseg.runtime import QUIET_ENVIRONMENT, silence_stderr

_CONNECT_TIMEOUT_S = 10.0
_WORKER_ENVIRONMENT = {
    **QUIET_ENVIRONMENT,
    # Ray hides the GPUs of tasks that ask for none only when told to; a CPU stage must not take GPU memory.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


def resolve_bundle(location: str) -> str:
    """The absolute place of a bundle. In a submitted job one that is not in the working copy lies where outputs lie."""
    return location if storage.exists(location) else resolve_output(location)


@contextmanager
def connect(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connects to Ray for the time of one command.

    address: None decides itself (the cluster of a submitted job or of RAY_ADDRESS, else an own Ray on this machine);
    `local` starts an own one; anything else is a cluster's address. cpus: size of an own Ray. A Ray that this process
    has started already is used as it is and stays.

    Raises UserError when nothing answers at `address`, or this process is connected to another cluster.
    """
    if ray.is_initialized():
        _check_connected(address)
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or ("auto" if is_submitted_job() else "local")
    options: dict[str, Any] = {
        "address": target,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": _worker_environment(is_local=target == "local"),
    }
    if target == "local":
        options |= {"include_dashboard": False, "num_cpus": cpus}
    _set_environment()
    _check_address(target)
    try:
        with silence_stderr():
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"cannot connect to Ray at {target}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_connected(address: str | None) -> None:
    """Raises UserError when `address` names another cluster than the one this process is connected to."""
    connected = ray.get_runtime_context().gcs_address
    if address in (None, "auto", "local", connected):
        return
    _check_address(str(address))
    raise UserError(
        f"this process is connected to Ray at {connected} already; it cannot work on {address} as well. "
        f"Call ray.shutdown() first."
    )


def _check_address(target: str) -> None:
    """Raises UserError when nothing answers at host:port; Ray itself would try for minutes without a word."""
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return  # local, auto, or ray://…: Ray knows better
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"cannot connect to Ray at {target}: {error}. Is the cluster up, and is this the port of `ray start` "
            f"(6379 by default)? --address local runs on this machine."
        ) from error


def _set_environment() -> None:
    """Before ray.init. Ray's core writes errors that are none (2.60: on actor arguments) to the terminal."""
    for name, value in {"RAY_BACKEND_LOG_LEVEL": "fatal", **_WORKER_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)


def _worker_environment(*, is_local: bool) -> dict[str, Any]:
    # Ray refuses to merge a variable that the submitted job sets as well; the job's own word counts.
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {name: value for name, value in _WORKER_ENVIRONMENT.items() if name not in given}
    environment: dict[str, Any] = {"env_vars": variables}
    if not is_local and not is_submitted_job():
        # The nodes run the very code that the command was started with; a submitted job has its working directory.
        environment["py_modules"] = [str(Path(batchseg.__file__).parent)]
    return environment


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each holds. `threads` is what TensorFlow may use in one."""

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        return max(1, math.floor(self.cpus))


def plan_training_workers(config: ClusterConfig, batch_size: int) -> WorkerPlan:
    """Turns `auto` into numbers for this cluster. Raises UserError for what the cluster can never hold."""
    resources = ray.cluster_resources()
    cluster_cpus, cluster_gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    workers = config.workers if config.workers != "auto" else max(1, int(cluster_gpus))
    gpus = float(cluster_gpus >= workers) if config.gpus_per_worker == "auto" else config.gpus_per_worker
    cpus = _share_cpus(workers, gpus) if config.cpus_per_worker == "auto" else config.cpus_per_worker
    if workers > batch_size:
        raise UserError(
            f"cluster.workers is {workers}, training.batch_size is {batch_size}; each worker needs an image"
        )
    # A cluster that scales may have more later; what it has now is all that can be checked on a fixed one.
    if gpus * workers > cluster_gpus and not _can_grow():
        raise UserError(f"{workers} workers x {gpus:g} GPUs are wanted; the cluster has {cluster_gpus:g}")
    if cpus * workers > cluster_cpus and not _can_grow():
        raise UserError(f"{workers} workers x {cpus:g} CPUs are wanted; the cluster has {cluster_cpus:g}")
    if _count_places(cpus, gpus) < workers and not _can_grow():
        raise UserError(
            f"{workers} workers x {cpus:g} CPUs are wanted; the nodes of the cluster have no place for them"
        )
    return WorkerPlan(workers, cpus, gpus)


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
    # Never equal to what the CPU stages have: Ray would run those inside the actor.
    reserved = reserved + 0.1 if reserved == stage_cpus else reserved
    if _count_places(reserved, 0.0, stage_cpus) < count:
        raise UserError(f"--actors {count} leaves no CPU for decoding and writing; the cluster has {sum(cpus):g} CPUs")
    return StreamPlan(count, reserved, 0.0, threads, stage_cpus)


def _can_grow() -> bool:
    """True on a cluster that Ray's launcher made: its head holds this file, and nodes come when they are asked for."""
    return os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))


def check_shared(location: str) -> None:
    """On a cluster of several nodes, makes sure that all of them see `location`. Raises UserError otherwise."""
    others = [
        node for node in ray.nodes() if node["Alive"] and node["NodeID"] != ray.get_runtime_context().get_node_id()
    ]
    if storage.is_remote(location) or not others:
        return
    probe = storage.join(location, f".probe-{uuid.uuid4().hex}")
    storage.write_atomic(probe, b"")
    try:
        for node in others:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            sees = ray.remote(storage.exists).options(num_cpus=0, scheduling_strategy=pinned).remote(probe)
            if not ray.get(sees):
                raise UserError(
                    f"{location} is not shared: node {node['NodeManagerAddress']} does not see it. "
                    f"On a cluster of several nodes the output must be on shared storage or s3://."
                )
    finally:
        storage.delete_file(probe)


class ProgressBoard:
    """Where workers say how far they are, for the one console that shows it; an actor."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._begun: dict[str, int] = {}

    def put(self, **values: Any) -> None:
        """Sets values."""
        self._state.update(values)

    def add(self, **counts: float) -> None:
        """Adds to counters."""
        for name, count in counts.items():
            self._state[name] = self._state.get(name, 0) + count

    def begin(self, work: str) -> int:
        """How often this piece of work has been begun now: once, or more often when a process died over it."""
        self._begun[work] = self._begun.get(work, 0) + 1
        return self._begun[work]

    def end(self, work: str, stage: str, seconds: float) -> None:
        """A piece of work came to its end, in so many seconds of a stage."""
        self._begun.pop(work, None)
        self.add(**{f"busy/{stage}": seconds})

    def read(self) -> dict[str, Any]:
        return self._state


def start_board() -> Any:
    """A ProgressBoard as an actor beside the driver, which lives as long as its handle."""
    beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ProgressBoard)
    return board.options(scheduling_strategy=beside_driver).remote()


class Throttle:
    """True at most once in `seconds`."""

    def __init__(self, seconds: float):
        self._seconds, self._next = seconds, 0.0

    def is_due(self) -> bool:
        """True if `seconds` have passed since it last was; the first time always."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def configure_data() -> None:
    """Ray Data without bars and chatter; one failed task ends the job, since images fail as rows."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def report_errors(board: Any) -> Iterator[None]:
    """In a worker: puts what the user has to mend on the board, and raises it.

    Ray wraps what a worker raises, and of most wrappers only the text reaches the driver.
    """
    try:
        yield
    except (UserError, StoppedError, OSError) as error:
        found = describe_no_space(error) or error
        if not isinstance(found, OSError):
            ray.get(board.put.remote(fatal=str(found), stopped=isinstance(found, StoppedError)))
        raise


def raise_reported(board: Any) -> None:
    """In the driver: raises what a worker has put on the board."""
    try:
        state = ray.get(board.read.remote(), timeout=_CONNECT_TIMEOUT_S)
    except ray.exceptions.RayError:
        return  # without a board the error itself is what there is to tell
    if "fatal" in state:
        raise StoppedError(state["fatal"]) if state["stopped"] else UserError(state["fatal"])


@contextmanager
def unwrap_errors(board: Any) -> Iterator[None]:
    """In the driver: raises the UserError or StoppedError behind a failure of Ray, if there is one."""
    try:
        yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError, RuntimeError) as error:
        raise_reported(board)
        inner = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
        for cause in (error, *inner):
            if found := find_cause(cause):
                raise found from None
        raise


def find_cause(error: BaseException | None) -> UserError | StoppedError | None:
    """The UserError or StoppedError in a chain of causes; a full disk is a StoppedError."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Ray's RayTaskError is of the type of its cause as well, but its text is a traceback: the cause goes first.
        inner = getattr(error, "cause", None) or error.__cause__ or error.__context__
        if isinstance(error, (UserError, StoppedError)) and not isinstance(error, ray.exceptions.RayError):
            return error
        if not isinstance(error, ray.exceptions.RayError) and (full := describe_no_space(error)):
            return full
        error = inner
    return None
