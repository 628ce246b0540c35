"""Ray Train's list of checkpoints: which are kept, and how a list is mended that a kill has cut off."""

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchseg import storage
from batchseg.checkpoint_list import has_checkpoints, mend_list
from batchseg.config import load_config
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.train import train_model
from batchseg.train_folder import check_out
from batchseg.train_task import Progress, describe_checkpoint, write_checkpoint

LIST = "checkpoints/checkpoint_manager_snapshot.json"


def make_history(scores: list[float | None]) -> list[dict[str, Any]]:
    return [{"epoch": number + 1, "val_miou": score} for number, score in enumerate(scores)]


def draw_run(seed: int) -> list[Progress]:
    """Every checkpoint of a run: one at the end of each epoch, some within."""
    rng = random.Random(seed)
    scores = [rng.choice([None, *(rng.random() for _ in range(3))]) for _ in range(12)]
    run = []
    for done in range(12):
        history = make_history(scores[:done])
        run += [Progress(history, [0.5] * steps) for steps in (2, 4) if rng.random() < 0.3]
        run.append(Progress(make_history(scores[: done + 1])))
    return run


def score_of(progress: Progress) -> float:
    return -1.0 if progress.losses or not progress.history else progress.history[-1]["val_miou"] or -1.0


@pytest.mark.parametrize("seed", range(20))
def test_the_three_of_the_highest_rank_are_the_best_and_the_last_two(seed: int) -> None:
    """As Ray keeps them: after each report it deletes all but the three of the highest rank, and the newest."""
    kept: list[Progress] = []
    run = draw_run(seed)
    for number, progress in enumerate(run):
        kept = sorted([*kept, progress], key=lambda each: describe_checkpoint(each)["rank"])[-3:]
        assert all(last in kept for last in run[max(0, number - 1) : number + 1])
        best = max(map(score_of, run[: number + 1]))
        assert best == max(map(score_of, kept))


def test_what_ray_is_told_of_a_checkpoint() -> None:
    assert describe_checkpoint(Progress(make_history([0.5]))) == {"epoch": 1, "val_miou": 0.5, "rank": 1.0}
    within = describe_checkpoint(Progress(make_history([0.5]), [1.0]))
    assert (within["epoch"], within["val_miou"]) == (2, -1.0)
    assert 0 < within["rank"] < describe_checkpoint(Progress(make_history([0.5, 0.4])))["rank"] < 1


def write_run(out: str, scores: list[float | None], tmp_path: Path) -> list[str]:
    """A folder of checkpoints after each epoch, with Ray's list of them; local or on S3. Returns their names."""
    names = []
    for done in range(1, len(scores) + 1):
        folder = tmp_path / f"checkpoint_2026-01-01_00-00-0{done}"
        folder.mkdir()
        progress = Progress(make_history(scores[:done]))
        write_checkpoint(str(folder), {"weights": [np.zeros(3)]}, {**progress.to_json(), "scores": None})
        for path in folder.iterdir():
            storage.write_atomic(f"{out}/checkpoints/{folder.name}/{path.name}", path.read_bytes())
        names.append(folder.name)
    storage.write_atomic(f"{out}/{LIST}", '{"ray_ver')
    mend_list(out, lambda text: None)
    return names


def read_list(out: str) -> dict[str, Any]:
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

    state = _CheckpointManagerState.parse_obj(json.loads(storage.read_text(f"{out}/{LIST}")))
    return {
        "ranked": [each.checkpoint_dir_name for each in state.checkpoint_results],
        "reports": state.checkpoint_report_indices,
        "newest": state.latest_checkpoint_result.checkpoint_dir_name,
    }


def assert_lists_are_mended(out: str, tmp_path: Path) -> None:
    first, second, third = write_run(out, [0.3, 0.9, 0.4], tmp_path)
    whole = {"ranked": [first, third, second], "reports": [0, 2, 1], "newest": third}
    assert read_list(out) == whole
    said: list[str] = []
    mend_list(out, said.append)
    assert said == [], "nothing was wrong"
    text = storage.read_text(f"{out}/{LIST}")
    storage.write_atomic(f"{out}/{LIST}", text[:100])
    assert has_checkpoints(out)
    assert storage.read_text(f"{out}/{LIST}") == text[:100], "only looked at"
    mend_list(out, said.append)
    assert storage.read_text(f"{out}/{LIST}") == text
    storage.delete_folder(f"{out}/checkpoints/{third}")
    mend_list(out, said.append)
    assert read_list(out) == {"ranked": [first, second], "reports": [0, 1], "newest": second}
    arrays = f"{out}/checkpoints/{second}/arrays.npz"
    storage.write_atomic(arrays, storage.read_bytes(arrays)[:-10])
    mend_list(out, said.append)
    assert read_list(out) == {"ranked": [first], "reports": [0], "newest": first}
    location = f"{out}/{LIST}, Ray's list of checkpoints,"
    assert said == [
        f"{location} was cut off: made anew from 3 whole checkpoints; 3 epochs and 0 steps are done",
        f"{location} named {third}, not whole: made anew from 2 whole checkpoints; 2 epochs and 0 steps are done",
        f"{location} named {second}, not whole: made anew from 1 whole checkpoints; 1 epochs and 0 steps are done",
    ]
    storage.delete_file(f"{out}/checkpoints/{first}/state.json")
    with pytest.raises(UserError, match=r"has no whole checkpoint, .* is damaged\. To begin anew, delete "):
        mend_list(out, said.append)


def test_a_list_is_mended_from_whole_checkpoints(tmp_path: Path) -> None:
    assert_lists_are_mended(str(tmp_path / "out"), tmp_path)


def test_a_list_on_s3_is_mended(s3_bucket: str, tmp_path: Path) -> None:
    assert_lists_are_mended(f"{s3_bucket}/out", tmp_path)


def test_without_a_whole_checkpoint_a_list_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / LIST).write_text("")
    with pytest.raises(UserError, match=r"no whole checkpoint, and checkpoint_manager_snapshot\.json, Ray's list"):
        has_checkpoints(str(tmp_path))
    (tmp_path / LIST).unlink()
    assert not has_checkpoints(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cut off", "folder gone"])
def test_a_run_goes_on_with_a_mended_list(
    loss: str,
    trained_out: Path,
    tiny_overrides: dict[str, str],
    ray_session: None,
    copied_out: Path,
    listening: tuple[Console, list[str]],
) -> None:
    out = copied_out
    listed = out / LIST
    if loss == "cut off":
        listed.write_text(listed.read_text()[:40])
    else:
        shutil.rmtree(
            out / "checkpoints" / json.loads(listed.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
        )
    console, said = listening
    longer = load_config(None, {**tiny_overrides, "out": str(out), "training.epochs": "3", "cluster.workers": "1"})
    assert check_out(longer) is None
    assert not train_model(longer, console=console).was_finished
    assert sum("made anew from" in line for line in said) == 1
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    before = list(csv.DictReader((trained_out / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert rows[0] == before[0]
    assert (rows[1] == before[1]) == (loss == "cut off"), "done once more only where its checkpoint was lost"
