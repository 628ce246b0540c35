"""The command line as a user meets it: help, exit codes, one clear message on stderr."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchseg import storage
from batchseg.cli import _find_bundle, run_cli
from batchseg.console import Console
from batchseg.errors import UserError
from batchseg.outputs import JOB_VARIABLE


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run_cli([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("verb", ["demo", "check", "train", "evaluate", "segment", "plan", "verify"])
def test_every_verb_has_help(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, verb, "--help")
    assert code == 0
    assert f"Usage: batchseg {verb}" in out


@pytest.mark.parametrize("verb", ["segment", "plan"])
def test_segment_and_plan_help_name_the_same_options(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capfd, verb, "--help")
    for name in ("--overwrite", "--prune", "--max-failed-share", "--no-sanity-check", "--score-map", "--rle"):
        assert f"{name} " in out


def test_train_help_lists_every_knob_with_its_default(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capfd, "train", "--help")
    assert "--training.learning_rate" in out
    assert "[0.001]" in out
    assert "--cluster.workers" in out


@pytest.mark.parametrize("module", ["batchseg.train", "batchseg.segment", "batchseg.evaluate"])
def test_modules_work_as_commands(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: batchseg {module.split('.')[1]}" in done.stdout
    assert done.stderr == ""


def test_the_command_line_imports_neither_ray_nor_tensorflow() -> None:
    script = "import sys, batchseg.cli; assert not {'ray', 'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--training.epoch", "3"], "'--training.epochs'"),
        (["train", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        (["train", "--data", "nowhere"], "nowhere does not exist"),
        (["check", "nowhere"], "nowhere does not exist"),
        (["segment", "nowhere", "--model", "nobundle"], "nobundle does not exist, or holds no bundle.json"),
        (["segment", "nowhere"], "no bundle: give --model BUNDLE, set $BATCHSEG_MODEL, or train one under runs/"),
        (["segment", "nowhere", "--overlays", "gif"], "'gif' is not one of 'png', 'jpg', 'none'"),
        (["segment", "nowhere", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["segment", "nowhere", "--max-megapixels", "nan"], "nan is no number that can be used"),
        (["plan", "nowhere", "--max-failed-share", "nan"], "nan is no number that can be used"),
        (["plan", "nowhere", "--gpus-per-actor", "inf"], "inf is no number that can be used"),
        (["plan", "nowhere", "--min-confidence", "1"], "1.0 is not in the range 0<=x<1"),
        (["evaluate", "nowhere"], "no bundle"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_wrong_arguments_exit_2_with_one_message(
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHSEG_MODEL", raising=False)
    code, _, err = run(capfd, *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_unknown_config_key_names_the_nearest(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "job.yaml"
    page.write_text("training: {epoch: 3}\n")
    code, _, err = run(capfd, "train", page)
    assert code == 2
    assert "unknown key 'training.epoch'; did you mean 'epochs'?" in err


def test_check_names_bad_files(capfd: pytest.CaptureFixture[str], drawn_data: Path, tmp_path: Path) -> None:
    import shutil

    code, out, _ = run(capfd, "check", drawn_data, "--out", tmp_path / "report")
    assert code == 0
    assert "errors: 0" in out
    shutil.copytree(drawn_data.parent, tmp_path / "data")
    (tmp_path / "data" / "val" / "images" / "0001.png").write_bytes(b"broken")
    code, out, _ = run(capfd, "check", tmp_path / "data", "--out", tmp_path / "report")
    assert code == 2
    assert "val/images/0001.png cannot be used: not an image" in out


def test_segment_refuses_what_is_no_input(capfd: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = run(capfd, "segment", tmp_path / "nowhere", "--model", bundle, "--out", out)
    assert (code, "INPUT" in err, "does not exist" in err) == (2, True, True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    code, _, err = run(capfd, "segment", tmp_path / "empty", "--model", bundle, "--out", out)
    assert (code, "holds no image" in err) == (2, True)
    assert not out.exists()


def test_a_tampered_bundle_is_refused(
    capfd: pytest.CaptureFixture[str], bundle: Path, drawn_data: Path, tmp_path: Path
) -> None:
    import shutil

    images = drawn_data.parent / "test" / "images"
    for name, message in (
        ("model.keras", "model.keras has sha256"),
        ("bundle.json", "was changed after it was sealed"),
    ):
        copy = tmp_path / name.partition(".")[0]
        shutil.copytree(bundle, copy)
        data = bytearray((copy / name).read_bytes())
        position = data.index(b'"name": "') + 10 if name == "bundle.json" else len(data) // 2
        data[position] ^= 1
        (copy / name).write_bytes(data)
        code, _, err = run(capfd, "segment", images, "--model", copy, "--out", tmp_path / "out")
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_segment_exit_codes(
    capfd: pytest.CaptureFixture[str], bundle: Path, drawn_data: Path, ray_session: None, tmp_path: Path
) -> None:
    import shutil

    source = tmp_path / "images"
    shutil.copytree(drawn_data.parent / "test" / "images", source)
    line = ["segment", source, "--model", bundle, "--out", tmp_path / "out", "--overlays", "none"]
    code, out, err = run(capfd, *line)
    assert (code, err) == (0, "")
    assert "12 new" in out
    code, out, _ = run(capfd, *line)
    assert code == 0
    assert "nothing to do" in out
    (source / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    code, out, err = run(capfd, *line)
    assert code == 3
    assert "Traceback" not in err


@pytest.mark.slow
def test_verify_exit_codes(
    capfd: pytest.CaptureFixture[str], bundle: Path, drawn_data: Path, ray_session: None, tmp_path: Path
) -> None:
    images, out = drawn_data.parent / "test" / "images", tmp_path / "out"
    code, _, err = run(capfd, "verify", out)
    assert (code, "is not an output of batchseg" in err) == (2, True)
    run(capfd, "segment", images, "--model", bundle, "--out", out, "--overlays", "none")
    code, printed, _ = run(capfd, "verify", out)
    assert code == 0
    (out / "masks" / "0003.png.png").unlink()
    code, printed, _ = run(capfd, "verify", out)
    assert (code, "0003.png" in printed) == (3, True)
    code, _, _ = run(capfd, "verify", out, "--repair")
    assert code == 3
    code, printed, _ = run(capfd, "segment", images, "--model", bundle, "--out", out, "--overlays", "none")
    assert (code, "1 new, 11 done" in printed) == (0, True)
    assert run(capfd, "verify", out)[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import batchseg.doctor

    def interrupt(data: str, console: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batchseg.doctor, "check_dataset", interrupt)
    code, _, err = run(capfd, "check", "anything")
    assert code == 130
    assert "the same command goes on" in err


def test_the_newest_bundle_of_a_submitted_job_may_lie_on_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.setenv("BATCHSEG_HOME", s3_bucket)
    monkeypatch.delenv("BATCHSEG_MODEL", raising=False)
    with pytest.raises(UserError, match="no bundle: give --model BUNDLE"):
        _find_bundle(Console.quiet())
    storage.write_atomic(f"{s3_bucket}/runs/drawn/bundle/bundle.json", b"{}")
    assert _find_bundle(Console.quiet()) == f"{s3_bucket}/runs/drawn/bundle"
