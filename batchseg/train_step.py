"""One synchronous data-parallel training step. All that crosses between workers crosses here and in batch_norms.

Few collectives, each of one packed vector: on the CPU a collective costs about 3 ms whatever its size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchseg.batch_norms import speed_up_batch_norms
from batchseg.errors import UserError
from batchseg.losses import Loss, divide
from batchseg.optimizers import WeightAverage

Tensor = Any


@dataclass(frozen=True)
class StepOptions:
    """accumulation: parts that a worker's share of the batch is computed in, one after the other. xla: compile."""

    accumulation: int = 1
    xla: bool = False


def make_step(
    tf: Any,
    strategy: Any,
    model: Any,
    optimizer: Any,
    losses: list[tuple[float, Loss]],
    average: WeightAverage,
    options: StepOptions = StepOptions(),
) -> Callable[[Any, Any], Any]:
    """One step: (images uint8 nxHxWx3, masks uint8 nxHxW) of this worker -> the loss over all workers.

    losses: each with its share in the sum. Each loss is a sum and a weight. The weights are summed over the workers
    first, each worker divides its sums by those totals, and gradients are summed: so the result is that of one worker
    with the whole batch, however many pixels are ignored where, and in however many parts it is computed.
    Raises UserError for xla with more than one worker: TensorFlow 2.21 compiles no collective for a CPU.
    """
    if options.xla and strategy.num_replicas_in_sync > 1:
        # `workers: auto` has become several.
        raise UserError(
            f"training.xla is true, but there are {strategy.num_replicas_in_sync} workers; XLA is for one worker. "
            "Set training.xla to false, or cluster.workers to 1"
        )
    speed_up_batch_norms(tf, model, strategy.num_replicas_in_sync)
    num_classes = model.output_shape[-1]
    variables = model.trainable_variables

    def compute_gradients(images: Tensor, masks: Tensor) -> list[Tensor]:
        """[loss, *gradients], summed over the workers, of one worker's share; inside strategy.run."""
        weights = sum_over_workers(tf, sum_weights(tf, losses, masks, num_classes))
        total: list[Tensor] = []
        for part in range(options.accumulation):
            window = _take_part(tf, masks, part, options.accumulation)
            # One part after the other: side by side they would need the memory of all of them.
            with tf.control_dependencies(total), tf.GradientTape() as tape:
                logits = model(tf.identity(images[window]), training=True)
                loss = add_losses(tf, losses, masks[window], logits, weights)
                scaled = optimizer.scale_loss(loss)
            found = [loss, *tape.gradient(scaled, variables)]
            total = [old + new for old, new in zip(total, found, strict=True)] if total else found
        return sum_over_workers(tf, total)

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8), tf.TensorSpec((None, None, None), tf.uint8)]

    @tf.function(input_signature=signature, jit_compile=options.xla or None)  # type: ignore[untyped-decorator]
    def step(images: Tensor, masks: Tensor) -> Tensor:
        """Updates the weights and returns the loss, a float32 scalar."""
        loss, *gradients = strategy.run(compute_gradients, args=(images, masks))
        # Outside of strategy.run, where Keras does not sum the gradients once more, tensor by tensor.
        optimizer.apply(gradients, variables)
        average.update(optimizer.iterations)
        return loss

    return step  # type: ignore[no-any-return]


def sum_weights(tf: Any, losses: list[tuple[float, Loss]], masks: Tensor, num_classes: int) -> list[Tensor]:
    """The weight of each loss for these masks. It depends on the truth alone, so that blank logits do."""
    shape = tf.concat([tf.shape(masks), [num_classes]], axis=0)
    blank = tf.ensure_shape(tf.zeros(shape), [None, None, None, num_classes])
    return [tf.stop_gradient(loss(masks, blank)[1]) for _, loss in losses]


def add_losses(
    tf: Any, losses: list[tuple[float, Loss]], masks: Tensor, logits: Tensor, weights: list[Tensor]
) -> Tensor:
    """The sum of all losses with their shares. weights: those of the whole batch."""
    terms = zip(losses, weights, strict=True)
    return tf.add_n([share * divide(loss(masks, logits)[0], weight) for (share, loss), weight in terms])


def _take_part(tf: Any, masks: Tensor, part: int, parts: int) -> Any:
    """The slice of a worker's images that a part computes; sizes differ by one where they do not divide."""
    if parts == 1:
        return slice(None)
    count = tf.shape(masks)[0]
    return slice(part * count // parts, (part + 1) * count // parts)


def sum_over_workers(tf: Any, tensors: list[Any]) -> list[Any]:
    """Sums each float32 tensor over the workers, all of them in one collective. Inside strategy.run."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    packed = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    summed = context.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    pieces = tf.split(summed, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(piece, tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def sum_counts(tf: Any, strategy: Any, counts: Any) -> Any:
    """int64 array of this worker -> the sum over all workers, exact. Outside of strategy.run."""
    return strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(counts, tf.int64), axis=None).numpy()
