"""Predictor(bundle): images in, masks at their own size out. Evaluate, segment and training's val all use this room."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchseg import bundle as bundles
from batchseg import geometry as geo
from batchseg import storage
from batchseg.classes import MaskArray
from batchseg.errors import UserError
from batchseg.images import DEFAULT_MAX_MEGAPIXELS, RgbArray
from batchseg.runtime import load_tensorflow

FloatArray = npt.NDArray[np.float32]
ImageInput = bytes | str | os.PathLike[str] | RgbArray
Forward = Callable[[RgbArray], tuple[MaskArray, FloatArray]]

UNCERTAIN_BELOW = 0.5
_GOLDEN_AGREEMENT = 0.999
_GOLDEN_AGREEMENT_GPU = 0.99  # where convolutions compute in TF32, 10 bits of mantissa


@dataclass(frozen=True)
class Prediction:
    """mask: class ids uint8 at the image's own size. The shares count the pixels that the model saw."""

    mask: MaskArray
    mean_confidence: float
    uncertain_share: float


class Predictor:
    """A bundle, ready to run. Its golden image is checked first: a machine that computes something else is refused.

    batch_size: images per call of the model. threads: CPU threads (None: TensorFlow's choice).
    Raises UserError for a bundle that is missing, changed, or does not give its golden mask here.
    """

    def __init__(self, bundle: str | os.PathLike[str], *, batch_size: int = 8, threads: int | None = None):
        tf = load_tensorflow(threads)
        self._golden_agreement = _GOLDEN_AGREEMENT_GPU if tf.config.list_physical_devices("GPU") else _GOLDEN_AGREEMENT
        self.card = bundles.read_card(os.fspath(bundle))
        self.batch_size = batch_size
        self._forward = make_forward(bundles.load_model(self.card))
        self._check_golden()

    def run(self, canvases: RgbArray) -> tuple[MaskArray, FloatArray]:
        """uint8 NxHxWx3 -> class ids uint8 NxHxW and the confidence in them, float32 NxHxW in 0-1.

        H and W are multiples of the stride. An image gets the same answer in any batch.
        """
        parts = [
            self._forward(canvases[start : start + self.batch_size])
            for start in range(0, len(canvases), self.batch_size)
        ]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([sure for _, sure in parts])

    def predict(self, images: Sequence[ImageInput], max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> list[Prediction]:
        """Masks for images of any size: encoded bytes, paths or s3:// locations, or RGB uint8 arrays HxWx3.

        Encoded images are decoded as `segment` decodes them, so the masks are equal bit by bit. Raises ImageError.
        """
        results: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            fitted = [self._fit(image, max_megapixels) for image in images[start : start + self.batch_size]]
            ids, confidence = self.run(np.stack([canvas for canvas, _ in fitted]))
            for (_, plan), mask, sure in zip(fitted, ids, confidence, strict=True):
                results.append(Prediction(geo.restore_mask(mask, plan), *summarize_confidence(sure, plan)))
        return results

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

    def _check_golden(self) -> None:
        golden = self.card.golden
        ids, _ = self.run(golden.canvas[None])
        agreement = float((ids[0] == golden.mask).mean())
        if agreement < self._golden_agreement:
            raise UserError(
                f"bundle {self.card.location}: on this machine its golden image comes out right on {agreement:.2%} of "
                f"the pixels; at least {self._golden_agreement:.1%} is demanded. This machine computes otherwise."
            )


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


def summarize_confidence(confidence: FloatArray, plan: geo.Plan) -> tuple[float, float]:
    """(mean confidence, share of pixels under 0.5) over the content of a canvas, without its padding."""
    height, width = plan.content_hw
    content = confidence[:height, :width]
    return float(content.mean(dtype=np.float64)), float((content < UNCERTAIN_BELOW).mean())
