"""What the stream does beside its stages: deaths are counted, rows are committed by the clock."""

import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
import ray.data

from batchseg import board as boards
from batchseg import ledger, stream
from batchseg.classes import parse_classes
from batchseg.errors import StoppedError
from batchseg.geometry import Geometry
from batchseg.lease import Lease
from batchseg.results import JobFacts
from batchseg.stream import Committer, Guarded

CLASSES = parse_classes(["ground", "thing"])


def run_guarded(names: list[str], deadly: str) -> list[tuple[str, str | None]]:
    """(image, kind of error) after a stage that dies over every image whose name holds `deadly`."""

    def stage(table: pa.Table) -> pa.Table:
        todo = table.filter(pc.is_null(table["error_kind"]))
        if any(deadly in name for name in todo["image_id"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return table

    nulls = pa.nulls(len(names), pa.string())
    todo = pa.table({"image_id": names, "error_kind": nulls, "error": nulls})
    board = boards.start_board()
    with boards.unwrap_errors(board):
        done = (
            ray.data.from_arrow(todo)
            .repartition(target_num_rows_per_block=8)
            .map_batches(Guarded(stage, board), batch_size=None, batch_format="pyarrow")
            .take_all()
        )
    return sorted((row["image_id"], row["error_kind"]) for row in done)


@pytest.mark.slow
def test_an_image_that_kills_a_stage_costs_itself_only(ray_session: None) -> None:
    names = [f"{number:02d}" for number in range(16)]
    found = run_guarded([*names, "deadly"], "deadly")
    assert found == [*((name, None) for name in names), ("deadly", "crash")]


@pytest.mark.slow
def test_a_stage_that_always_dies_stops_the_job(ray_session: None) -> None:
    with pytest.raises(StoppedError, match="images have each killed its process 3 times"):
        run_guarded([f"deadly {number:02d}" for number in range(16)], "deadly")


def test_rows_do_not_wait_for_the_next_block(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "COMMIT_SECONDS", 0.2)
    monkeypatch.setattr(stream, "_CLOCK_SECONDS", 0.05)
    out = str(tmp_path / "out")
    schema = ledger.make_row_schema(CLASSES)
    row = dict.fromkeys(schema.names) | {"image_id": "a", "uri": "/a"}
    rows = ray.data.from_arrow(pa.Table.from_pylist([row], schema))
    with Lease.acquire(out, say=print) as lease:
        facts = JobFacts(out, 1, lease.token, "digest", CLASSES, Geometry((32, 32), "resize", 32, 0), None)
        with Committer(facts, boards.start_board()) as committer:
            for bundle in rows.iter_internal_ref_bundles():
                committer.add(bundle)
            deadline = time.monotonic() + 60
            while not ledger.list_parts(out):
                assert time.monotonic() < deadline, "nothing was committed"
                time.sleep(0.05)
            committer.finish()
    assert ledger.read_index(out)["image_id"].to_pylist() == ["a"]
