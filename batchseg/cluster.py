"""All Ray policy: where to connect, how large to be, what workers print, how progress comes back."""

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
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


def has_dashboard() -> bool:
    """Whether the Ray that this process is connected to has one."""
    return bool(ray._private.worker.get_dashboard_url())


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
            try:
                is_shared = ray.get(sees)
            except _NODE_IS_GONE:
                continue  # between the list and the question: what it would have seen does not matter
            if not is_shared:
                raise UserError(
                    f"{location} is not shared: node {node['NodeManagerAddress']} does not see it. "
                    f"On a cluster of several nodes the output must be on shared storage or s3://."
                )
    finally:
        storage.delete_file(probe)


def configure_data() -> None:
    """Ray Data without bars and chatter; one failed task ends the job, since images fail as rows."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
