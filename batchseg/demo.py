"""The whole job on a set that batchseg draws itself: draw, check, train, evaluate, segment, and a picture of it all."""

import time
from pathlib import Path

from batchseg import cluster, images, ledger, storage
from batchseg.bundle import read_card
from batchseg.config import load_config
from batchseg.console import Console, format_duration, show_scores
from batchseg.datasets.drawn import draw_dataset
from batchseg.doctor import check_dataset
from batchseg.errors import UserError
from batchseg.evaluate import evaluate_dataset
from batchseg.presets import DRAWN_SET
from batchseg.render import draw_contact_sheet
from batchseg.segment import SegmentResult, segment_images
from batchseg.train import train_model

SHEET_FILE = "contact_sheet.png"
_SHEET_ROWS = 6


def run_demo(out: str, *, address: str | None = None, console: Console | None = None) -> str:
    """Runs the demo into `out` and returns the location of its contact sheet. Run again, it goes on."""
    console = console or Console.quiet()
    started = time.monotonic()
    out = cluster.resolve_output(out)
    if storage.is_remote(out):
        raise UserError(f"--out {out}: the demo draws its set into a local folder")
    data = str(draw_dataset(Path(out) / "data"))
    dataset, diagnosis = check_dataset(data, console)
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in dataset.splits.items())
    console.say(f"drew and checked {counts} images, {len(dataset.classes)} classes: {len(diagnosis.errors)} errors")
    with cluster.connect(address):
        config = load_config(None, {**DRAWN_SET, "data": data, "out": storage.join(out, "train")})
        bundle = train_model(config, console=console).bundle
        scores = evaluate_dataset(data, bundle, split="test", out=out, console=console)
        show_scores(console, "test split", scores)
        result = segment_images(
            storage.join(out, "data", "test", "images"), bundle, storage.join(out, "segmented"), console=console
        )
    console.say(f"segmented: {result.ok} ok, {result.failed} failed")
    sheet = draw_sheet(out, result)
    console.say(f"picture of it all:  {sheet}   ({format_duration(time.monotonic() - started)} in all)")
    console.say("next, with your own data:")
    console.say("  batchseg check   YOUR_DATA.yaml                  (one like " + data + ")")
    console.say("  batchseg train   --data YOUR_DATA.yaml --out runs/mine")
    console.say("  batchseg segment YOUR_IMAGES --model runs/mine/bundle")
    return sheet


def draw_sheet(out: str, result: SegmentResult) -> str:
    """Image, truth, mask and overlay of a few test images side by side; returns the location of the PNG."""
    card = read_card(storage.join(out, "train", "bundle"))
    names = sorted(ledger.read_index(result.out)["image_id"].to_pylist())[:_SHEET_ROWS]
    rows = []
    for name in names:
        source = _read_rgb(storage.join(out, "data", "test", "images", name))
        truth = _read_colored(storage.join(out, "data", "test", "masks", name), card.classes.palette)
        mask = _read_colored(storage.join(result.out, "masks", f"{name}.png"), card.classes.palette)
        rows.append([source, truth, mask, _read_rgb(storage.join(result.out, "overlays", f"{name}.png"))])
    sheet = draw_contact_sheet(rows, names, ["image", "truth (white: ignored)", "mask", "overlay"], card.classes)
    location = storage.join(out, SHEET_FILE)
    storage.write_atomic(location, images.encode_image(sheet, ".png"))
    return location


def _read_rgb(location: str) -> images.RgbArray:
    data = storage.read_bytes(location)
    return images.decode_image(data, images.probe_image(data))


def _read_colored(location: str, palette: images.RgbArray) -> images.RgbArray:
    return palette[images.decode_mask(storage.read_bytes(location), location)]
