"""`train --dry-run`: what it prints, and that it writes nothing."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchseg.config import load_config
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.train_plan import plan_training


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(
    tiny_overrides: dict[str, str], drawn_data: Path, ray_session: None, tmp_path: Path
) -> None:
    stream = io.StringIO()
    config = load_config(None, {**tiny_overrides, "out": str(tmp_path / "out"), "cluster.workers": "1"})
    cost = plan_training(config, console=Console(stream))
    assert not (tmp_path / "out").exists()
    assert cost.step_seconds > 0
    assert cost.first_step_seconds >= cost.step_seconds
    masks = [np.array(Image.open(path)).size for path in sorted((drawn_data.parent / "val" / "masks").iterdir())]
    exact = (48 + 12) * 96 * 128 * 3 + 48 * 96 * 128 + sum(masks)
    assert cost.cached_bytes == pytest.approx(exact, rel=0.1), "val masks are kept at the size of their images"
    assert [name for name, _, _ in cost.parts] == ["encoder", "decoder", "head"]
    assert all(0 < trainable <= total for _, total, trainable in cost.parts)
    assert cost.parts[2][1:] == (16 * 6 + 6, 16 * 6 + 6)
    printed = stream.getvalue()
    for text in ("batch_size: 8", "unet on mobilenet: 48 train and 12 val images", "6 steps", "GiB a worker"):
        assert text in printed, text


def test_a_dry_run_refuses_what_training_refuses(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    config = load_config(None, {**tiny_overrides, "out": str(tmp_path / "out"), "training.batch_size": "49"})
    with pytest.raises(UserError, match=r"training\.batch_size is 49, the train split has 48 images"):
        plan_training(config)


def test_a_dry_run_refuses_the_folder_of_another_config(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: mine\n")
    with pytest.raises(UserError, match=r"holds a config\.yaml that `train` did not write"):
        plan_training(load_config(None, {**tiny_overrides, "out": str(tmp_path)}))
