"""The sections of a training config: every knob with its type, default, unit and one line of help."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def split_words(value: Any) -> Any:
    """`360,480` and `360x480` on a command line mean the same as [360, 480] in YAML."""
    if isinstance(value, str):
        return [part for part in value.replace("x", ",").strip("[]() ").split(",") if part.strip()]
    return value


def none_to_null(value: Any) -> Any:
    """The word none means null, as in YAML."""
    return None if value == "none" else value


SizeHw = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(split_words)]
Range = Annotated[tuple[float, float], BeforeValidator(split_words)]


class Section(BaseModel):
    # validate_default keeps a wrong default from hiding until somebody sets the key
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class InputConfig(Section):
    size: SizeHw = Field(
        (360, 480), description="height, width in pixels that each image is resized to; with fit: tile those of a tile"
    )
    fit: Literal["resize", "letterbox", "tile"] = Field(
        "resize",
        description="resize stretches to `size`; letterbox keeps the aspect ratio and pads; "
        "tile leaves images at their own size and moves a window over them",
    )
    overlap: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(none_to_null)] = Field(
        None,
        description="pixels that neighbouring tiles share, rounded up to the stride of 32; "
        "none is half of the tile's smaller side, as in nnU-Net, and less is faster. Only with fit: tile",
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> "InputConfig":
        if self.overlap is None:
            return self
        if self.fit != "tile":
            raise ValueError(f"overlap is {self.overlap}, but fit is {self.fit}; only fit: tile has an overlap")
        if self.overlap > min(self.size) // 2:
            raise ValueError(
                f"overlap is {self.overlap}; at most half of the tile's smaller side is allowed: {min(self.size) // 2}"
            )
        return self

    @property
    def tile_overlap(self) -> int:
        """The overlap meant by `none` filled in; 0 where there are no tiles."""
        if self.fit != "tile":
            return 0
        return min(self.size) // 2 if self.overlap is None else self.overlap


def _split_losses(value: Any) -> Any:
    """`cross_entropy=1,dice=0.5` on a command line means the same as {cross_entropy: 1, dice: 0.5} in YAML."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.strip("{} ").replace(":", "=").split(",") if part.strip()]
        return {name.strip(): share.strip() or 1.0 for name, _, share in pairs}
    return value


def _split_weights(value: Any) -> Any:
    """`1,2.5,1` on a command line means the same as [1, 2.5, 1] in YAML."""
    return split_words(value) if isinstance(value, str) and not value.strip()[:1].isalpha() else value


LossName = Literal["cross_entropy", "dice", "focal", "lovasz", "hard_pixels"]
Positive = Annotated[float, Field(gt=0)]


class TrainingConfig(Section):
    epochs: PositiveInt = Field(60, description="passes over the train split")
    batch_size: PositiveInt = Field(16, description="images a step, over all workers together")
    accumulation: PositiveInt = Field(
        1, description="parts that each worker's share of a batch is computed in, to save memory; 1 is off"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with Nesterov momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate; 1e-3 suits adamw, 1e-2 sgd")
    schedule: Literal["cosine", "poly", "constant"] = Field(
        "cosine", description="decay of the rate to 1 % at the last step: cosine, poly (power 0.9), or constant"
    )
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up; 0 is off")
    encoder_rate: float = Field(1.0, gt=0, le=1, description="share of the rate that the encoder takes; 1 is off")
    freeze_encoder_epochs: float = Field(
        0.0, ge=0, description="epochs at the start in which the encoder's weights stay; 0 is off"
    )
    weight_decay: float = Field(1e-2, ge=0, description="decoupled decay, not on norms and biases; 0 is off")
    clip_norm: float = Field(5.0, ge=0, description="largest norm of the whole gradient; 0 is off")
    average_epochs: float = Field(
        1.0, ge=0, description="epochs that the moving average of weights reaches back; it is shipped; 0 is off"
    )
    losses: Annotated[dict[LossName, Positive], BeforeValidator(_split_losses)] = Field(
        {"cross_entropy": 1.0, "dice": 0.5},
        description="losses and their shares in the sum: cross_entropy, dice, focal, lovasz, hard_pixels "
        "(cross-entropy over the hardest pixels of each image)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the cross-entropy's target spread over all classes; 0 is off"
    )
    focal_gamma: float = Field(2.0, ge=0, description="how far the focal loss looks away from easy pixels; 0 is off")
    hard_pixel_share: float = Field(
        0.25, gt=0, le=1, description="share of each image's pixels that hard_pixels keeps; 1 is all"
    )
    class_weights: Annotated[
        Literal["none", "median_frequency", "sqrt_median_frequency"] | tuple[Positive, ...],
        BeforeValidator(_split_weights),
    ] = Field(
        "none",
        description="weights of the classes in all losses but dice and lovasz: none, median_frequency "
        "(median share / share), its root sqrt_median_frequency, or a number for each class",
    )
    batch_norm_momentum: float = Field(0.9, gt=0, lt=1, description="momentum of the moving statistics")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="compute type of training; val and the bundle are always float32"
    )
    xla: bool = Field(False, description="compile the step with XLA: for one GPU; slower on a CPU. Only one worker")
    val_every: PositiveInt = Field(1, description="epochs between two scorings of val; the last epoch always is scored")
    picture_every: Annotated[int, Field(ge=0)] = Field(
        5,
        description="epochs between two pictures of val, at least: only a scored epoch has one, and the last; 0 is off",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between two checkpoints within an epoch, for long epochs; 0 is one at its end alone"
    )
    stop_after: Annotated[int, Field(ge=0)] = Field(
        0, description="scorings of val without a better mIoU after which training ends early; 0 is off"
    )
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")
    cache_gb: float = Field(4.0, ge=0, description="memory a worker may use to keep decoded images, in GB; 0 is off")

    @model_validator(mode="after")
    def _check_losses(self) -> "TrainingConfig":
        if not self.losses:
            raise ValueError("losses is empty; at least one loss is needed")
        return self


Amount = Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _split_workers(value: Any) -> Any:
    """`1,4` on a command line means the same as [1, 4] in YAML."""
    return split_words(value) if isinstance(value, str) and set(value) & set(",x[") else value


class ClusterConfig(Section):
    workers: Annotated[
        Literal["auto"] | PositiveInt | tuple[PositiveInt, PositiveInt], BeforeValidator(_split_workers)
    ] = Field(
        "auto", description="auto is one per GPU, without GPUs 1; smallest,largest lets the group shrink and grow"
    )
    gpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=0, le=1)] = Field(
        "auto", description="0 or 1; auto is 1 where the cluster has a GPU for each worker, else 0"
    )
    cpus_per_worker: Amount = Field("auto", description="auto shares the CPUs of the cluster between the workers")
    max_failures: int = Field(3, ge=0, description="how often a lost worker restarts the group; 0 is never")

    @model_validator(mode="after")
    def _check_workers(self) -> "ClusterConfig":
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers is {list(self.workers)}; allowed is smallest <= largest")
        return self
