"""Ray Train's list of checkpoints in `out`. Ray writes it in place, so that a kill can cut it off, and stops at every
start when a listed folder is gone: then the list is made anew, from the checkpoints themselves.
"""

import json
import zipfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from batchseg import storage
from batchseg.access import reach
from batchseg.errors import UserError
from batchseg.train_task import ARRAYS_FILE, STATE_FILE, Progress, describe_checkpoint

CHECKPOINT_FOLDER = "checkpoints"
_LIST_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's own


def has_checkpoints(out: str) -> bool:
    """True if Ray Train has written its list there. Raises UserError when it is cut off and no checkpoint is whole."""
    location = storage.join(out, CHECKPOINT_FOLDER, _LIST_FILE)
    if not storage.exists(location):
        return False
    if _read_list(location) is None and not _find_whole(out):
        raise UserError(_describe_loss(out))
    return True


def mend_list(out: str, say: Callable[[str], None]) -> None:
    """Makes the list anew where it is cut off, or names checkpoints that are not whole, and says so; needs the lease.

    Ray goes on from the newest that is left. Raises UserError where none is whole.
    """
    location = storage.join(out, CHECKPOINT_FOLDER, _LIST_FILE)
    if not storage.exists(location):
        return
    listed = _read_list(location)
    whole = _find_whole(out, listed)
    if not whole:
        raise UserError(_describe_loss(out))
    # A list without ranks is one of an older batchseg.
    if listed is not None and listed.keys() == whole.keys() and all("rank" in metrics for metrics in listed.values()):
        return
    storage.write_atomic(location, json.dumps(_rebuild_list(whole)))
    lost = sorted(set(listed or ()) - whole.keys())
    reason = "was cut off" if listed is None else f"named {', '.join(lost)}, not whole" if lost else "had no ranks"
    newest = max(map(_measure_progress, whole.values()))
    say(
        f"{location}, Ray's list of checkpoints, {reason}: made anew from {len(whole)} whole checkpoints; "
        f"{newest[0]} epochs and {newest[1]} steps are done"
    )


def _read_list(location: str) -> dict[str, dict[str, Any]] | None:
    """Folder name -> what was reported with it; None where the list is cut off."""
    try:
        entries = json.loads(storage.read_bytes(location))["checkpoint_results"]
        return {entry["checkpoint_dir_name"]: entry["metrics"] for entry in entries}
    except (ValueError, KeyError, TypeError):
        return None


def _find_whole(out: str, names: Iterable[str] | None = None) -> dict[str, Progress]:
    """Folder name -> how far the run was, of those among `names` that are whole; None: of all that lie there."""
    folder = storage.join(out, CHECKPOINT_FOLDER)
    if names is None:
        names = [name for name in storage.list_names(folder) if name != _LIST_FILE]
    found = {name: _read_progress(storage.join(folder, name)) for name in names}
    return {name: progress for name, progress in found.items() if progress}


def _read_progress(folder: str) -> Progress | None:
    """None for what is no whole checkpoint. Raises OSError for one that cannot be reached."""
    try:
        state = json.loads(storage.read_bytes(storage.join(folder, STATE_FILE)))
        reach(folder, lambda: _check_arrays(storage.join(folder, ARRAYS_FILE)))
        return Progress.from_json(state)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _check_arrays(location: str) -> None:
    """A ZIP file ends with its table of contents: one that was cut off has none."""
    with storage.open_file(location) as stream, zipfile.ZipFile(stream):
        pass


def _measure_progress(progress: Progress) -> tuple[int, int]:
    """(epochs, steps of the next one) that are done."""
    return len(progress.history), len(progress.losses)


def _rebuild_list(whole: dict[str, Progress]) -> dict[str, Any]:
    """Ray's _CheckpointManagerState (2.60): the worst first, each with the number of its report; and the newest."""
    in_time = sorted(whole, key=lambda name: (*_measure_progress(whole[name]), name))
    metrics = {name: describe_checkpoint(whole[name]) for name in in_time}
    entries = {name: {"version": 0, "checkpoint_dir_name": name, "metrics": metrics[name]} for name in in_time}
    ranked = sorted(in_time, key=lambda name: metrics[name]["rank"])
    return {
        "ray_version": version("ray"),
        "checkpoint_results": [entries[name] for name in ranked],
        "checkpoint_report_indices": [in_time.index(name) for name in ranked],
        "latest_checkpoint_result": entries[in_time[-1]],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(in_time),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }


def _describe_loss(out: str) -> str:
    return (
        f"{out}/{CHECKPOINT_FOLDER} has no whole checkpoint, and {_LIST_FILE}, Ray's list of them, is damaged. "
        f"To begin anew, delete {out}/{CHECKPOINT_FOLDER}."
    )
