"""The command line: one sub-command = one call. Heavy rooms are imported only by the command that needs them."""

import os
import sys
import traceback
from typing import Any, NoReturn

import click

from batchseg import __version__, errors, storage
from batchseg.access import describe_refusal
from batchseg.cli_options import (
    FiniteRange,
    actors_option,
    add_knobs,
    add_segment_options,
    address_option,
    gpus_per_actor_option,
    model_option,
)
from batchseg.config import TrainConfig, load_config
from batchseg.console import Console, show_scores
from batchseg.runtime import QUIET_ENVIRONMENT

DEFAULT_CONFIG = "batchseg.yaml"

_EXIT_CODES = """\b
Exit codes: 0 done; 1 internal fault; 2 wrong argument, config, data or bundle (nothing written);
3 finished, but some images failed (verify: something is amiss); 4 stopped before the end; 130 interrupted."""


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
@click.option("--out", metavar="DIR", help="folder for check.json and contact_sheet.png; default runs/<name>-check")
@click.option("--fix-draft", metavar="FILE", help="write the dataset.yaml that mends what can be mended there")
def check(data: str, out: str | None, fix_draft: str | None) -> None:
    """Look at every image and mask of DATA (a folder or a dataset.yaml): a table of classes, then what will not do,
    the worst first, with files and the fix.

    Exit code 0: only warnings and remarks; 2: errors.
    """
    from batchseg.doctor import check_dataset, name_report, show_diagnosis, write_draft, write_report
    from batchseg.outputs import resolve_output

    console = Console()
    dataset, diagnosis = check_dataset(data, console)
    show_diagnosis(console, dataset, diagnosis)
    out = resolve_output(out or f"runs/{name_report(dataset)}-check")
    console.say("written: " + ", ".join(write_report(out, dataset, diagnosis)))
    if fix_draft:
        console.say(f"draft: {write_draft(resolve_output(fix_draft), dataset, diagnosis)}")
    if diagnosis.errors:
        sys.exit(errors.EXIT_USAGE)


@add_knobs
@cli.command()
@click.argument("config", required=False)
@click.option(
    "--dry-run", is_flag=True, help="only print the resolved config, the model, and time and memory from a few steps"
)
@address_option
def train(config: str | None, address: str | None, dry_run: bool, **knobs: str | None) -> None:
    """Train with Ray Train; ends with a bundle and scores under `out`. The same command again resumes.

    CONFIG is a YAML page; without it ./batchseg.yaml if it is there, else the set that batchseg draws itself.
    Every key can be given as --section.key VALUE; defaults stand in brackets.
    """
    console = Console()
    overrides = {name.replace("__", "."): value for name, value in knobs.items() if value is not None}
    loaded = _load_train_config(config, overrides, console)
    if dry_run:
        from batchseg.train_plan import plan_training

        plan_training(loaded, address=address, console=console)
        return
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
    from batchseg.presets import preset_with

    console.say("no config given: training on the set that batchseg draws itself")
    return load_config(None, preset_with(overrides))


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
@add_segment_options
def segment(input: str, bundle: str | None, out: str | None, address: str | None, **flags: Any) -> None:
    """Segment every image of INPUT: masks, overlays and one Parquet row per image under OUT.

    INPUT is a directory, s3://bucket/prefix, a pattern ('photos/**/*.jpg'), one image, a list (.txt; .csv or .parquet
    with a column `uri`), or Parquet files that hold images.
    The same line again does only what is missing: new, changed and failed images.
    """
    from batchseg.options import SegmentOptions
    from batchseg.segment import segment_images, show_result

    console = Console()
    result = segment_images(
        input, bundle, out, options=SegmentOptions.from_flags(**flags),
        find_bundle=lambda: _find_bundle(console), address=address, console=console,
    )  # fmt: skip
    show_result(console, result)
    if result.failed:
        sys.exit(errors.EXIT_SOME_FAILED)


@cli.command()
@click.argument("input", metavar="INPUT")
@model_option
@add_segment_options
@click.option("--price-per-hour", type=FiniteRange(0), help="of the whole cluster, for an estimate of the cost")
def plan(
    input: str, bundle: str | None, out: str | None, address: str | None, price_per_hour: float | None, **flags: Any
) -> None:
    """Say what `segment` with the same arguments would do and why, and estimate time, memory, bytes and cost.

    Measures on a sample of the images that are to do. Writes nothing.
    """
    from batchseg.options import SegmentOptions
    from batchseg.plan import plan_job, show_plan

    console, options = Console(), SegmentOptions.from_flags(**flags)
    found = plan_job(
        input, bundle, out, options=options, find_bundle=lambda: _find_bundle(console), address=address, console=console
    )
    show_plan(console, found, options, price_per_hour)


@cli.command()
@click.argument("out", metavar="OUT")
@click.option("--repair", is_flag=True, help="remove what is wrong, so that the same `segment` line does it again")
def verify(out: str, repair: bool) -> None:
    """Look at every row and picture of OUT: nothing twice, nothing missing, every mask as its row says.

    Exit code 0: everything is there; 3: something is wrong or still to do.
    """
    from batchseg.verify import show_verification, verify_output

    console = Console()
    with console.live() as show:
        found = verify_output(out, repair=repair, show=show)
    show_verification(console, found)
    if not (found.is_clean and found.is_complete):
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
        for name in storage.list_names(runs)
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
        if told := errors.describe_no_space(error) or describe_refusal(error):
            print(f"batchseg: {told}", file=sys.stderr)
            return told.exit_code
        traceback.print_exc()
        print(
            "batchseg: this is a fault of batchseg itself (exit 1); please report it with the lines above",
            file=sys.stderr,
        )
        return errors.EXIT_FAULT
    return errors.EXIT_DONE
