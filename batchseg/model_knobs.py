"""The section `model` of a training config."""

import json
import os
import zipfile
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from batchseg.knobs import PositiveInt, Section, none_to_null, split_words


def null_to_none(value: Any) -> Any:
    """Null in YAML means the word none."""
    return "none" if value is None else value


Encoder = Literal[
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_v2_b0",
    "efficientnet_v2_b1",
    "efficientnet_v2_b2",
    "efficientnet_v2_b3",
    "resnet50",
    "resnet101",
    "convnext_tiny",
    "convnext_small",
]
ARCHITECTURES = ("unet", "deeplabv3plus", "fpn")
CHANNELS = (256, 128, 64, 32)
WIDTH = 256


class ModelConfig(Section):
    architecture: str = Field(
        "unet",
        description="unet, deeplabv3plus, fpn, or PATH.keras: a Keras model of yours that takes NxHxWx3, RGB 0 to 255, "
        "scales within, and gives NxHxWxC logits. With a PATH the other knobs of the model but start_from do nothing; "
        "a layer of it called encoder takes training.encoder_rate and freeze_encoder_epochs",
    )
    encoder: Encoder = Field("mobilenet_v2", description="encoder of keras.applications")
    encoder_width: float = Field(
        1.0, gt=0, description="width multiplier (alpha) of the encoder; 1.0 is the full width. Only mobilenets"
    )
    encoder_weights: Annotated[str, BeforeValidator(null_to_none)] = Field(
        "imagenet", description="imagenet (downloads), a path to .weights.h5, or none"
    )
    encoder_padding: Literal["keras", "torch"] = Field(
        "keras",
        description="keras pads before each stride as keras.applications does; torch pads all four sides, "
        "for weights converted from torchvision. Only mobilenet_v2",
    )
    output_stride: Literal[16, 8] = Field(
        16,
        description="pixels between the coarsest features; 8 is finer and about three times slower. Only deeplabv3plus",
    )
    decoder_channels: Annotated[tuple[PositiveInt, ...], BeforeValidator(split_words)] = Field(
        CHANNELS,
        description="channels of the decoder from stride 16 up; 4 numbers end at stride 2, 5 at stride 1. Only unet",
    )
    decoder_width: PositiveInt = Field(WIDTH, description="channels of the decoder. Only deeplabv3plus and fpn")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of features dropped before the head; 0 is off")
    stochastic_depth: Literal["keras"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "keras",
        description="share of the last residual branch that training drops, fewer before it; keras is what "
        "keras.applications has: 0.2 in efficientnets, else 0; 0 is off. Only efficientnets and convnexts",
    )
    start_from: Annotated[str | None, BeforeValidator(none_to_null)] = Field(
        None,
        description="folder of a bundle to take the weights from, but for the head if classes differ; none is off",
    )

    @property
    def is_given(self) -> bool:
        """Whether the architecture is a model file."""
        return self.architecture not in ARCHITECTURES

    def has_encoder(self) -> bool:
        """Whether there is a layer "encoder", which can learn at a rate of its own; read from the page in the file.

        True for a file that cannot be read: opening it says why.
        """
        if not self.is_given:
            return True
        try:
            with zipfile.ZipFile(os.path.expanduser(self.architecture)) as file:
                page = json.loads(file.read("config.json"))
            return "encoder" in [layer["config"]["name"] for layer in page["config"]["layers"]]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return True

    @model_validator(mode="after")
    def _check_channels(self) -> "ModelConfig":
        if len(self.decoder_channels) not in (4, 5):
            raise ValueError(f"decoder_channels has {len(self.decoder_channels)} numbers; 4 or 5 are allowed")
        return self

    @model_validator(mode="after")
    def _check_architecture(self) -> "ModelConfig":
        if self.is_given and not self.architecture.endswith(".keras"):
            allowed = ", ".join(ARCHITECTURES)
            raise ValueError(
                f"architecture is {self.architecture!r}; allowed are {allowed}, or a path that ends in .keras"
            )
        return self

    @model_validator(mode="after")
    def _check_encoder(self) -> "ModelConfig":
        if self.encoder_padding == "torch" and self.encoder != "mobilenet_v2":
            raise ValueError(
                f"encoder_padding is torch, but encoder is {self.encoder}; only mobilenet_v2 can be padded so"
            )
        if self.encoder_width != 1 and not self.encoder.startswith("mobilenet"):
            raise ValueError(
                f"encoder_width is {self.encoder_width:g}, but {self.encoder} has one width only; allowed is 1"
            )
        return self

    @model_validator(mode="after")
    def _check_stochastic_depth(self) -> "ModelConfig":
        depth = self.stochastic_depth
        if depth != "keras" and depth > 0 and not self.encoder.startswith(("efficientnet", "convnext")):
            raise ValueError(
                f"stochastic_depth is {depth:g}, but encoder is {self.encoder}; "
                "only efficientnets and convnexts have it, the others have dropout"
            )
        return self

    @model_validator(mode="after")
    def _check_decoder(self) -> "ModelConfig":
        """A knob that does nothing is a mistake, not a detail."""
        if self.is_given:
            return self
        if self.architecture != "unet" and self.decoder_channels != CHANNELS:
            raise ValueError(
                f"decoder_channels is {list(self.decoder_channels)}, but architecture is {self.architecture}; "
                "only unet has it, the others have decoder_width"
            )
        if self.architecture == "unet" and self.decoder_width != WIDTH:
            raise ValueError(
                f"decoder_width is {self.decoder_width}, but architecture is unet, which has decoder_channels instead"
            )
        if self.architecture != "deeplabv3plus" and self.output_stride != 16:
            raise ValueError(
                f"output_stride is {self.output_stride}, but architecture is {self.architecture}; "
                "only deeplabv3plus has it"
            )
        return self
