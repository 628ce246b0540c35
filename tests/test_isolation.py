"""Inputs that kill the process which reads them cost a child, never the caller."""

import os
import signal
import time

import numpy as np
import pytest

from batchseg.errors import ImageError
from batchseg.isolation import ChildDiedError, IsolatedFunction


def act(order: str) -> object:
    """Does what a codec may do."""
    match order:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "hang":
            time.sleep(60)
        case "grow":
            return np.ones(2**31, np.uint8).sum()
        case "refuse":
            raise ImageError("decode", "no picture")
    return os.getpid(), np.arange(6).reshape(2, 3)


@pytest.fixture
def isolated():
    with IsolatedFunction(act, memory_bytes=2**28, timeout_s=1) as function:
        yield function


def test_answers_come_from_one_child(isolated: IsolatedFunction) -> None:
    (first, array), (second, _) = isolated("work"), isolated("work")
    assert first == second != os.getpid()
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("order", "reason"), [("crash", "signal SIGSEGV"), ("exit", "exit code 7"), ("hang", "took longer than 1 s")]
)
def test_a_death_is_told_and_the_next_call_has_a_new_child(isolated: IsolatedFunction, order: str, reason: str) -> None:
    before, _ = isolated("work")
    with pytest.raises(ChildDiedError, match=reason):
        isolated(order)
    after, _ = isolated("work")
    assert after != before


def test_memory_is_limited(isolated: IsolatedFunction) -> None:
    with pytest.raises(MemoryError):
        isolated("grow")
    isolated("work")


def test_what_the_function_raises_is_raised(isolated: IsolatedFunction) -> None:
    with pytest.raises(ImageError, match="no picture") as caught:
        isolated("refuse")
    assert caught.value.kind == "decode"


def test_no_child_outlives_its_owner() -> None:
    with IsolatedFunction(act, memory_bytes=2**28, timeout_s=5) as function:
        child, _ = function("work")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
