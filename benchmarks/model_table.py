"""How large is a model, how much does it compute, how fast is it here?

    python benchmarks/model_table.py --architectures unet,fpn --encoders mobilenet_v2,resnet50 [--size 360x480]

Prints a row for each architecture and encoder, with the default knobs otherwise:

    parameters   in millions, those of batch norm statistics included
    GFLOPs       2 for each multiply-add of convolutions and dense layers in one image, as TensorFlow's profiler counts
                 all it knows: activations and poolings are in it, with a percent or so
    images/s     float32 forward pass of compiled batches, the best of some rounds: on a machine that others use too,
                 the best comes nearest to what the machine can

Sides are rounded up to 32, as `train` does.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from batchseg.config import ModelConfig
from batchseg.model_knobs import ARCHITECTURES
from batchseg.runtime import load_tensorflow

tf = load_tensorflow()

import keras  # noqa: E402  (after TensorFlow is set up)

from batchseg.models import ENCODERS, build_model  # noqa: E402

CLASSES = 11


def count_gflops(model: keras.Model, size_hw: tuple[int, int]) -> float:
    """Of one image, by the profiler's count over the graph."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

    spec = tf.TensorSpec((1, *size_hw, 3), tf.uint8)
    traced = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    _, graph_def = convert_variables_to_constants_v2_as_graph(traced)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        options = tf.compat.v1.profiler.ProfileOptionBuilder(
            tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        ).with_empty_output()
        profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options.build())
    return profile.total_float_ops / 1e9


def measure_rate(model: keras.Model, size_hw: tuple[int, int], batch_size: int, rounds: int) -> float:
    """Images a second, the best round."""
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (batch_size, *size_hw, 3), np.uint8))
    forward = tf.function(lambda batch: model(batch, training=False))
    forward(images)  # traces
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        forward(images).numpy()
        seconds.append(time.perf_counter() - started)
    return batch_size / min(seconds)


def make_rows(options: argparse.Namespace, size_hw: tuple[int, int]) -> Iterator[str]:
    for architecture in options.architectures.split(","):
        for encoder in options.encoders.split(","):
            keras.backend.clear_session()
            config = ModelConfig(architecture=architecture, encoder=encoder, encoder_weights="none")
            model = build_model(config, CLASSES)
            yield (
                f"| {architecture} | {encoder} | {model.count_params() / 1e6:.1f} | {count_gflops(model, size_hw):.1f} "
                f"| {measure_rate(model, size_hw, options.batch_size, options.rounds):.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--size", default="360x480", help="height x width in pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    height, width = (-(-int(side) // 32) * 32 for side in options.size.split("x"))
    print(f"| architecture | encoder | parameters, M | GFLOPs at {height}x{width} | images/s |", flush=True)
    print("|---|---|---|---|---|")
    for row in make_rows(options, (height, width)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
