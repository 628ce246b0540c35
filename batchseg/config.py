"""Every knob of a training job: typed, with its default, unit and one line of help.

A config is one YAML page. Unknown keys are refused with the nearest known name; `--section.key value` overrides one.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from batchseg import storage
from batchseg.augment_knobs import AugmentConfig as AugmentConfig
from batchseg.errors import UserError
from batchseg.knobs import ClusterConfig as ClusterConfig
from batchseg.knobs import InputConfig as InputConfig
from batchseg.knobs import Section
from batchseg.knobs import TrainingConfig as TrainingConfig
from batchseg.model_knobs import ModelConfig as ModelConfig

RESOLVED_HEADER = "# resolved by batchseg train; data fingerprint "
"""First line of the page that a training run leaves, before the fingerprint of its data."""

DRAWN_DATA = "drawn"
"""Value of `data` that stands for the set the program draws itself."""


class TrainConfig(Section):
    """A whole training job."""

    data: str = Field(
        DRAWN_DATA, description="data set: a folder or a dataset.yaml; drawn is the set drawn by batchseg"
    )
    out: str = Field("runs/train", description="folder that receives bundle, checkpoints, metrics")
    model: ModelConfig = ModelConfig()
    input: InputConfig = InputConfig()
    training: TrainingConfig = TrainingConfig()
    augment: AugmentConfig = AugmentConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _check_encoder(self) -> "TrainConfig":
        """A knob that does nothing is a mistake, not a detail."""
        off = {"encoder_rate": 1, "freeze_encoder_epochs": 0}
        for knob, allowed in off.items():
            value = getattr(self.training, knob)
            if value != allowed and not self.model.has_encoder():
                raise ValueError(
                    f"training.{knob} is {value:g}, but {self.model.architecture} has no layer called encoder; "
                    f"allowed is {allowed}, or give that name to a layer of it"
                )
        return self

    @model_validator(mode="after")
    def _check_xla(self) -> "TrainConfig":
        workers = self.cluster.workers
        most = workers[1] if isinstance(workers, tuple) else 1 if workers == "auto" else workers
        if self.training.xla and most > 1:
            raise ValueError(
                f"training.xla is true, but cluster.workers is {most}; XLA is for one worker: TensorFlow cannot "
                "compile what workers on CPUs send, and several GPUs were not tried. Set xla to false or workers to 1"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved config as the page that would produce it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def iterate_knobs() -> Iterator[tuple[str, str, Any]]:
    """Yields (dotted key, help, default) of every knob, in the order of the page."""
    for name, field in TrainConfig.model_fields.items():
        if isinstance(field.default, Section):
            for key, knob in type(field.default).model_fields.items():
                yield f"{name}.{key}", knob.description or "", knob.default
        else:
            yield name, field.description or "", field.default


def load_config(source: str | None = None, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """Reads a YAML page (or takes the defaults) and applies overrides such as {"training.epochs": "5"}.

    Raises UserError for a missing or malformed file, an unknown key or a value out of range.
    """
    values = read_yaml(source) if source else {}
    for dotted, text in (overrides or {}).items():
        section, _, key = dotted.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if not isinstance(target, dict):
            raise UserError(f"config {source}: {section} is {target!r}; it must be a mapping")
        target[key] = text
    return parse_config(values, source or "command line")


def parse_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    """Plain data -> TrainConfig. `source` names the file in errors."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_describe(problem, source) for problem in error.errors())) from None


def read_yaml(source: str, what: str = "config") -> dict[str, Any]:
    """A YAML page as a dict. `what` names it in errors. Raises UserError for a missing or malformed one."""
    try:
        values = yaml.safe_load(storage.read_text(source))
    except FileNotFoundError:
        raise UserError(f"{what} {source} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {source} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{what} {source} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{what} {source} holds a {type(values).__name__}; it must be a mapping of keys to values")
    return values


def suggest_name(name: str, known: list[str]) -> str:
    """`did you mean ...?` with the nearest known name, and all of them when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _describe(problem: Any, source: str) -> str:
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        section = TrainConfig.model_fields[path[0]].default if len(path) > 1 else None
        owner = type(section) if isinstance(section, Section) else TrainConfig
        return f"config {source}: unknown key {'.'.join(path)!r}; {suggest_name(path[-1], list(owner.model_fields))}"
    dotted, message = ".".join(path[:2]), problem["msg"].removeprefix("Value error, ")
    # Of sections that do not go together the whole page is the input; the message names the key.
    return f"config {source}: {dotted} is {problem['input']!r}: {message}" if path else f"config {source}: {message}"
