"""Options are checked where they come in: what was given, what is allowed."""

import math
from typing import Any

import click
import pytest

from batchseg.cli import cli
from batchseg.errors import UserError
from batchseg.options import SegmentOptions
from batchseg.quality import InferenceOptions

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("option", "values", "allowed"),
    [
        ("batch_size", [0, -1, 2.5, True, NAN], "a whole number of at least 1"),
        ("actors", [0, -2, 1.5], "a whole number of at least 1"),
        ("overlay_size", [-5, 0.5, None], "a whole number of at least 0"),
        ("max_megapixels", [0, -1, NAN, INF], "a number above 0"),
        ("max_failed_share", [0, -0.1, 1.1, NAN], "a share above 0 up to 1"),
        ("gpus_per_actor", [-1, -0.5, NAN, INF], "0 or more"),
    ],
)
def test_a_number_that_is_not_allowed(option: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(UserError) as caught:
            SegmentOptions(**{option: value})
        shown = repr(value) if "whole" in allowed else f"{value:g}"
        assert f"--{option.replace('_', '-')} is {shown}; " in str(caught.value)
        assert allowed in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, NAN, INF])
def test_a_confidence_that_is_not_allowed(value: float) -> None:
    with pytest.raises(UserError, match=r"--min-confidence is .*; 0 \(off\) up to below 1 is allowed"):
        SegmentOptions(inference=InferenceOptions(min_confidence=value))


def test_numbers_at_the_edge_are_allowed() -> None:
    options = SegmentOptions(
        batch_size=1, actors=1, overlay_size=0, max_megapixels=0.001, max_failed_share=1.0, gpus_per_actor=0.0
    )
    assert options.actors == 1


def test_plan_takes_the_options_of_segment() -> None:
    def describe(command: str) -> dict[str, Any]:
        return {option.name: option.to_info_dict() for option in cli.commands[command].params if option.name}

    planned = describe("plan")
    assert planned.pop("price_per_hour")
    assert planned == describe("segment")


@pytest.mark.parametrize("command", ["segment", "plan"])
def test_every_option_says_what_it_is_for(command: str) -> None:
    for option in cli.commands[command].params:
        if isinstance(option, click.Option):
            assert option.help, option.name
