"""The schedule, and which variables decay."""

import itertools

import keras
import numpy as np
import pytest

from batchseg.config import TrainingConfig
from batchseg.errors import UserError
from batchseg.optimizers import WeightAverage, build_optimizer, build_schedule
from batchseg.train_task import choose_class_weights


def test_schedule_warms_up_and_decays() -> None:
    schedule = build_schedule(TrainingConfig(epochs=10, learning_rate=1.0, warmup_epochs=1), steps_per_epoch=10)
    rates = [float(schedule(step)) for step in range(101)]
    assert max(rates) == pytest.approx(1.0, rel=1e-3)
    assert int(np.argmax(rates)) in (9, 10, 11)
    assert rates[0] <= 0.11
    assert rates[-1] == pytest.approx(0.01, abs=2e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[11:]))


def test_schedule_without_warm_up_starts_at_the_peak() -> None:
    schedule = build_schedule(TrainingConfig(epochs=1, learning_rate=0.5, warmup_epochs=0), steps_per_epoch=4)
    assert float(schedule(0)) == pytest.approx(0.5)


def test_norms_and_biases_do_not_decay() -> None:
    kernel, bias = keras.Variable(np.ones((2, 2)), name="k"), keras.Variable(np.ones(2), name="b")
    optimizer = build_optimizer(TrainingConfig(weight_decay=0.5, learning_rate=0.1, warmup_epochs=0), 1, [kernel, bias])
    optimizer.apply([keras.ops.zeros((2, 2)), keras.ops.zeros(2)], [kernel, bias])
    assert np.asarray(kernel).max() < 1
    np.testing.assert_array_equal(np.asarray(bias), 1)


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_other_schedules(schedule: str) -> None:
    config = TrainingConfig(epochs=10, learning_rate=2.0, warmup_epochs=0, schedule=schedule)
    rates = [float(build_schedule(config, 10)(step)) for step in (0, 50, 100)]
    half = 2 * (0.01 + 0.99 * 0.5**0.9)
    assert rates == pytest.approx([2.0, half, 0.02] if schedule == "poly" else [2.0, 2.0, 2.0], rel=1e-4)


def step_once(config: TrainingConfig, steps: int = 1) -> list[float]:
    """How far (a kernel of the encoder, one outside) have moved under a gradient of ones."""
    variables = [keras.Variable(np.ones((2, 2)), name=name) for name in ("inside", "outside")]
    optimizer = build_optimizer(config, 2, variables, variables[:1])
    for _ in range(steps):
        optimizer.apply([keras.ops.ones((2, 2))] * 2, variables)
    return [1 - float(np.asarray(variable)[0, 0]) for variable in variables]


def test_the_encoder_takes_its_share_of_the_rate() -> None:
    plain = {"optimizer": "sgd", "learning_rate": 0.1, "warmup_epochs": 0, "clip_norm": 0, "weight_decay": 0.5}
    inside, outside = step_once(TrainingConfig(**plain, encoder_rate=0.25))
    assert inside == pytest.approx(outside / 4, rel=1e-4), "decay follows the rate of its variable"
    # Decay of 0.5 * 0.1, then Nesterov's first step: 0.1 * (1 + momentum).
    assert outside == pytest.approx(0.05 + 0.19, rel=1e-4)


def test_a_frozen_encoder_moves_after_its_epochs() -> None:
    config = TrainingConfig(learning_rate=0.1, warmup_epochs=0, freeze_encoder_epochs=1)
    inside, outside = step_once(config, steps=2)
    assert inside == 0
    assert outside > 0.05
    assert step_once(config, steps=3)[0] > 0.05


def test_the_whole_gradient_is_clipped() -> None:
    config = TrainingConfig(optimizer="sgd", learning_rate=1.0, warmup_epochs=0, weight_decay=0, clip_norm=1.0)
    moved = step_once(config)
    assert moved == pytest.approx([1.9 / 8**0.5] * 2, rel=1e-4), "eight ones have a norm of sqrt(8)"


def test_an_average_follows_and_smooths() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    (kernel,) = model.weights
    kernel.assign([[0.0]])
    average = WeightAverage(model, horizon_steps=4)
    expected = 0.0
    for done in range(1, 200):
        kernel.assign([[float(done % 2)]])
        average.update(done)
        keep = min(0.75, (1 + done) / (10 + done))
        expected = keep * expected + (1 - keep) * (done % 2)
    assert float(np.asarray(average.weights[0]).item()) == pytest.approx(expected, rel=1e-5)
    assert 0.3 < expected < 0.7
    assert WeightAverage(model, horizon_steps=0).weights == model.weights


def test_class_weights_are_roots_of_median_frequency() -> None:
    names = ["a", "b", "c", "d"]
    assert choose_class_weights("sqrt_median_frequency", [400, 100, 25, 0], names) == [0.5, 1.0, 2.0, 1.0]
    assert choose_class_weights("median_frequency", [400, 100, 25, 0], names) == [0.25, 1.0, 4.0, 1.0]
    assert choose_class_weights("sqrt_median_frequency", [10**6, 10**6, 1], names[:3]) == [1.0, 1.0, 10.0]
    # Not among the images that were looked at: the rarest of all, if it occurs.
    seen = [400, 100, 25, 0]
    assert choose_class_weights("median_frequency", seen, names, is_sample=True) == [0.25, 1.0, 4.0, 10.0]
    assert choose_class_weights((1.0, 2.0), [5, 5], names[:2]) == [1.0, 2.0]
    assert choose_class_weights("none", [5, 5], names[:2]) is None
    with pytest.raises(UserError, match=r"training\.class_weights has 2 numbers, the data has 4 classes: a, b, c, d"):
        choose_class_weights((1.0, 2.0), [1, 1, 1, 1], names)
