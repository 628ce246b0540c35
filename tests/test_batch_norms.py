"""The fused batch norm of training against the one of Keras: outputs, gradients, moving statistics."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchseg.batch_norms import speed_up_batch_norms
from batchseg.runtime import load_tensorflow

SHAPE = (3, 4, 5, 6)


def make_model(*, center: bool = True, scale: bool = True) -> keras.Model:
    """A convolution before and after, so that gradients go through."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, SHAPE[-1]))
    norm = keras.layers.BatchNormalization(momentum=0.7, epsilon=1e-2, center=center, scale=scale, name="norm")
    outputs = keras.layers.Conv2D(2, 1, name="last")(norm(keras.layers.Conv2D(4, 3, padding="same")(inputs)))
    return keras.Model(inputs, outputs)


def compute_gradients(model: keras.Model, images: Any) -> tuple[Any, list[Any]]:
    """(outputs, gradients) of a loss that adds up over images."""
    tf = load_tensorflow()
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = tf.reduce_sum(outputs**2 * np.arange(1, 3, dtype=np.float32))
    return outputs, tape.gradient(loss, model.trainable_variables)


def run_model(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    outputs, gradients = load_tensorflow().function(compute_gradients)(model, images)
    return np.asarray(outputs), [np.asarray(g) for g in gradients], [np.asarray(w) for w in model.weights]


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_fused_is_what_keras_computes(options: dict[str, bool]) -> None:
    images = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
    plain, fused = make_model(**options), make_model(**options)
    speed_up_batch_norms(load_tensorflow(), fused, workers=1)
    for expected, found in zip(run_model(plain, images), run_model(fused, images), strict=True):
        for left, right in zip(expected, found, strict=True):
            np.testing.assert_allclose(right, left, rtol=2e-4, atol=2e-4)


def test_frozen_norms_keep_their_statistics() -> None:
    images = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
    model = make_model()
    model.get_layer("norm").trainable = False
    speed_up_batch_norms(load_tensorflow(), model, workers=1)
    before = np.asarray(model.get_layer("norm").moving_mean).copy()
    outputs, _, _ = run_model(model, images)
    np.testing.assert_array_equal(np.asarray(model.get_layer("norm").moving_mean), before)
    np.testing.assert_allclose(outputs, np.asarray(model(images, training=False)), rtol=1e-5, atol=1e-5)


def compare_shares_with_whole() -> None:
    """Two replicas, of two images and of one, against Keras with all three. In a process whose CPU is still one."""
    tf = load_tensorflow()
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    images = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
    plain = make_model()
    with strategy.scope():
        model = make_model()
    speed_up_batch_norms(tf, model, workers=2)
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant([images[:2], images[2:]][context.replica_id_in_sync_group])
    )

    @tf.function
    def compute() -> Any:
        gradients = strategy.run(lambda share: compute_gradients(model, share)[1], args=(shares,))
        return [strategy.reduce(tf.distribute.ReduceOp.SUM, gradient, axis=None) for gradient in gradients]

    found = [np.asarray(gradient) for gradient in compute()] + [weight.numpy() for weight in model.weights]
    _, gradients, weights = run_model(plain, images)
    for left, right in zip(gradients + weights, found, strict=True):
        np.testing.assert_allclose(right, left, rtol=2e-4, atol=2e-4)


def test_synchronised_is_what_keras_computes_of_the_whole_batch() -> None:
    source = "from test_batch_norms import compare_shares_with_whole; compare_shares_with_whole()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
