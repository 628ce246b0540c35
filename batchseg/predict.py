"""Predictor(bundle): images in, masks at their own size out. Evaluate, segment and training's val all use this room."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchseg import bundle as bundles
from batchseg import geometry as geo
from batchseg import storage
from batchseg.classes import MaskArray
from batchseg.errors import ImageError, UserError
from batchseg.images import DEFAULT_MAX_MEGAPIXELS, RgbArray
from batchseg.quality import InferenceOptions, finish_mask
from batchseg.runner import CanvasPrediction, CanvasRunner, FloatArray, Forward, Score
from batchseg.runtime import load_tensorflow, pause_collector
from batchseg.tiling import pick_classes

ImageInput = bytes | str | os.PathLike[str] | RgbArray

PLAIN = InferenceOptions()
"""The model's own answer."""

_GOLDEN_AGREEMENT = 0.999
_GOLDEN_AGREEMENT_GPU = 0.99  # where convolutions compute in TF32, 10 bits of mantissa


@dataclass(frozen=True)
class Prediction:
    """mask: class ids uint8 at the image's own size, 255 where the model abstains. scores: confidence * 255, uint8 of
    the same size, if `score_map` asked for it. The shares count the pixels that the model saw.
    """

    mask: MaskArray
    mean_confidence: float
    uncertain_share: float
    scores: MaskArray | None = None


class Predictor:
    """A bundle, ready to run. Its golden image is checked first: a machine that computes something else is refused.

    batch_size: images (or tiles) per call of the model; halved for good when the memory is too small.
    threads: CPU threads (None: TensorFlow's choice).
    Raises UserError for a bundle that is missing, changed, or does not give its golden mask here.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        batch_size: int = 8,
        threads: int | None = None,
        options: InferenceOptions = PLAIN,
    ):
        tf = load_tensorflow(threads)
        self._golden_agreement = _GOLDEN_AGREEMENT_GPU if tf.config.list_physical_devices("GPU") else _GOLDEN_AGREEMENT
        self.card = bundles.read_card(os.fspath(bundle))
        self.options = options
        with pause_collector():
            model = bundles.load_model(self.card)
        forward = make_forward(model)
        self._check_golden(forward)
        self._runner = make_runner(model, self.card.geometry.stride, batch_size, options, forward)

    @property
    def batch_size(self) -> int:
        """Pieces per call of the model, as they fit into memory until now."""
        return self._runner.batch_size

    def run(self, canvases: Sequence[RgbArray], plans: Sequence[geo.Plan]) -> list[CanvasPrediction | ImageError]:
        """What the model says on each canvas, uint8 HxWx3 as its plan has it. Sizes may differ.

        An image gets the same answer in any batch. One that even alone needs too much memory gets an ImageError `oom`.
        """
        items = ((None, canvas, plan) for canvas, plan in zip(canvases, plans, strict=True))
        return [outcome for _, outcome in self._runner.stream(items)]

    def predict(self, images: Sequence[ImageInput], max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> list[Prediction]:
        """Masks for images of any size: encoded bytes, paths or s3:// locations, or RGB uint8 arrays HxWx3.

        Encoded images are decoded as `segment` decodes them, so the masks are equal bit by bit. Raises ImageError.
        """

        def fit_all() -> Iterator[tuple[geo.Plan, RgbArray, geo.Plan]]:
            for image in images:
                canvas, plan = self._fit(image, max_megapixels)
                yield plan, canvas, plan

        return [self._finish(outcome, plan) for plan, outcome in self._runner.stream(fit_all())]

    def _finish(self, outcome: CanvasPrediction | ImageError, plan: geo.Plan) -> Prediction:
        if isinstance(outcome, ImageError):
            raise outcome
        scores = None if outcome.scores is None else geo.restore_scores(outcome.scores, plan)
        mask = finish_mask(outcome.ids, plan, self.options)
        return Prediction(mask, outcome.mean_confidence, outcome.uncertain_share, scores)

    def _fit(self, image: ImageInput, max_megapixels: float) -> tuple[RgbArray, geo.Plan]:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(
                    f"image is {image.dtype} {image.shape}; RGB uint8 of shape (height, width, 3) is allowed"
                )
            plan = geo.make_plan(image.shape[:2], self.card.geometry)
            return geo.fit_image(image, plan), plan
        data = image if isinstance(image, bytes) else storage.read_bytes(os.fspath(image))
        fitted = geo.fit_encoded(data, self.card.geometry, max_megapixels)
        return fitted.canvas, fitted.plan

    def _check_golden(self, forward: Forward) -> None:
        golden = self.card.golden
        agreement = float((forward(golden.canvas[None])[0][0] == golden.mask).mean())
        if agreement < self._golden_agreement:
            raise UserError(
                f"bundle {self.card.location}: on this machine its golden image comes out right on {agreement:.2%} of "
                f"the pixels; at least {self._golden_agreement:.1%} is demanded. This machine computes otherwise."
            )


def make_runner(
    model: Any, stride: int, batch_size: int, options: InferenceOptions = PLAIN, forward: Forward | None = None
) -> CanvasRunner:
    """A Keras model of logits -> what runs canvases and tiles through it. forward: of make_forward, if it is there."""
    import tensorflow as tf

    score = make_score(model, stride, options)
    if options.averages:
        forward = make_averaging_forward(score)
    return CanvasRunner(forward or make_forward(model), score, batch_size, options, (tf.errors.ResourceExhaustedError,))


def make_forward(model: Any) -> Forward:
    """Compiles a Keras model of logits into canvases -> (class ids uint8, confidence float32). Softmax stays inside."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])  # type: ignore[untyped-decorator]
    def forward(canvases: Any) -> Any:
        """uint8 NxHxWx3 -> (uint8 NxHxW, float32 NxHxW)."""
        logits = model(canvases, training=False)
        best = tf.reduce_max(logits, axis=-1, keepdims=True)
        # The softmax of the best class is 1 / sum(exp(logit - best)).
        confidence = 1.0 / tf.reduce_sum(tf.exp(logits - best), axis=-1)
        return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.uint8), confidence

    def run(canvases: RgbArray) -> tuple[MaskArray, FloatArray]:
        ids, confidence = forward(np.ascontiguousarray(canvases))
        return ids.numpy(), confidence.numpy()

    return run


