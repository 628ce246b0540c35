"""All Ray policy: where to connect, how large to be, what workers print, how progress comes back."""

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import batchseg
from batchseg import storage
from batchseg.errors import UserError
from batchseg.outputs import JOB_VARIABLE
from batchseg.outputs import is_submitted_job as is_submitted_job
from batchseg.outputs import resolve_output as resolve_output
from batchseg.runtime import QUIET_ENVIRONMENT, silence_stderr

_CONNECT_TIMEOUT_S = 10.0
_connected_as: list[str] = []
"""The address of this process's Ray as it was given: localhost, where Ray itself says 10.0.0.1."""
_NODE_IS_GONE = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError)
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
    target = _find_target(address)
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
        raise UserError(f"cannot connect to Ray at {target}: {error}{_hint_at_token()}") from error
    _connected_as.append(target)
    try:
        yield
    finally:
        _connected_as.remove(target)
        ray.shutdown()


@contextmanager
def join(address: str | None = None) -> Iterator[None]:
    """As `connect` where a Ray runs already. An own one is not started for this: sizes are those of this machine then.

    For what can be refused at once, before a command looks at its data, which may take minutes.
    """
    if not ray.is_initialized() and _find_target(address) == "local":
        yield
        return
    with connect(address):
        yield


def _find_target(address: str | None) -> str:
    """What `connect` connects to: an address, auto or local."""
    return address or os.environ.get("RAY_ADDRESS") or ("auto" if is_submitted_job() else "local")


def has_dashboard() -> bool:
    """Whether the Ray that this process is connected to has one."""
    return bool(ray._private.worker.get_dashboard_url())


def _check_connected(address: str | None) -> None:
    """Raises UserError when `address` names another cluster than the one this process is connected to."""
    connected = ray.get_runtime_context().gcs_address
    if address in (None, "auto", "local", connected, *_connected_as):
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


def _hint_at_token() -> str:
    """Ray does not say that a cluster turned a client down for its token, nor sends one untold (2.60)."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode:
        return f". RAY_AUTH_MODE is {mode}: mode and token must be those that the cluster was started with"
    return ". A cluster that was started with a token (as where ~/.ray/auth_token exists) wants RAY_AUTH_MODE=token"


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


def check_shared(out: str | None, inputs: Iterable[str] = ()) -> None:
    """On a cluster of several nodes, makes sure that all of them see `out` and the files and folders `inputs`.

    Raises UserError otherwise. What is on s3:// is seen by all; what is not here either is none of this question.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = [path for path in inputs if not storage.is_remote(path) and storage.exists(path)]
    if not others or not (asked or (out and not storage.is_remote(out))):
        return
    with _leave_probe(out) as probes:
        answers = []
        for node in others:  # all at once: each may have to start a process
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(_find_unseen).options(num_cpus=0, scheduling_strategy=pinned)
            answers.append((node["NodeManagerAddress"], ask.remote([*probes, *asked])))
        for address, answer in answers:
            try:
                unseen = ray.get(answer)
            except _NODE_IS_GONE:
                continue  # between the list and the question: what it would have seen does not matter
            if unseen:
                raise UserError(
                    f"{out if unseen[0] in probes else unseen[0]} is not shared: node {address} does not see it. On a "
                    f"cluster of several nodes what a job reads and writes must be on shared storage or s3://."
                )


@contextmanager
def _leave_probe(out: str | None) -> Iterator[list[str]]:
    """A file in OUT for others to see, for the time of the context; none on s3://, or where there is no OUT."""
    if out is None or storage.is_remote(out):
        yield []
        return
    probe = storage.join(out, f".probe-{uuid.uuid4().hex}")
    storage.write_atomic(probe, b"")
    try:
        yield [probe]
    finally:
        storage.delete_file(probe)


def _find_unseen(paths: list[str]) -> list[str]:
    """In a task on another node."""
    return [path for path in paths if storage.file_type(path) == "missing"]


def configure_data() -> None:
    """Ray Data without bars and chatter; one failed task ends the job, since images fail as rows."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
