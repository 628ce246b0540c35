"""The config page: defaults, overrides, and errors that name the key, the value and what is allowed."""

from pathlib import Path

import pytest

from batchseg.config import TrainConfig, iterate_knobs, load_config, parse_config, read_yaml, suggest_name
from batchseg.errors import UserError
from batchseg.presets import preset_with


def write_page(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_a_whole_job() -> None:
    config = load_config()
    assert config == TrainConfig()
    assert config.data == "drawn"
    assert config.input.size == (360, 480)
    assert config.training.epochs == 60
    assert config.cluster.workers == "auto"


def test_page_gives_typed_values(tmp_path: Path) -> None:
    page = "data: my/set\ninput: {size: [96, 128], fit: letterbox}\ntraining:\n  epochs: 3\n  learning_rate: 1e-2\n"
    config = load_config(write_page(tmp_path, page))
    assert config.data == "my/set"
    assert config.input.size == (96, 128)
    assert config.input.fit == "letterbox"
    assert config.training.epochs == 3
    assert config.training.learning_rate == 0.01
    assert config.training.batch_size == 16


@pytest.mark.parametrize(
    ("text", "size"), [("360,480", (360, 480)), ("360x480", (360, 480)), ("[96, 128]", (96, 128)), ("7, 9", (7, 9))]
)
def test_sizes_on_a_command_line(text: str, size: tuple[int, int]) -> None:
    assert load_config(None, {"input.size": text}).input.size == size


def test_overrides_win_over_the_page(tmp_path: Path) -> None:
    page = write_page(tmp_path, "data: here\ntraining: {epochs: 3, batch_size: 4}\n")
    overrides = {
        "training.epochs": "5",
        "data": "there",
        "augment.scale": "0.8,1.25",
        "augment.crop": "64,80",
        "augment.enabled": "false",
        "model.encoder_weights": "none",
        "model.decoder_channels": "96,64,48,32",
        "cluster.workers": "2",
        "cluster.gpus_per_worker": "1",
    }
    config = load_config(page, overrides)
    assert (config.data, config.training.epochs, config.training.batch_size) == ("there", 5, 4)
    assert config.augment.scale == (0.8, 1.25)
    assert config.augment.crop == (64, 80)
    assert config.augment.enabled is False
    assert config.model.encoder_weights == "none"
    assert config.model.decoder_channels == (96, 64, 48, 32)
    assert (config.cluster.workers, config.cluster.gpus_per_worker) == (2, 1)


@pytest.mark.parametrize(("text", "gpus"), [("auto", "auto"), ("0", 0), ("1", 1)])
def test_gpus_per_worker(text: str, gpus: str | int) -> None:
    assert load_config(None, {"cluster.gpus_per_worker": text}).cluster.gpus_per_worker == gpus


def test_none_means_no_crop_and_no_weights() -> None:
    config = parse_config({"augment": {"crop": "none"}, "model": {"encoder_weights": None}}, "page")
    assert config.augment.crop is None
    assert config.model.encoder_weights == "none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epoch": 3}}, r"config job\.yaml: unknown key 'training\.epoch'; did you mean 'epochs'\?"),
        ({"trainig": {}}, r"unknown key 'trainig'; did you mean 'training'\?"),
        ({"input": {"sizes": [1, 1]}}, r"unknown key 'input\.sizes'; did you mean 'size'\?"),
        ({"zzz": 1}, r"unknown key 'zzz'; known are data, out, model, input, training, augment, cluster"),
        ({"training": {"epochs": 0}}, r"config job\.yaml: training\.epochs is 0: .*greater than or equal to 1"),
        ({"training": {"epochs": 2.5}}, r"training\.epochs is 2\.5: .*integer"),
        ({"training": {"epochs": "many"}}, r"training\.epochs is 'many': .*integer"),
        ({"training": {"learning_rate": 0}}, r"training\.learning_rate is 0: .*greater than 0"),
        ({"training": {"learning_rate": float("nan")}}, r"training\.learning_rate is nan"),
        ({"training": {"precision": "float16"}}, r"training\.precision is 'float16': .*'mixed_bfloat16'"),
        ({"training": None}, r"training is None: .*dictionary"),
        ({"augment": {"flip": 1.5}}, r"augment\.flip is 1\.5: .*less than or equal to 1"),
        ({"augment": {"scale": [2, 1]}}, r"scale is \[2\.0, 1\.0\]; allowed is 0 < smallest <= largest"),
        ({"augment": {"scale": [0, 1]}}, r"scale is \[0\.0, 1\.0\]; allowed"),
        ({"input": {"size": [0, 480]}}, r"input\.size is 0: .*greater than or equal to 1"),
        ({"input": {"size": "1,2,3"}}, r"input\.size is .*at most 2 items"),
        ({"input": {"fit": "crop"}}, r"input\.fit is 'crop': .*'resize', 'letterbox' or 'tile'"),
        ({"model": {"encoder": "resnet18"}}, r"model\.encoder is 'resnet18': .*'mobilenet', .*'resnet50'"),
        ({"model": {"decoder_channels": [96]}}, r"decoder_channels has 1 numbers; 4 or 5 are allowed"),
        ({"cluster": {"workers": 0}}, r"cluster\.workers is 0"),
        ({"cluster": {"gpus_per_worker": "some"}}, r"cluster\.gpus_per_worker is 'some'"),
        ({"cluster": {"gpus_per_worker": None}}, r"cluster\.gpus_per_worker is None"),
        ({"cluster": {"cpus_per_worker": [1]}}, r"cluster\.cpus_per_worker is \[1\]"),
        ({"cluster": {"gpus_per_worker": -1}}, r"cluster\.gpus_per_worker is -1"),
        # A worker has one GPU or none: shares of one, or several, are not what training is made for.
        ({"cluster": {"gpus_per_worker": 0.5}}, r"cluster\.gpus_per_worker is 0\.5: .*integer"),
        ({"cluster": {"gpus_per_worker": 2}}, r"cluster\.gpus_per_worker is 2: .*less than or equal to 1"),
        ({"out": 3}, r"out is 3: .*string"),
    ],
)
def test_wrong_value_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(values, "job.yaml")


