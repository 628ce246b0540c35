"""Several hosts on one machine: network namespaces on one switch, with a Ray node in each. For tests.

All of it lives in a box of namespaces of its own (network, processes, mounts), which ends with the box: nothing of this
machine's network changes, and no other Ray is touched. The hosts share the machine's disk, but for /tmp/ray. Needs
root, util-linux and iproute2.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
NETWORK = "10.98.0"
PORT = 6379
_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
# $1: number of hosts. A host is the namespace h1, h2, … with the address .1, .2, …
_BUILD = f"""
set -eu
mkdir -p /run/netns /tmp/ray
mount -t tmpfs none /run/netns
mount -t tmpfs none /tmp/ray
ip link set lo up
ip link add switch type bridge
ip link set switch up
for n in $(seq $1); do
  ip netns add h$n
  ip link add port$n type veth peer name eth0 netns h$n
  ip link set port$n master switch up
  ip -n h$n address add {NETWORK}.$n/24 dev eth0
  ip -n h$n link set eth0 up
  ip -n h$n link set lo up
  ip -n h$n route add default via {NETWORK}.254  # Ray takes the address of the default route for its own
  mkdir /tmp/ray/h$n
done
echo built
exec sleep infinity
"""
_ENTER = 'mount --bind /tmp/ray/"$0" /tmp/ray && exec "$@"'
_WAIT_FOR_NODES = """
import sys, time, ray
deadline = time.monotonic() + 90
while True:
    try:
        ray.init(sys.argv[1], log_to_driver=False)
        break
    except Exception:
        assert time.monotonic() < deadline, "the head did not come up"
        time.sleep(0.5)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < deadline, f"only {len(ray.nodes())} nodes came up"
    time.sleep(0.3)
"""


def find_obstacle() -> str | None:
    """Why hosts cannot be made on this machine; None where they can."""
    missing = [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]
    if missing:
        return f"absent: {', '.join(missing)} (Debian: util-linux, iproute2)"
    trial = subprocess.run(
        [*_UNSHARE, "sh", "-c", "ip link add port type veth peer name eth0 && ip link add switch type bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return trial.stderr.strip() or "namespaces are not allowed here" if trial.returncode else None


class Hosts:
    """Hosts 1 to `count`. Host 1 has Ray's head; `address` is its."""

    address = f"{NETWORK}.1:{PORT}"

    def __init__(self, box: int, environment: dict[str, str]):
        self._box, self._environment = box, environment

    def start(self, host: int, *command: str, log: Path) -> "subprocess.Popen[bytes]":
        """A command on one host, in the background."""
        inside = ["ip", "netns", "exec", f"h{host}", "sh", "-c", _ENTER, f"h{host}", *command]
        with log.open("ab") as sink:
            return subprocess.Popen(
                ["nsenter", f"--target={self._box}", "--net", "--pid", "--mount", f"--wd={os.getcwd()}", "--", *inside],
                env=self._environment, stdout=sink, stderr=sink,
            )  # fmt: skip

    def run(self, host: int, *command: str, log: Path, timeout_s: float = 300) -> int:
        """Its exit code."""
        return self.start(host, *command, log=log).wait(timeout=timeout_s)

    def kill(self, host: int) -> None:
        """All processes of the host die at once; its network stays and says that nobody is there, as of a machine that
        is shut down. One whose cable is cut is noticed by Ray only after minutes.
        """
        enter = ["nsenter", f"--target={self._box}", "--net", "--pid", "--mount", "--"]
        subprocess.run([*enter, "sh", "-c", f"ip netns pids h{host} | xargs --no-run-if-empty kill -9"], check=True)


@contextmanager
def run_hosts(
    folder: Path, cpus: list[int], head_flags: Sequence[str] = (), variables: dict[str, str] | None = None
) -> Iterator[Hosts]:
    """A Ray cluster of len(cpus) hosts, the first one its head, with that many CPUs each. Logs lie in `folder`.

    head_flags: more for `ray start` of the head. variables: more environment of all.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": Hosts.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        **(variables or {}),
    }
    box = subprocess.Popen(
        [*_UNSHARE, "sh", "-c", _BUILD, "sh", str(len(cpus))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert box.stdout
        assert box.stderr
        assert box.stdout.readline() == "built\n", box.stderr.read()
        child = int(Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text().split()[0])
        hosts = Hosts(child, environment)
        ray = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000"]
        nodes = []
        for host, count in enumerate(cpus, 1):
            role = ["--head", f"--port={PORT}", *head_flags] if host == 1 else [f"--address={Hosts.address}"]
            nodes.append(hosts.start(host, *ray, *role, f"--num-cpus={count}", log=folder / f"host{host}.log"))
            if host == 1:
                _wait(hosts, 1, folder)
        _wait(hosts, len(cpus), folder)
        yield hosts
    finally:
        box.kill()
        box.wait()


def _wait(hosts: Hosts, nodes: int, folder: Path) -> None:
    """Until that many nodes are up."""
    log = folder / "wait.log"
    code = hosts.run(1, sys.executable, "-c", _WAIT_FOR_NODES, hosts.address, str(nodes), log=log)
    assert code == 0, log.read_text()


def wait_until(is_so: Callable[[], bool], what: str, log: Path, timeout_s: float = 120) -> None:
    """Fails with the log when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{log.read_text()}"
        time.sleep(0.1)
