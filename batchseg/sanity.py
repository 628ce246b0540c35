"""Does this run make sense? A look at the first images: too many failures, empty masks, pictures of another kind."""

from dataclasses import dataclass
from typing import Any

from batchseg.errors import StoppedError

LOOKED_AT = 200
_STOP_SHARE, _WARN_SHARE = 0.95, 0.5
_RARE_IN_TRAINING = 0.05


@dataclass(frozen=True)
class Band:
    """Mean grey values, 0-255, between which nearly all training images lie (1st to 99th percentile)."""

    low: float
    high: float

    def holds(self, brightness: float) -> bool:
        """Half a grey level is left to rounding."""
        return self.low - 0.5 <= brightness <= self.high + 0.5


class SanityCheck:
    """Judges a run by the counters of its board.

    single_class_share: of the training masks; None where the bundle does not say.
    """

    def __init__(self, single_class_share: float | None, band: Band | None, max_failed_share: float, is_on: bool):
        self._single_class_share, self._band = single_class_share, band
        self._max_failed_share, self._is_on = max_failed_share, is_on
        self._has_looked = False

    def judge(self, counts: dict[str, Any]) -> list[str]:
        """Warnings, each once. Raises StoppedError for a run that has no hope."""
        # What has failed before will mostly fail again, so only images that are tried for the first time count.
        fresh, failed = counts.get("fresh", 0), counts.get("fresh_failed", 0)
        if fresh >= LOOKED_AT and self._max_failed_share < failed / fresh:
            raise StoppedError(
                f"{failed} of the first {fresh} images failed ({failed / fresh:.0%}); --max-failed-share allows "
                f"{self._max_failed_share:.0%}. Their rows say why."
            )
        ok = counts.get("ok", 0)
        if ok + counts.get("failed", 0) < LOOKED_AT or self._has_looked or not self._is_on or not ok:
            return []
        self._has_looked = True
        found = [self._judge_classes(counts.get("single_class", 0), ok), self._judge_light(counts, ok)]
        return [text for text in found if text]

    def _judge_classes(self, single: int, ok: int) -> str:
        share, before = single / ok, self._single_class_share
        text = f"{share:.0%} of the first {ok} masks hold a single class; of the training masks "
        if before is not None and before < _RARE_IN_TRAINING:
            return self._conclude(f"{text}{before:.0%} did", share)
        if share < _STOP_SHARE:
            return ""
        return f"warning: {text}" + ("it is not known" if before is None else f"{before:.0%} did")

    def _judge_light(self, counts: dict[str, Any], ok: int) -> str:
        share = counts.get("outside_brightness", 0) / ok
        if self._band is None:
            return ""
        text = (
            f"{share:.0%} of the first {ok} images are darker or brighter than 98 % of the training images "
            f"(mean grey {self._band.low:.0f} to {self._band.high:.0f})"
        )
        return self._conclude(text, share)

    def _conclude(self, text: str, share: float) -> str:
        if share < _WARN_SHARE:
            return ""
        if share >= _STOP_SHARE:
            raise StoppedError(f"{text}. Is this the right bundle for these images? --no-sanity-check goes on.")
        return f"warning: {text}"
