"""The command line: one sub-command = one call. Heavy rooms are imported only by the command that needs them."""

import os
import sys
import traceback
from typing import Any, NoReturn

import click

from batchseg import __version__, errors, storage
from batchseg.config import TrainConfig, iterate_knobs, load_config
from batchseg.console import Console, show_scores
from batchseg.runtime import QUIET_ENVIRONMENT

DEFAULT_CONFIG = "batchseg.yaml"

_EXIT_CODES = """\b
Exit codes: 0 done; 1 internal fault; 2 wrong argument, config, data or bundle (nothing written);
3 finished, but some images failed; 4 stopped before the end; 130 interrupted."""
_ADDRESS_HELP = (
    "Ray: local starts one here, auto or host:port joins a cluster. "
    "Default: the cluster of a submitted job or of RAY_ADDRESS, else local."
)

address_option = click.option("--address", metavar="ADDRESS", help=_ADDRESS_HELP)
model_option = click.option(
    "--model",
    "bundle",
    metavar="BUNDLE",
    help="bundle; default the one OUT was made with, then $BATCHSEG_MODEL, then the newest under runs/",
)


actors_option = click.option(
    "--actors", type=click.IntRange(1), help="model actors; default one per GPU, without GPUs one per 8 CPUs"
)
gpus_per_actor_option = click.option(
    "--gpus-per-actor", type=click.FloatRange(0), help="default 1 where the cluster has GPUs, else 0"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="batchseg")
def cli() -> None:
    """Train an encoder-decoder on your labelled images with all the GPUs of a Ray cluster, then segment any pile of
    images with it: a mask, an overlay and one Parquet row for every image, failures included."""


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="folder for everything the demo makes")
@address_option
def demo(out: str, address: str | None) -> None:
    """Draw a small labelled set, check it, train, evaluate and segment: the whole job, without network or data."""
    from batchseg.demo import run_demo

    run_demo(out, address=address, console=Console())


@cli.command()
@click.argument("data")
def check(data: str) -> None:
    """Look at every image and mask of DATA (a folder or a dataset.yaml) and name what will not do."""
    from batchseg.doctor import check_dataset, show_diagnosis

    console = Console()
    dataset, diagnosis = check_dataset(data, console)
    show_diagnosis(console, dataset, diagnosis)
    if diagnosis.errors:
        sys.exit(errors.EXIT_USAGE)


def _add_knobs(command: click.Command) -> click.Command:
    """One option per knob of the config, with its help and default."""
    for dotted, text, default in iterate_knobs():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        command.params.append(
            click.Option(
                [f"--{dotted}", dotted.replace(".", "__")],
                help=f"{text}  [{'none' if shown is None else shown}]",
                metavar="VALUE",
            )
        )
    return command


@_add_knobs
@cli.command()
@click.argument("config", required=False)
@address_option
def train(config: str | None, address: str | None, **knobs: str | None) -> None:
    """Train with Ray Train; ends with a bundle and scores under `out`. The same command again resumes.

    CONFIG is a YAML page; without it ./batchseg.yaml if it is there, else the set that batchseg draws itself.
    Every key can be given as --section.key VALUE; defaults stand in brackets.
    """
    console = Console()
    overrides = {name.replace("__", "."): value for name, value in knobs.items() if value is not None}
    loaded = _load_train_config(config, overrides, console)
    from batchseg.cluster import resolve_output
    from batchseg.train import train_model

    out = resolve_output(loaded.out)
    console.say(f"out: {out}")
    result = train_model(loaded, address=address, console=console)
    if not result.was_finished:
        show_scores(console, f"val, epoch {result.scores['epoch']}", result.scores)
    console.say(f"bundle: {result.bundle}")
    console.say(f"next:   batchseg segment YOUR_IMAGES --model {result.bundle}")


def _load_train_config(config: str | None, overrides: dict[str, str], console: Console) -> TrainConfig:
    if config is None and os.path.exists(DEFAULT_CONFIG):
        config = DEFAULT_CONFIG
        console.say(f"config: ./{DEFAULT_CONFIG}")
    if config is not None or "data" in overrides:
        return load_config(config, overrides)
    from batchseg.presets import DRAWN_SET

    console.say("no config given: training on the set that batchseg draws itself")
    return load_config(None, {**DRAWN_SET, **overrides})


