"""Ledger, lease, verify and clearing on a real S3 server."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from batchseg import clearing, ledger, storage
from batchseg.classes import parse_classes
from batchseg.digest import digest_output
from batchseg.errors import StoppedError, UserError
from batchseg.images import encode_mask
from batchseg.lease import Lease, LeaseTimes, check_token
from batchseg.listing import MANIFEST_SCHEMA
from batchseg.verify import verify_output

CLASSES = parse_classes(["ground", "thing"])
SCHEMA = ledger.make_row_schema(CLASSES)
TIME = datetime(2026, 1, 2, tzinfo=UTC)
FAST = LeaseTimes(heartbeat_s=0.2, stale_s=2, poll_s=0.1, pause_s=0.2)


def commit(out: str, names: list[str], run: int) -> None:
    rows = []
    for name in names:
        data, path = encode_mask(np.ones((3, 4), np.uint8), CLASSES.palette), clearing.name_picture("masks", name)
        storage.write_atomic(storage.join(out, path), data)
        rows.append(
            dict.fromkeys(SCHEMA.names)
            | {"image_id": name, "input_bytes": 1, "input_modified": TIME, "height": 3, "width": 4, "run": run}
            | {"attempts": 1, "bundle": "abc", "class_pixels": [0, 12], "mask": {"bytes": data, "path": path}}
        )
    ledger.commit_part(out, pa.Table.from_pylist(rows, SCHEMA), "ok", run)


def fail(text: str) -> None:
    raise AssertionError(f"said {text!r}")


def test_an_output_on_s3(s3_bucket: str) -> None:
    out = f"{s3_bucket}/out"
    assert ledger.read_run(out) is None
    with Lease.acquire(out, say=fail, times=FAST) as held:
        check_token(out, held.token)
        with pytest.raises(UserError, match="in use by another job"):
            Lease.acquire(out, say=fail, times=FAST)
        parameters = {"bundle_digest": "abc", "write": ["parquet", "png"], "overlays": "none"}
        ledger.write_run(out, {"run": 1, "bundle": "b", "state": "running", "parameters": parameters})
        listed = [{"image_id": name, "bytes": 1, "modified": TIME} for name in ("a", "b/ü #1", "c")]
        ledger.write_table(f"{out}/{ledger.MANIFEST_FILE}", pa.Table.from_pylist(listed, MANIFEST_SCHEMA), out)
        commit(out, ["a", "b/ü #1", "gone"], 1)
        commit(out, ["a"], 2)
        index = ledger.settle(out)
        assert sorted(zip(index["image_id"].to_pylist(), index["run"].to_pylist(), strict=True)) == [
            ("a", 2), ("b/ü #1", 1), ("gone", 1),
        ]  # fmt: skip
    result = verify_output(out)
    assert (result.findings, result.ok, result.pending, result.gone) == ([], 2, 1, 1)
    digest = digest_output(out)
    assert clearing.prune(out, index, pa.array(["a", "b/ü #1", "c"])) == 1
    assert not storage.exists(f"{out}/masks/gone.png")
    storage.delete_file(f"{out}/masks/a.png")
    assert [finding.kind for finding in verify_output(out, repair=True).findings] == ["mask"]
    assert verify_output(out).pending == 2
    commit(out, ["a", "gone"], 3)
    assert digest_output(out) == digest
    clearing.remove_output(out)
    left = [entry.path for entry in storage.list_files(out, hidden=True) if entry.size_bytes]
    assert left == ["run.json"]


def test_a_lost_lease_on_s3(s3_bucket: str) -> None:
    out = f"{s3_bucket}/lost"
    held = Lease.acquire(out, say=fail, times=FAST)
    owner = json.loads(storage.read_bytes(f"{out}/lease.json"))
    held._stop.set()  # its heart stops; another host takes it for dead
    held._thread.join()
    storage.write_atomic(f"{out}/lease.json", json.dumps(owner | {"token": "theirs", "boot_id": "other"}))
    with pytest.raises(StoppedError, match="another job has taken OUT"):
        held.check()
    said: list[str] = []
    with Lease.acquire(out, say=said.append, times=FAST) as again:
        again.check()
    assert len(said) == 1
