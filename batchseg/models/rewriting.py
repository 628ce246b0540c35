"""An encoder of keras.applications in a graph that suits segmentation: paddings, strides, layers changed, weights kept.

Every change gives a graph of stock layers, so that a saved model needs nothing of ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import layers

Padding = tuple[tuple[int, int], tuple[int, int]]
SCALING = (layers.Rescaling, layers.Normalization)
KERAS_STOCHASTIC_DEPTH = 0.2
"""What EfficientNets of keras.applications have (drop_connect_rate), which no argument of theirs reaches."""


@dataclass
class Plan:
    """What becomes of the layers, by name. `thinned`: convolutions that lose their stride, and what to pad before.

    `drops`: ends of residual branches, and how often each branch is dropped in training.
    """

    paddings: dict[str, Padding] = field(default_factory=dict)
    dilations: dict[str, int] = field(default_factory=dict)
    thinned: dict[str, Padding | None] = field(default_factory=dict)
    drops: dict[str, float] = field(default_factory=dict)


def rewrite(
    base: keras.Model, *, pads_all_sides: bool = False, max_stride: int = 32, stochastic_depth: float | None = None
) -> keras.Model:
    """The same function of a scaled picture, in another graph:

    - `pads_all_sides`: each ZeroPadding2D has one pixel on all four sides, as torchvision has. keras.applications pads
      right and below only: weights trained the other way then see all features half a cell off at each stride.
    - `max_stride` 16 or 8: later strides become dilation (Chen et al. 2017, DeepLabV3). Of the denser features, those
      at every second (or fourth) place equal the features before, but for the means over the picture that
      squeeze-and-excite takes.
    - `stochastic_depth`: the share of residual branches dropped in training, for each picture, at the end of the
      encoder; it grows from 0 at its start (Huang et al. 2016). None leaves what keras.applications has.
    - layers that scale the picture go (the model does it before, in float32), Sequentials open up, a convolution
      with one group a channel becomes a DepthwiseConv2D (240 times faster on a CPU, TensorFlow 2.21) and a LayerScale,
      which Keras does not export, an EinsumDense.
    """
    plan = _plan_changes(base, pads_all_sides, max_stride)
    if stochastic_depth is not None:
        plan.drops = _plan_drops(base, stochastic_depth)

    def call(layer: Any, *args: Any, **settings: Any) -> Any:
        """Connects a layer of the clone: passed over, opened up, or padded before."""
        if isinstance(layer, SCALING) or plan.drops.get(layer.name) == 0:
            return args[0]
        if isinstance(layer, keras.Sequential):
            result = args[0]
            for inner in layer.layers:
                result = call(_change_layer(inner, plan), result)
            return result
        padding = plan.thinned.get(layer.name)
        if padding:
            return layer(layers.ZeroPadding2D(padding, name=f"{layer.name}_pad")(args[0]))
        return layer(*args, **settings)

    clone = keras.models.clone_model(
        base,
        input_tensors=keras.Input((None, None, 3), name="scaled"),
        clone_function=lambda layer: _change_layer(layer, plan),
        call_function=call,
    )
    _copy_weights(base, clone)
    return clone


def _change_layer(layer: Any, plan: Plan) -> Any:
    if isinstance(layer, keras.Sequential):
        return layer
    settings = layer.get_config()
    if layer.name in plan.drops:
        rate, dtype = plan.drops[layer.name], settings["dtype"]
        return layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=layer.name, dtype=dtype)
    if layer.name in plan.paddings:
        settings["padding"] = plan.paddings[layer.name]
    if layer.name in plan.dilations:
        settings["dilation_rate"] = (plan.dilations[layer.name],) * 2
    if layer.name in plan.thinned:
        settings |= {"strides": (1, 1), "padding": "valid"}
    if isinstance(layer, layers.Conv2D) and layer.groups == layer.filters > 1:
        return _make_depthwise(settings)
    if type(layer).__name__ == "LayerScale":
        return layers.EinsumDense(
            "nhwc,c->nhwc", (None, None, layer.projection_dim), name=layer.name, dtype=settings["dtype"]
        )
    if layer.name.startswith("layer_normalization"):
        settings["name"] = "last_layernorm"  # numbered by Keras, so another name in each process
    return type(layer).from_config(settings)


def _make_depthwise(settings: dict[str, Any]) -> layers.DepthwiseConv2D:
    kept = ("name", "trainable", "dtype", "kernel_size", "strides", "padding", "dilation_rate", "use_bias")
    return layers.DepthwiseConv2D(**{key: settings[key] for key in kept})


def _plan_changes(base: keras.Model, pads_all_sides: bool, max_stride: int) -> Plan:
    plan = Plan()
    makers = {id(operation.output): operation for operation in base.operations}
    if pads_all_sides:
        pads = [one for one in base.operations if isinstance(one, layers.ZeroPadding2D)]
        plan.paddings |= {one.name: ((1, 1), (1, 1)) for one in pads}
    for layer, stride_before, before in _walk_strides(base, makers):
        kernel, stride = layer.kernel_size[0], layer.strides[0]
        dilation = max(1, stride_before // max_stride)
        if kernel > 1 and dilation > 1:
            plan.dilations[layer.name] = dilation
        if stride > 1 and stride_before * stride > max_stride:
            _plan_thinning(plan, layer, before, dilation)
    return plan


def _plan_drops(base: keras.Model, stochastic_depth: float) -> dict[str, float]:
    """Of EfficientNets, which have such layers, and ConvNeXts, which have one that does nothing in their place."""
    drops = {
        layer.name: layer.rate * stochastic_depth / KERAS_STOCHASTIC_DEPTH
        for layer in base.layers
        if isinstance(layer, layers.Dropout) and layer.noise_shape
    }
    idle = [layer.name for layer in base.layers if "_block_" in layer.name and layer.name.endswith("_identity")]
    return drops | {name: stochastic_depth * number / (len(idle) - 1) for number, name in enumerate(idle)}


def _plan_thinning(plan: Plan, layer: Any, before: Any, dilation: int) -> None:
    """A stride goes, and padding keeps the size and the place of what the convolution saw before."""
    kernel = layer.kernel_size[0]
    if isinstance(before, layers.ZeroPadding2D):
        first = plan.paddings.get(before.name, before.padding)[0][0]
    else:
        # As TensorFlow pads an even size under a stride of 2: the odd pixel is at the end.
        first = (kernel - 2) // 2 if layer.padding == "same" and kernel > 1 else 0
    side = (first * dilation, (kernel - 1 - first) * dilation)
    plan.thinned[layer.name] = None
    if isinstance(before, layers.ZeroPadding2D):
        plan.paddings[before.name] = (side, side)
    elif kernel > 1:
        plan.thinned[layer.name] = (side, side)


def _walk_strides(base: keras.Model, makers: dict[int, Any]) -> Iterator[tuple[Any, int, Any]]:
    """Every convolution with the stride at which it takes its input, and the operation before it."""
    strides = {}
    for operation in base.operations:
        if isinstance(operation, layers.InputLayer):
            strides[id(operation.output)] = 1
            continue
        sources = keras.tree.flatten(operation.input)
        stride = max(strides[id(source)] for source in sources)
        before = makers[id(sources[0])]
        for layer in operation.layers if isinstance(operation, keras.Sequential) else [operation]:
            if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
                yield layer, stride, before
            stride *= layer.strides[0] if getattr(layer, "strides", None) else 1
            before = layer
        strides[id(operation.output)] = stride


def _copy_weights(base: keras.Model, clone: keras.Model) -> None:
    targets = {layer.name: layer for layer in clone.layers}
    for layer in base._flatten_layers(recursive=True, include_self=False):
        if isinstance(layer, (keras.Sequential, *SCALING)) or not layer.weights:
            continue
        target = targets["last_layernorm" if layer.name.startswith("layer_normalization") else layer.name]
        # A kernel of one group a channel is KxKx1xC; that of DepthwiseConv2D has the same numbers as KxKxCx1.
        pairs = zip(layer.get_weights(), target.weights, strict=True)
        target.set_weights([values.reshape(variable.shape) for values, variable in pairs])
