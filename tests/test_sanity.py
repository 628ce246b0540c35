"""When a run is stopped, warned about, or left alone."""

import pytest

from batchseg.errors import StoppedError
from batchseg.sanity import Band, SanityCheck

BAND = Band(80, 120)


def make_check(
    single: float | None = 0.0, band: Band | None = BAND, failed: float = 0.9, is_on: bool = True
) -> SanityCheck:
    return SanityCheck(single, band, failed, is_on)


def test_too_few_say_nothing() -> None:
    assert make_check().judge({"failed": 199, "fresh": 199, "fresh_failed": 199}) == []


@pytest.mark.parametrize(("failed", "stops"), [(190, True), (180, False)])
def test_a_hopeless_run_is_stopped(failed: int, stops: bool) -> None:
    counts = {"ok": 200 - failed, "failed": failed, "fresh": 200, "fresh_failed": failed}
    if stops:
        with pytest.raises(
            StoppedError, match=r"190 of the first 200 images failed \(95%\); --max-failed-share allows 90%"
        ):
            make_check().judge(counts)
    else:
        assert make_check().judge(counts) == []
    assert make_check(failed=1.0).judge({"failed": 1000, "fresh": 1000, "fresh_failed": 1000}) == [], "1 is never"
    assert make_check().judge({"failed": 1000, "fresh": 100, "fresh_failed": 100}) == [], "the others had failed before"


def test_masks_of_a_single_class() -> None:
    counts = {"ok": 200, "single_class": 195}
    with pytest.raises(
        StoppedError, match=r"98% of the first 200 masks hold a single class; of the training masks 1% did"
    ):
        make_check(single=0.01).judge(counts)
    (warning,) = make_check(single=0.05).judge(counts)
    assert warning.endswith("of the training masks 5% did"), "training had such masks too"
    (warning,) = make_check(single=None).judge(counts)
    assert warning.endswith("of the training masks it is not known"), "an old bundle does not say"
    assert make_check(single=None).judge({**counts, "single_class": 180}) == []
    assert make_check(single=0.01, is_on=False).judge(counts) == []
    check = make_check(single=0.01)
    (warning,) = check.judge({**counts, "single_class": 120})
    assert warning.startswith("warning: 60% of the first 200 masks")
    assert check.judge({**counts, "single_class": 200}) == [], "it looks once"


def test_images_of_another_light() -> None:
    with pytest.raises(
        StoppedError, match=r"darker or brighter than 98 % of the training images \(mean grey 80 to 120\)"
    ):
        make_check().judge({"ok": 200, "outside_brightness": 190})
    assert len(make_check().judge({"ok": 200, "outside_brightness": 100})) == 1
    assert make_check().judge({"ok": 200, "outside_brightness": 99}) == []
    assert make_check(band=None).judge({"ok": 200, "outside_brightness": 200}) == []
    assert Band(80, 120).holds(79.6)
    assert not Band(80, 120).holds(79)
