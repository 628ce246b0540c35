"""The schedule, and which variables decay."""

import itertools

import keras
import numpy as np
import pytest

from batchseg.config import TrainingConfig
from batchseg.errors import UserError
from batchseg.optimizers import build_optimizer, build_schedule
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


def test_class_weights_are_roots_of_median_frequency() -> None:
    names = ["a", "b", "c", "d"]
    assert choose_class_weights("sqrt_median_frequency", [400, 100, 25, 0], names) == [0.5, 1.0, 2.0, 1.0]
    assert choose_class_weights("median_frequency", [400, 100, 25, 0], names) == [0.25, 1.0, 4.0, 1.0]
    assert choose_class_weights("sqrt_median_frequency", [10**6, 10**6, 1], names[:3]) == [1.0, 1.0, 10.0]
    assert choose_class_weights((1.0, 2.0), [5, 5], names[:2]) == [1.0, 2.0]
    assert choose_class_weights("none", [5, 5], names[:2]) is None
    with pytest.raises(UserError, match=r"training\.class_weights has 2 numbers, the data has 4 classes: a, b, c, d"):
        choose_class_weights((1.0, 2.0), [1, 1, 1, 1], names)