@pytest.mark.parametrize("workers", ["2", "1,3"])
def test_xla_is_for_one_worker(workers: str) -> None:
    """TensorFlow 2.21: `Collectives are not yet implemented for CPU devices when compiling with XLA`."""
    with pytest.raises(
        UserError, match=r"config command line: training\.xla is true, but cluster\.workers is [23]; XLA"
    ):
        load_config(None, {"training.xla": "true", "cluster.workers": workers})
    for one in ("1", "auto"):
        assert load_config(None, {"training.xla": "true", "cluster.workers": one}).training.xla


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"training": {"epochs": 0}, "input": {"fit": "crop"}}, "job.yaml")
    assert "training.epochs" in str(caught.value)
    assert "input.fit" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.epoch": "3"}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"modle.encoder": "mobilenet"}, "unknown key 'modle'; did you mean 'model'"),
        ({"training": "5"}, "training is '5'"),
        ({"data.name": "x"}, "data is 'here'; it must be a mapping"),
    ],
)
def test_wrong_override_is_named(tmp_path: Path, overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write_page(tmp_path, "data: here\n"), overrides)


def test_config_survives_its_own_page(tmp_path: Path) -> None:
    changed = load_config(
        None,
        {
            "input.size": "96,128",
            "augment.crop": "64,80",
            "model.encoder_weights": "none",
            "cluster.workers": "3",
            "training.learning_rate": "4e-3",
            "data": "no",
            "out": "runs/ünïcode name",
        },
    )
    for config in (TrainConfig(), changed):
        assert load_config(write_page(tmp_path, config.to_yaml())) == config


def test_empty_page_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write_page(tmp_path, "# nothing yet\n")) == TrainConfig()


def test_missing_and_malformed_pages(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"config .*none\.yaml does not exist"):
        load_config(missing)
    with pytest.raises(UserError, match=r"config .*job\.yaml is not YAML: "):
        load_config(write_page(tmp_path, "training: {epochs: 3\ndata: [\n"))
    with pytest.raises(UserError, match=r"job\.yaml holds a list; it must be a mapping"):
        load_config(write_page(tmp_path, "- a\n- b\n"))
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(str(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(str(binary))


def test_every_knob_has_a_line_of_help_and_loads_by_its_dotted_key() -> None:
    knobs = list(iterate_knobs())
    keys = [key for key, _, _ in knobs]
    assert len(keys) == len(set(keys))
    assert {"data", "out", "training.epochs", "input.size", "cluster.workers"} <= set(keys)
    for key, text, default in knobs:
        assert len(text) > 5, f"{key} has no help"
        section, _, name = key.rpartition(".")
        owner = getattr(TrainConfig(), section) if section else TrainConfig()
        assert getattr(owner, name) == default


def test_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().training.epochs = 3  # type: ignore[misc]


def test_suggest_name() -> None:
    assert suggest_name("lerning_rate", ["epochs", "learning_rate"]) == "did you mean 'learning_rate'?"
    assert suggest_name("qq", ["epochs", "seed"]) == "known are epochs, seed"


def test_overlap_of_tiles() -> None:
    assert parse_config({}, "x").input.tile_overlap == 0
    assert parse_config({"input": {"fit": "tile", "size": [96, 128]}}, "x").input.tile_overlap == 48
    assert parse_config({"input": {"fit": "tile", "overlap": "none"}}, "x").input.tile_overlap == 180
    assert load_config(None, {"input.fit": "tile", "input.overlap": "64"}).input.tile_overlap == 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"overlap": 32}, r"overlap is 32, but fit is resize; only fit: tile has an overlap"),
        ({"fit": "tile", "size": [100, 200], "overlap": 51}, r"overlap is 51; at most half .* is allowed: 50"),
        ({"fit": "tile", "overlap": -1}, r"input\.overlap is -1: .*greater than or equal to 0"),
    ],
)
def test_wrong_overlap(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"input": values}, "job.yaml")


JOBS = Path(__file__).parents[1] / "jobs"
# The others are for Kubernetes and for the cluster launcher.
PAGES = [path for path in sorted(JOBS.glob("*.yaml")) if "\ndata: " in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_ready_jobs_are_valid_and_say_what_to_expect(page: Path) -> None:
    load_config(str(page))
    header = [line for line in page.read_text().splitlines() if line.startswith("# ")]
    for word in ("command:", "hardware:", "time:", "score:"):
        assert any(line.startswith(f"# {word}") for line in header), f"{page.name} does not say its {word}"


def test_the_preset_gives_way_to_another_model() -> None:
    """Whoever asks for an encoder or a decoder need not know what the preset of the drawn set says of its own."""
    assert load_config(None, preset_with({})).model.encoder_width == 0.25
    assert load_config(None, preset_with({"model.encoder": "mobilenet"})).model.encoder_width == 0.25
    for key, name in (("encoder", "resnet50"), ("architecture", "fpn"), ("architecture", "deeplabv3plus")):
        assert getattr(load_config(None, preset_with({f"model.{key}": name})).model, key) == name
