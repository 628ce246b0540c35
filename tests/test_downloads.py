"""ImageNet weights that Keras fetches: here it finds them in its own folder, as after a download."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import pytest
from keras.src.legacy.saving import legacy_h5_format


@pytest.mark.slow
def test_two_workers_begin_with_imagenet_weights(tiny_overrides: dict[str, str], tmp_path: Path) -> None:
    fetched = tmp_path / "keras" / "models" / "mobilenet_2_5_224_tf_no_top.h5"
    fetched.parent.mkdir(parents=True)
    encoder = keras.applications.MobileNet((224, 224, 3), alpha=0.25, include_top=False, weights=None)
    with h5py.File(fetched, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, encoder)
    given = {
        **tiny_overrides,
        "model.encoder_weights": "imagenet",
        "training.epochs": "1",
        "out": str(tmp_path / "out"),
    }
    options = [part for key, value in given.items() for part in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "batchseg", "train", *options, "--address", "local"],
        env={**os.environ, "KERAS_HOME": str(tmp_path / "keras")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "bundle" / "bundle.json").exists()
