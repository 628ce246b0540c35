"""A job of `segment` before it starts: everything is looked at, nothing is written. `plan` opens it, too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from batchseg import __version__, cluster, ledger, storage
from batchseg.bundle import BundleCard, check_weights, read_card
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.images import decode_image
from batchseg.lease import wait_until_free
from batchseg.listing import Listing, list_input
from batchseg.options import SegmentOptions
from batchseg.stages import Decode


@dataclass(frozen=True)
class SegmentJob:
    """What is done: where, with what, why. before: run.json as it was found. ended: the lease of a job that died."""

    out: str
    card: BundleCard
    listing: Listing
    parameters: dict[str, Any]
    options: SegmentOptions
    before: dict[str, Any] | None
    decode: Decode
    ended: bytes | None

    @property
    def run(self) -> int:
        return int((self.before or {}).get("run", 0)) + 1

    def check_parameters(self) -> None:
        """Raises UserError when OUT was made with others, and is not to be begun anew."""
        if self.before and not self.options.overwrite:
            ledger.check_same_run(self.out, self.before, self.parameters)

    def read_index(self) -> pa.Table:
        """The rows that count: none where OUT is begun anew."""
        return ledger.empty_index() if self.options.overwrite else ledger.read_index(self.out)

    def record(self, state: str, counts: dict[str, int], speed: dict[str, Any] | None = None) -> None:
        """Writes run.json."""
        ledger.write_run(
            self.out,
            {
                "state": state,
                "run": self.run,
                "parameters": self.parameters,
                "bundle": self.card.location,
                "versions": {"batchseg": __version__, "ray": ray.__version__, "pyarrow": pa.__version__},
                "updated": ledger.format_now(),
                "counts": counts,
                "speed": speed or {},
            },
        )


def open_job(
    location: str,
    bundle: str | None,
    out: str | None,
    options: SegmentOptions,
    find_bundle: Callable[[], str] | None,
    console: Console,
    decode: Decode = decode_image,
    look_at_cluster: Callable[[], None] = lambda: None,
) -> SegmentJob:
    """Looks at everything and writes nothing. Raises UserError when something is wrong.

    look_at_cluster: called before INPUT is listed, which may take minutes, unless OUT is complete as it is.
    """
    source = storage.to_absolute(location)
    out = cluster.resolve_output(out or f"runs/{storage.name_of(source)}-segmented")
    before = ledger.read_run(out)
    ended = wait_until_free(out, say=console.say)
    card = read_card(cluster.resolve_bundle(_choose_bundle(bundle, find_bundle, before, console)))
    check_weights(card)
    if not before or before["state"] != "complete":
        look_at_cluster()
    with console.live() as show:
        listing = list_input(source, options.listing, leave_out=out, show=show)
    parameters = {"input": source, "root": listing.root, "bundle_digest": card.digest, **options.list_parameters()}
    job = SegmentJob(out, card, listing, parameters, options, before, decode, ended)
    job.check_parameters()
    if listing.note:
        console.say(listing.note)
    return job


def _choose_bundle(
    bundle: str | None, find_bundle: Callable[[], str] | None, before: dict[str, Any] | None, console: Console
) -> str:
    """The one given, the one that OUT was made with, the one that the caller finds."""
    if bundle:
        return bundle
    if before:
        console.say(f"model: {before['bundle']} (the one that OUT was made with)")
        return str(before["bundle"])
    if find_bundle is None:
        raise UserError("no bundle given")
    return find_bundle()
