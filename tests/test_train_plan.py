"""`train --dry-run`: what it prints, and that it writes nothing."""

import io
from pathlib import Path

import pytest

from batchseg.config import load_config
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.train_plan import plan_training


def test_a_dry_run_measures_and_writes_nothing(
    tiny_overrides: dict[str, str], ray_session: None, tmp_path: Path
) -> None:
    stream = io.StringIO()
    config = load_config(None, {**tiny_overrides, "out": str(tmp_path / "out"), "cluster.workers": "1"})
    cost = plan_training(config, console=Console(stream))
    assert not (tmp_path / "out").exists()
    assert cost.step_seconds > 0
    assert cost.first_step_seconds >= cost.step_seconds
    assert cost.cached_bytes == (48 + 12) * 96 * 128 * 4
    assert cost.trainable < sum(count for _, count in cost.layers)
    assert {"encoder", "head"} <= {name for name, _ in cost.layers}
    printed = stream.getvalue()
    for text in ("batch_size: 8", "unet on mobilenet: 48 train and 12 val images", "6 steps", "GiB a worker"):
        assert text in printed, text


def test_a_dry_run_refuses_what_training_refuses(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    config = load_config(None, {**tiny_overrides, "out": str(tmp_path / "out"), "training.batch_size": "49"})
    with pytest.raises(UserError, match=r"training\.batch_size is 49, the train split has 48 images"):
        plan_training(config)
