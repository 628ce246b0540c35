"""The options that several commands share."""

import math
from collections.abc import Callable
from typing import Any

import click

from batchseg.config import iterate_knobs

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


class FiniteRange(click.FloatRange):
    """A FloatRange that refuses nan and inf, which are in no range and above none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click.FloatRange.convert."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number that can be used", param, ctx)
        return number


actors_option = click.option(
    "--actors", type=click.IntRange(1), help="model actors; default one per GPU, without GPUs one per 8 CPUs"
)
gpus_per_actor_option = click.option(
    "--gpus-per-actor", type=FiniteRange(0), help="default 1 where the cluster has GPUs, else 0"
)

_SEGMENT_OPTIONS = (
    click.option("--out", metavar="OUT", help="output folder; default runs/<name of INPUT>-segmented"),
    click.option("--include", multiple=True, metavar="PATTERN", help="only images like 'north/**'; may be repeated"),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="no images like '*_thumb.jpg'; may be repeated"),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="only the first N by name"),
    click.option(
        "--write", default="parquet,png", show_default=True, help="where masks and overlays go: parquet, png or both"
    ),
    click.option(
        "--overlays",
        type=click.Choice(["png", "jpg", "none"]),
        default="png",
        show_default=True,
        help="format of overlays; none makes none",
    ),
    click.option(
        "--overlay-size",
        type=click.IntRange(0),
        default=512,
        show_default=True,
        help="longest side in pixels; 0 is the image's own",
    ),
    click.option("--rle", is_flag=True, help="add a column with the COCO run-length code of each class"),
    click.option("--flip", is_flag=True, help="average with the mirrored image: better masks in twice the time"),
    click.option("--scales", default="1", show_default=True, help="average over these scales, such as 0.75,1,1.25"),
    click.option(
        "--min-confidence",
        type=FiniteRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="a pixel below it becomes 255; 0 is off",
    ),
    click.option("--score-map", is_flag=True, help="also write scores/, grey PNGs of 255 times the confidence"),
    click.option(
        "--min-region",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="regions of fewer pixels take the class around them; 0 is off",
    ),
    click.option(
        "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="images or tiles per model call"
    ),
    actors_option,
    gpus_per_actor_option,
    click.option(
        "--max-megapixels",
        type=FiniteRange(0, min_open=True),
        default=250,
        show_default=True,
        help="larger images become a row `too_large`",
    ),
    click.option(
        "--max-failed-share",
        type=FiniteRange(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="stop (exit 4) when more of the images fail, 200 or more being done; 1 is never",
    ),
    click.option(
        "--no-sanity-check", "sanity_check", flag_value=False, default=True, help="do not stop over odd results"
    ),
    click.option("--overwrite", is_flag=True, help="begin OUT anew: remove what its rows name, then do everything"),
    click.option("--prune", is_flag=True, help="drop rows and pictures of images that INPUT holds no more"),
    address_option,
)  # fmt: skip
"""What `segment` and `plan` take: the same line can be given to both."""


def add_segment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command with them."""
    for option in reversed(_SEGMENT_OPTIONS):
        option(command)
    return command


def add_knobs(command: click.Command) -> click.Command:
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
