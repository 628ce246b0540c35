"""One synchronous data-parallel training step. All that crosses between workers crosses here.

Few collectives, each of one packed vector: on the CPU a collective costs about 3 ms whatever its size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchseg.losses import divide
from batchseg.models.building import iterate_batch_norms


@dataclass(frozen=True)
class LossTerm:
    """`share` times the quotient of the (sum, weight) that `function(y_true, y_pred)` returns."""

    share: float
    function: Callable[[Any, Any], tuple[Any, Any]]


def make_step(tf: Any, strategy: Any, model: Any, optimizer: Any, terms: list[LossTerm]) -> Callable[[Any, Any], Any]:
    """One step: (images uint8 nxHxWx3, masks uint8 nxHxW) of this worker -> the loss over all workers.

    Each loss is a sum and a weight. The weights are summed over the workers first, each worker divides its sums by
    those totals, and gradients are summed: so the result is that of one worker with the whole batch, however many
    pixels are ignored where.
    """
    if strategy.num_replicas_in_sync > 1:
        synchronize_batch_norms(tf, model)

    def compute_gradients(images: Any, masks: Any) -> list[Any]:
        """[loss, *gradients], summed over the workers, of one worker's share; inside strategy.run."""
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            parts = [term.function(masks, logits) for term in terms]
            weights = sum_over_workers(tf, [tf.stop_gradient(weight) for _, weight in parts])
            loss = tf.add_n(
                [
                    term.share * divide(total, weight)
                    for term, (total, _), weight in zip(terms, parts, weights, strict=True)
                ]
            )
            scaled = optimizer.scale_loss(loss)
        return sum_over_workers(tf, [loss, *tape.gradient(scaled, model.trainable_variables)])

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8), tf.TensorSpec((None, None, None), tf.uint8)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def step(images: Any, masks: Any) -> Any:
        """Updates the weights and returns the loss, a float32 scalar."""
        loss, *gradients = strategy.run(compute_gradients, args=(images, masks))
        # Outside of strategy.run, where Keras does not sum the gradients once more, tensor by tensor.
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step  # type: ignore[no-any-return]


def sum_over_workers(tf: Any, tensors: list[Any]) -> list[Any]:
    """Sums each float32 tensor over the workers, all of them in one collective. Inside strategy.run."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    packed = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    summed = context.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    pieces = tf.split(summed, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(piece, tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def synchronize_batch_norms(tf: Any, model: Any) -> None:
    """Makes every batch norm of `model` take its statistics over all workers. Before the first trace.

    Keras has `synchronized=True` for this; it needs three collectives forward and two back, this one each. It also
    takes the variance as E(x^2) - E(x)^2, which loses digits; this joins the workers' own variances (Chan et al. 1979).
    The model that is shipped is another one, with stock layers as they are.
    """

    def compute_moments(inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """(mean, variance) per channel, float32 C each, of NxHxWxC over the N of all workers."""
        context = tf.distribute.get_replica_context()
        mean, variance = tf.nn.moments(inputs, list(range(len(inputs.shape) - 1)))
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
        # Each worker fills its own row, so that the sum over workers is a table of all of them.
        row = tf.concat([mean, variance, [count]], axis=0)
        place = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
        table = context.all_reduce(tf.distribute.ReduceOp.SUM, place[:, None] * row[None, :])
        means, variances, counts = tf.split(table, [mean.shape[0], mean.shape[0], 1], axis=1)
        shares = counts / tf.reduce_sum(counts)
        total_mean = tf.reduce_sum(shares * means, axis=0)
        return total_mean, tf.reduce_sum(shares * (variances + tf.square(means - total_mean)), axis=0)

    for layer in iterate_batch_norms(model):
        layer._moments = compute_moments


def sum_counts(tf: Any, strategy: Any, counts: Any) -> Any:
    """int64 array of this worker -> the sum over all workers, exact. Outside of strategy.run."""
    return strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(counts, tf.int64), axis=None).numpy()
