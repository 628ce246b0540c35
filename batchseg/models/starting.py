"""Fine-tuning: the weights of a trained model into a new one of the same kind."""

from dataclasses import dataclass
from typing import Any

import keras

from batchseg.errors import UserError


@dataclass(frozen=True)
class StartReport:
    """How many weights there are and were loaded, how many classes each model has, and whether the head is new."""

    loaded: int
    total: int
    source_classes: int
    classes: int
    is_head_new: bool

    def describe(self) -> str:
        """One sentence for the log."""
        counts = f"loaded {self.loaded} of {self.total} weights"
        if not self.is_head_new:
            return f"{counts}; head kept, {self.classes} classes"
        return f"{counts}; head new: {self.source_classes} classes there, {self.classes} here"


def load_start(model: keras.Model, source_model: keras.Model, *, keep_head: bool = True) -> StartReport:
    """Copies the weights of source_model into model, layer by layer, by name.

    keep_head: False where the classes are others; the head is left new then, as it is when their number differs. Any
    other difference in the layers with weights raises UserError, naming the first; model is unchanged then.
    """
    ours, theirs = list_weighted(model), list_weighted(source_model)
    classes, source_classes = model.output_shape[-1], source_model.output_shape[-1]
    head = None if keep_head and classes == source_classes else _find_head(model)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name != head:
            _check_layer(name, ours.get(name), theirs.get(name))
    loaded = 0
    for name, layer in ours.items():
        if name != head:
            layer.set_weights(theirs[name].get_weights())
            loaded += len(layer.weights)
    return StartReport(loaded, len(model.weights), source_classes, classes, head is not None)


def list_weighted(model: keras.Model) -> dict[str, Any]:
    """Layers with weights of their own, by path: those of the encoder as encoder/NAME."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= {f"{layer.name}/{name}": inner for name, inner in list_weighted(layer).items()}
        elif layer.weights:
            found[layer.name] = layer
    return found


def _find_head(model: keras.Model) -> str | None:
    """The last layer with weights, if its channels are the classes."""
    last = list(list_weighted(model).items())[-1:]
    return next((name for name, layer in last if layer.output.shape[-1] == model.output_shape[-1]), None)


def _check_layer(name: str, ours: Any, theirs: Any) -> None:
    here, there = _show_shapes(ours), _show_shapes(theirs)
    if here != there:
        raise UserError(
            f"model.start_from: layer {name} has weights of {there} in the bundle and of {here} here; "
            "architecture, encoder and widths must be those of the bundle"
        )


def _show_shapes(layer: Any) -> str:
    if layer is None:
        return "no shape (there is no such layer)"
    return ", ".join("x".join(map(str, variable.shape)) or "one number" for variable in layer.weights)