def make_score(model: Any, stride: int, options: InferenceOptions = PLAIN) -> Score:
    """Compiles a Keras model of logits into tiles -> scores by class: softmax, averaged over the views of `options`."""
    import tensorflow as tf

    views = [(scale, mirrors) for scale in options.scales for mirrors in ((False, True) if options.flip else (False,))]

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])  # type: ignore[untyped-decorator]
    def score(canvases: Any) -> Any:
        """uint8 NxHxWx3 -> float32 N x classes x H x W."""
        total = _ask_view(tf, model, canvases, stride, views[0])
        for view in views[1:]:
            # One view after the other: side by side they would need the memory of all of them.
            with tf.control_dependencies([total]):
                total += _ask_view(tf, model, tf.identity(canvases), stride, view)
        return tf.transpose(total / len(views), (0, 3, 1, 2))

    def run(canvases: RgbArray) -> FloatArray:
        return np.asarray(score(np.ascontiguousarray(canvases)).numpy(), np.float32)

    return run


def _ask_view(tf: Any, model: Any, canvases: Any, stride: int, view: tuple[float, bool]) -> Any:
    """Softmax float32 NxHxWxC of uint8 NxHxWx3, seen at another scale and mirrored left to right, and brought back."""
    scale, mirrors = view
    size_hw = tf.shape(canvases)[1:3]
    if scale != 1:
        steps = tf.cast(tf.round(tf.cast(size_hw, tf.float32) * scale / stride), tf.int32)
        scaled = tf.image.resize(canvases, tf.maximum(steps, 1) * stride, antialias=True)
        canvases = tf.saturate_cast(tf.round(scaled), tf.uint8)
    logits = model(tf.reverse(canvases, [2]) if mirrors else canvases, training=False)
    logits = tf.reverse(logits, [2]) if mirrors else logits
    return tf.nn.softmax(tf.image.resize(logits, size_hw) if scale != 1 else logits)


def make_averaging_forward(score: Score) -> Forward:
    """Scores of whole canvases -> (class ids uint8, confidence float32)."""

    def run(canvases: RgbArray) -> tuple[MaskArray, FloatArray]:
        picked = [pick_classes(scores) for scores in score(canvases)]
        return np.stack([ids for ids, _ in picked]), np.stack([confidence for _, confidence in picked])

    return run
