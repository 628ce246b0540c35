"""The section `augment` of a training config."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from batchseg.knobs import Range, Section, Share, SizeHw, none_to_null


class AugmentConfig(Section):
    enabled: bool = Field(True, description="false trains on the whole fitted image, unchanged")
    strength: float = Field(
        1.0, ge=0, le=4, description="factor on all that follows but crops; 1 is as given, 0 leaves crops alone"
    )
    crop: Annotated[SizeHw | None, BeforeValidator(none_to_null)] = Field(
        None, description="height, width in pixels of a training crop; none is the whole image"
    )
    rare_crops: Share = Field(
        0.0, description="share of crops around a pixel of a class drawn evenly from those in the mask; 0 is off"
    )
    scale: Range = Field((0.5, 2.0), description="smallest and largest random zoom; 1,1 is off")
    rotation: float = Field(0.0, ge=0, le=180, description="largest angle either way, in degrees; 0 is off")
    flip: Share = Field(0.5, description="share of images mirrored left to right; 0 is off")
    color: Share = Field(0.3, description="strength of brightness, contrast, saturation and tint; 0 is off")
    blur: Share = Field(0.0, description="share of images blurred, by up to 2 pixels; 0 is off")
    noise: Share = Field(0.0, description="share of images with noise, of up to 12 of 255 grey levels; 0 is off")
    jpeg: Share = Field(0.0, description="share of images with JPEG artefacts, of quality 20 to 80; 0 is off")
    class_mix: Share = Field(
        0.0, description="share of images into which half of the classes of another are pasted (ClassMix); 0 is off"
    )
    cutout: Share = Field(0.0, description="share of images with up to three rectangles blanked and ignored; 0 is off")

    @model_validator(mode="after")
    def _check_scale(self) -> "AugmentConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}; allowed is 0 < smallest <= largest")
        return self

    def apply_strength(self) -> "AugmentConfig":
        """The same with `strength` multiplied in: zooms in their logarithm, shares up to 1."""
        shares = ("flip", "color", "blur", "noise", "jpeg", "class_mix", "cutout")
        return self.model_copy(
            update={
                "strength": 1.0,
                "scale": (self.scale[0] ** self.strength, self.scale[1] ** self.strength),
                "rotation": min(180.0, self.rotation * self.strength),
                **{name: min(1.0, getattr(self, name) * self.strength) for name in shares},
            }
        )
