"""The job that runs without any data: the drawn set, small enough for two CPU cores."""

DRAWN_SET = {
    "data": "drawn",
    "out": "runs/drawn",
    "model.encoder": "mobilenet",
    "model.encoder_width": "0.25",
    "model.encoder_weights": "none",
    "model.decoder_channels": "96,64,48,32",
    "input.size": "128,160",
    "training.epochs": "10",
    "training.batch_size": "16",
    "training.learning_rate": "4e-3",
    "augment.scale": "0.8,1.25",
    "cluster.workers": "2",
}
"""Overrides of the defaults, as on a command line."""
