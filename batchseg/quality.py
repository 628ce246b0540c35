"""What may be asked of a prediction beyond the model's plain answer, and how a mask is finished. No Keras."""

from dataclasses import dataclass

from batchseg import geometry as geo
from batchseg.classes import MaskArray
from batchseg.errors import UserError
from batchseg.regions import drop_small_regions


@dataclass(frozen=True)
class InferenceOptions:
    """flip: average with the mirrored image. scales: average over the model input at these scales.

    min_confidence: a pixel below it abstains and becomes 255; 0 is off. score_map: keep the confidence of each pixel.
    min_region: connected regions of fewer pixels take the class around them; 0 is off.
    Raises UserError for a value that is not allowed, naming the flag.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    min_confidence: float = 0.0
    score_map: bool = False
    min_region: int = 0

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 4 for scale in self.scales):
            raise UserError(f"--scales is {_join(self.scales)!r}; numbers from 0.1 to 4 are allowed")
        if not 0 <= self.min_confidence < 1:
            raise UserError(f"--min-confidence is {self.min_confidence:g}; 0 (off) up to below 1 is allowed")
        if self.min_region < 0:
            raise UserError(f"--min-region is {self.min_region}; 0 (off) or a number of pixels is allowed")

    @property
    def averages(self) -> bool:
        """True if the model is asked more than once per image."""
        return self.flip or self.scales != (1.0,)


def finish_mask(class_ids: MaskArray, plan: geo.Plan, options: InferenceOptions) -> MaskArray:
    """uint8 in the canvas frame -> uint8 at the image's own size, small regions dropped. What every mask goes through,
    in the predictor, evaluate and segment.
    """
    return drop_small_regions(geo.restore_mask(class_ids, plan), options.min_region)


def _join(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
