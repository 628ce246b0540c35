"""What AWS says of a spot machine, against a server that answers as its metadata service does.

tests/test_hosts.py drains a node with it.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from ec2_metadata import make_server

from batchseg import spot_notice


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    return tmp_path / "notice.json"


@pytest.fixture
def url(notice: Path) -> Iterator[str]:
    server = make_server(0, notice)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/latest"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_deadline_is_read(url: str, notice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert spot_notice.read_deadline(url) is None
    notice.write_text('{"action": "terminate", "time": "2026-11-26T08:22:00Z"}')
    assert spot_notice.read_deadline(url) == datetime(2026, 11, 26, 8, 22, tzinfo=UTC)


def test_it_looks_until_ray_has_taken_the_notice(url: str, notice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First there is nothing, then what cannot be read, then a Ray that does not answer at once."""
    time = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=100)
    answers = [None, "no JSON", "no JSON", "[]", f'{{"action": "stop", "time": "{time:%Y-%m-%dT%H:%M:%SZ}"}}', None]
    codes = [1, 0]
    drained: list[datetime] = []

    def wait(seconds: float) -> None:
        if answers:
            following = answers.pop(0)
            if following:
                notice.write_text(following)

    def drain(deadline: datetime) -> int:
        drained.append(deadline)
        return codes.pop(0)

    monkeypatch.setattr(spot_notice.time, "sleep", wait)
    monkeypatch.setattr(spot_notice, "drain_node", drain)
    done = CliRunner().invoke(spot_notice.main, ["--metadata", url], catch_exceptions=False)
    assert done.exit_code == 0
    assert drained == [time, time]
    assert done.output.count("looking again") == 2


def test_nobody_answers() -> None:
    with pytest.raises(OSError, match="refused"):
        spot_notice.read_deadline("http://127.0.0.1:9/latest")
