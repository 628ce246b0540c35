"""TensorFlow's process-wide settings. Called once per process, before the first operation."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Read by TensorFlow, gRPC and oneDNN when they load; exported to every worker too.
QUIET_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_VLOG_LEVEL": "0",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "3",
    "ABSL_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    "PYTHONWARNINGS": "ignore",
}


def load_tensorflow(threads: int | None = None) -> ModuleType:
    """Imports TensorFlow quietly, with `threads` CPU threads (None: its own choice) and GPU memory taken as needed."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with silence_stderr(), pause_collector():
        import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    try:
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(max(1, min(threads, 2)))
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        # Already running in this process (a test, a notebook): its settings stay.
        pass
    return tf  # type: ignore[no-any-return]


@contextmanager
def pause_collector() -> Iterator[None]:
    """Python's garbage collector at rest, around an import or a construction of very many objects that all stay.

    It would look through all of them again and again: a fifth of the time that TensorFlow and a model take to load.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Drops what native code writes to file descriptor 2 meanwhile. Exceptions are raised all the same.

    TensorFlow and Ray write to it before their own log levels count.
    """
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