@cli.command()
@click.argument("data")
@model_option
@click.option("--split", help="split to score; default test if the data has one, else val")
@click.option("--out", help="folder for scores.json")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="images per call of the model")
@actors_option
@gpus_per_actor_option
@address_option
def evaluate(data: str, bundle: str | None, **options: Any) -> None:
    """Score a bundle on labelled DATA through the same predictor that `segment` uses."""
    from batchseg.evaluate import evaluate_dataset

    console = Console()
    scores = evaluate_dataset(data, bundle or _find_bundle(console), **options, console=console)
    show_scores(console, f"{scores['split']} of {data}", scores)


@cli.command()
@click.argument("input", metavar="INPUT")
@model_option
@click.option("--out", metavar="OUT", help="output folder; default runs/<name of INPUT>-segmented")
@click.option(
    "--write", default="parquet,png", show_default=True, help="where masks and overlays go: parquet, png or both"
)
@click.option("--overlays", type=click.Choice(["png", "jpg", "none"]), default="png", show_default=True)
@click.option(
    "--overlay-size",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="longest side in pixels; 0 is the image's own",
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="images per call of the model")
@actors_option
@gpus_per_actor_option
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0, min_open=True),
    default=250,
    show_default=True,
    help="larger images become a row `too_large`",
)
@address_option
def segment(input: str, bundle: str | None, out: str | None, address: str | None, **options: Any) -> None:
    """Segment every image under INPUT (a directory): masks, overlays and one Parquet row per image under OUT.

    The same line again does only what is missing: new, changed and failed images.
    """
    from batchseg.segment import SegmentOptions, segment_images, show_result

    console = Console()
    result = segment_images(
        input, bundle, out, options=SegmentOptions.from_flags(**options),
        find_bundle=lambda: _find_bundle(console), address=address, console=console,
    )  # fmt: skip
    show_result(console, result)
    if result.failed:
        sys.exit(errors.EXIT_SOME_FAILED)


def _find_bundle(console: Console) -> str:
    """$BATCHSEG_MODEL, else the newest bundle under runs/. Raises UserError when there is none."""
    from batchseg.bundle import CARD_FILE
    from batchseg.cluster import resolve_output

    named = os.environ.get("BATCHSEG_MODEL")
    if named:
        console.say(f"model: {named} ($BATCHSEG_MODEL)")
        return named
    cards = [entry for entry in _list_bundles(resolve_output("runs")) if storage.name_of(entry.path) == CARD_FILE]
    if not cards:
        raise errors.UserError("no bundle: give --model BUNDLE, set $BATCHSEG_MODEL, or train one under runs/")
    newest = storage.folder_of(max(cards, key=lambda entry: entry.modified).location)
    console.say(f"model: {newest} (the newest under runs/)")
    return newest


def _list_bundles(runs: str) -> list[storage.FileEntry]:
    """The files of runs/NAME/bundle and runs/NAME/train/bundle (the demo's); nothing else is walked through."""
    if storage.file_type(runs) != "folder":
        return []
    return [
        entry
        for name in sorted(os.listdir(runs))
        for place in (storage.join(runs, name, "bundle"), storage.join(runs, name, "train", "bundle"))
        if storage.file_type(place) == "folder"
        for entry in storage.list_files(place, recursive=False)
    ]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with one of the documented codes."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run_cli(arguments))


def run_cli(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Errors are printed as one message, without a traceback."""
    try:
        cli.main(arguments, prog_name="batchseg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return errors.EXIT_USAGE
    except (errors.UserError, errors.StoppedError) as error:
        print(f"batchseg: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("batchseg: interrupted; the same command goes on from here", file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else errors.EXIT_FAULT
    except Exception as error:
        if full := errors.describe_no_space(error):
            print(f"batchseg: {full}", file=sys.stderr)
            return full.exit_code
        traceback.print_exc()
        print(
            "batchseg: this is a fault of batchseg itself (exit 1); please report it with the lines above",
            file=sys.stderr,
        )
        return errors.EXIT_FAULT
    return errors.EXIT_DONE
