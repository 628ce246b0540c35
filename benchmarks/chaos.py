"""Does every image end with exactly one row, whatever is killed?

    python benchmarks/chaos.py BUNDLE [--images 10000] [--kills 10] [--modes driver,worker,node] [--folder DIR]

Draws photos (2 in 100 cut off, 1 in 1,000 huge, an empty one), segments them undisturbed, and then again in each mode:
  driver  the command is killed with SIGKILL at random moments and started again each time
  worker  processes of the stages and of the model are killed with SIGKILL while it runs
  node    on a cluster of three nodes of this machine, nodes vanish and come back while it runs
After each mode `verify` must find nothing, no image may have failed that was ok undisturbed, and a digest over masks
and rows must equal the undisturbed one. Exits with 1 otherwise. BUNDLE should be a tiny one: the ledger is under test.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset

from batchseg.datasets.drawn import draw_scene
from batchseg.digest import digest_output
from batchseg.verify import verify_output

_SCENES = 40
_STAGES = ("MapBatches", "StreamingRepartition", "commit_blocks")
_STARTUP_S = 6.0
_BETWEEN_KILLS_S = 6.0


def draw_photos(folder: Path, count: int, rng: np.random.Generator) -> None:
    """JPEGs in folders of 1,000, of which some will not do."""
    scenes = [draw_scene(rng, (128, 160))[0] for _ in range(min(count, _SCENES))]
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        image = np.roll(scenes[number % len(scenes)], number % 160, axis=1)
        if number % 1000 == 1:
            image = cv2.resize(image, (4000, 3000))
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        if number % 50 == 2:
            data = data[: len(data) // 2]
        (place / f"{number:06d}.jpg").write_bytes(b"" if number == 3 else data)


def start_segment(photos: Path, bundle: str, out: Path, address: str | None = None) -> "subprocess.Popen[bytes]":
    """The command as a user starts it."""
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
    command = [sys.executable, "-m", "batchseg", "segment", str(photos), "--model", bundle, "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def read_statuses(out: Path) -> dict[str, str]:
    """image_id -> status, of every row."""
    if not (out / "rows").exists():
        return {}
    rows = pyarrow.dataset.dataset(out / "rows", partitioning="hive").to_table(columns=["image_id", "status"])
    return dict(zip(rows["image_id"].to_pylist(), rows["status"].to_pylist(), strict=True))


def check(name: str, out: Path, reference: Path) -> bool:
    """Prints and returns whether `out` is what the undisturbed run left."""
    verification = verify_output(str(out))
    statuses, expected = read_statuses(out), read_statuses(reference)
    wrong = sum(statuses.get(image) != status for image, status in expected.items())
    is_equal = digest_output(str(out)) == digest_output(str(reference))
    is_right = verification.is_clean and verification.is_complete and not wrong and is_equal
    print(
        f"{name:8s} {len(statuses)} rows, {len(verification.findings)} findings, {verification.pending} pending, "
        f"{wrong} other statuses, digest {'equal' if is_equal else 'DIFFERS'}: {'ok' if is_right else 'WRONG'}",
        flush=True,
    )
    for finding in verification.findings[:5]:
        print(f"         {finding}")
    return is_right


def kill_driver(
    start: Callable[[], "subprocess.Popen[bytes]"], kills: int, whole_s: float, chance: random.Random
) -> int:
    """Kills the command `kills` times, from its first second on, then lets it end. Returns its exit code.

    A run may last as long as it takes to start and to do a share of the work, so that most kills meet it at work.
    """
    for number in range(kills):
        process = start()
        wait_s = chance.uniform(1, 2 * _STARTUP_S + 2 * whole_s / kills)
        try:
            process.wait(timeout=wait_s)
            print(f"         all was done after {number} kills", flush=True)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return start().wait()


def kill_workers(process: "subprocess.Popen[bytes]", kills: int, chance: random.Random) -> int:
    """Kills stages and actors of a running command. Returns its exit code."""
    time.sleep(_STARTUP_S)
    for _ in range(kills):
        try:
            return process.wait(timeout=chance.uniform(1, _BETWEEN_KILLS_S))
        except subprocess.TimeoutExpired:
            victims = find_workers(process.pid)
            if victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
    return process.wait()


def find_workers(ancestor: int) -> list[int]:
    """The processes of stages and of the model under a process. Ray's own are left out: its node falls with them."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and any(name in title for name in _STAGES):
            found.append(int(folder.name))

    def is_under(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = parents.get(pid, 0)
        return pid == ancestor

    return [pid for pid in found if is_under(pid)]


def kill_nodes(start: Callable[[str], "subprocess.Popen[bytes]"], kills: int, chance: random.Random) -> int:
    """Runs the command on three nodes, of which two vanish and come back in turn. Returns its exit code."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    try:
        process = start(cluster.address)
        time.sleep(_STARTUP_S)
        for _ in range(kills):
            try:
                return process.wait(timeout=chance.uniform(2, 2 * _BETWEEN_KILLS_S))
            except subprocess.TimeoutExpired:
                cluster.remove_node(nodes.pop(chance.randrange(len(nodes))), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=2))
        return process.wait()
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--modes", default="driver,worker,node")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it works; default a temporary folder")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.folder or Path(temporary)
        photos, reference = folder / "photos", folder / "undisturbed"
        draw_photos(photos, arguments.images, np.random.default_rng(arguments.seed))
        began = time.monotonic()
        code = start_segment(photos, arguments.bundle, reference).wait()
        whole_s = time.monotonic() - began
        print(f"undisturbed: {arguments.images} images in {whole_s:.0f} s, exit code {code}", flush=True)
        is_right = code == 3
        for mode in arguments.modes.split(","):
            out = folder / mode

            def start(address: str | None = None, out: Path = out) -> "subprocess.Popen[bytes]":
                return start_segment(photos, arguments.bundle, out, address)

            match mode:
                case "driver":
                    code = kill_driver(start, arguments.kills, whole_s, chance)
                case "worker":
                    code = kill_workers(start(), arguments.kills, chance)
                case "node":
                    code = kill_nodes(start, arguments.kills, chance)
            is_right = check(mode, out, reference) and code == 3 and is_right
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
