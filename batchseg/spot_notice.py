"""On a spot machine of AWS: drains its Ray node as soon as AWS has said that the machine will be taken away.

    python -m batchseg.spot_notice

cluster.yaml starts it beside each worker node; Ray's own launcher does not look (2.60). AWS says so two minutes ahead,
in the metadata of the machine, which it advises to read every five seconds (EC2 User Guide, "Spot Instance interruption
notices"; "Use IMDSv2" for the token). Of a node that is drained training makes a checkpoint, and nothing new starts
there.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException

import click

METADATA_URL = "http://169.254.169.254/latest"
_LOOK_SECONDS = 5.0
_TIMEOUT_S = 2.0
_DRAIN_TIMEOUT_S = 25.0
_EARLIER_S = 30
"""Ray is told an earlier deadline: it counts from when the command has reached it, and takes a node for drained, not
for failed, if it dies after the deadline (2.60)."""


def read_deadline(metadata_url: str = METADATA_URL) -> datetime | None:
    """When this machine will be taken away; None while AWS has not said so. Raises OSError where nobody answers."""
    token = _ask(f"{metadata_url}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        notice = _ask(f"{metadata_url}/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.fromisoformat(json.loads(notice)["time"]).astimezone(UTC)


def drain_node(deadline: datetime) -> int:
    """Tells the Ray node of this machine. Returns the exit code of `ray drain-node`."""
    remaining_s = max(1, int((deadline - datetime.now(UTC)).total_seconds()) - _EARLIER_S)
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    message = f"AWS takes this spot machine away at {deadline:%H:%M:%S} UTC"
    return subprocess.run(
        [*command, "--reason-message", message, "--deadline-remaining-seconds", str(remaining_s)],
        timeout=_DRAIN_TIMEOUT_S,
        check=False,
    ).returncode


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """The answer, without any proxy: the address is one of this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=_TIMEOUT_S) as answer:
        return str(answer.read().decode())


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--metadata", default=METADATA_URL, show_default=True, help="where AWS answers")
def main(metadata: str) -> None:
    """Looks until there is a notice, and ends once Ray has taken it."""
    fault = None
    while True:
        try:
            deadline = read_deadline(metadata)
            if deadline:
                click.echo(f"to be taken away at {deadline:%Y-%m-%d %H:%M:%S} UTC; draining the node")
                if drain_node(deadline) == 0:
                    return
            fault = None
        except (OSError, HTTPException, ValueError, TypeError, KeyError, subprocess.TimeoutExpired) as error:
            if str(error) != fault:  # once, not every five seconds
                fault = str(error)
                click.echo(f"no notice that can be read or passed on ({fault}); looking again")
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
