"""The shell scripts of jobs/, run with a `ray` and an `aws` that only write down what they are asked; and every command
that the cluster files and the README name, read by our own command line."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from batchseg.cli import cli
from batchseg.config import load_config

PROJECT = Path(__file__).parents[1]
SCRIPTS = sorted((PROJECT / "jobs").glob("*.sh"))
# Writes its arguments, one a line between dashes, and the token mode.
RECORDER = """#!/usr/bin/env bash
{ printf '%s\\n' "$@"; echo "MODE=${RAY_AUTH_MODE:-}"; echo "--------"; } >> "$RECORD"
[[ " $* " == *" get-role "* && " $* " == *" Role.Arn "* ]] && echo arn:aws:iam::account:role/batchseg-worker
[[ " $* " == *" get-"* && " $* " != *" Role.Arn "* ]] && exit 1
exit 0
"""


class Shell:
    """Runs scripts of a copy of jobs/ in which no .venv hides the recorders."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(PROJECT / "jobs", folder / "project" / "jobs")
        self.project, self.home, self.record = folder / "project", folder / "home", folder / "record"
        self.home.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        for name in ("ray", "aws"):
            (tools / name).write_text(RECORDER)
            (tools / name).chmod(0o755)
        self.environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(self.home), "RECORD": str(self.record)}

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(self.project / script), *arguments],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def calls(self) -> list[list[str]]:
        return [call.strip("\n").split("\n") for call in self.record.read_text().split("--------\n")[:-1]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash_and_stop_at_the_first_fault(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(line for line in lines if line and not line.startswith("#"))
    assert first == "set -euo pipefail"


@pytest.mark.parametrize(("script", "module"), [("submit", "batchseg.train"), ("segment", "batchseg.segment")])
def test_the_job_gets_every_argument_as_it_was_given(shell: Shell, script: str, module: str) -> None:
    code, printed = shell.run(f"jobs/{script}.sh", "/shared/my photos", "--out", "runs/x y")
    assert (code, printed) == (0, "")
    (call,) = shell.calls()
    entry = call[call.index("--") + 1 : -1]
    assert entry == ["python", "-m", module, "/shared/my photos", "--out", "runs/x y"]
    assert call[:4] == ["job", "submit", "--working-dir", "."]
    assert "runs" in json.loads(call[call.index("--runtime-env-json") + 1])["excludes"]


@pytest.mark.parametrize(
    ("variables", "has_file", "mode"),
    [
        ({}, False, ""),
        ({}, True, "token"),
        ({"RAY_AUTH_TOKEN": "secret"}, False, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "/some/file"}, False, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "disabled"),
    ],
)
def test_a_token_is_sent_where_there_is_one(shell: Shell, variables: dict[str, str], has_file: bool, mode: str) -> None:
    if has_file:
        (shell.home / ".ray").mkdir()
        (shell.home / ".ray" / "auth_token").write_text("secret")
    shell.run("jobs/submit.sh", **variables)
    assert shell.calls()[0][-1] == f"MODE={mode}"


def test_without_ray_the_script_says_so(shell: Shell) -> None:
    bare = shell.project / "bare"
    bare.mkdir()
    for name in ("bash", "dirname"):
        os.symlink(str(shutil.which(name)), bare / name)
    code, printed = shell.run("jobs/submit.sh", PATH=str(bare))
    assert code == 2
    assert "no `ray` here" in printed


def test_roles_get_sound_policies_for_the_bucket_alone(shell: Shell) -> None:
    code, printed = shell.run("jobs/aws-roles.sh", "my-bucket")
    assert code == 0, printed
    documents: dict[tuple[str, str], str] = {}
    for call in shell.record.read_text().split("--------\n"):
        if found := re.search(r"--policy-document\n(.*)\nMODE=", call, re.DOTALL):
            role, policy = (re.search(rf"--{word}\n(\S+)", call) for word in ("role-name", "policy-name"))
            assert role
            assert policy
            documents[role[1], policy[1]] = found[1]
    policies = {key: json.loads(text)["Statement"] for key, text in documents.items()}
    assert set(policies) == {("batchseg-worker", "data"), ("batchseg-head", "data"), ("batchseg-head", "pass-worker")}
    resources = {statement["Resource"] for statement in policies["batchseg-worker", "data"]}
    assert resources == {"arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/*"}
    (passing,) = policies["batchseg-head", "pass-worker"]
    assert passing["Resource"] == "arn:aws:iam::account:role/batchseg-worker"


@pytest.mark.parametrize("arguments", [(), ("s3://bucket",), ("a", "b"), ("--help",)])
def test_roles_without_a_bucket_ask_aws_for_nothing(shell: Shell, arguments: tuple[str, ...]) -> None:
    code, printed = shell.run("jobs/aws-roles.sh", *arguments)
    assert code == 2
    assert "usage: jobs/aws-roles.sh BUCKET" in printed
    assert not shell.record.exists()


# --- Commands that are named ------------------------------------------------------------------------------------------


def list_pages() -> dict[str, str]:
    """The cluster files, and what the README's section on clusters has between its fences."""
    paths = [PROJECT / "cluster.yaml", *SCRIPTS, *sorted((PROJECT / "jobs").glob("cluster-*.yaml"))]
    section = re.search(r"^## Cluster\n.*?^## ", (PROJECT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert section
    fenced = re.findall(r"^```\n(.*?)^```", section[0], re.DOTALL | re.MULTILINE)
    return {**{path.name: path.read_text() for path in paths}, "README.md": "\n".join(fenced)}


def list_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """(file, verb, arguments) of every call of batchseg that they name, and of the RayJobs."""
    commands = []
    for name, text in list_pages().items():
        joined = re.sub(r" *\\\n#? *", " ", text)
        for line in re.findall(r"^(?:#\s+(?:command:)?\s*)?((?:jobs/s|batchseg ).*)$", joined, re.MULTILINE):
            program, *arguments = shlex.split(line, comments=True)
            verb = {"jobs/submit.sh": "train", "jobs/segment.sh": "segment"}.get(program) or arguments.pop(0)
            commands.append((name, verb, tuple(arguments)))
    for path in (PROJECT / "jobs" / "rayjob-train.yaml", PROJECT / "jobs" / "rayjob-segment.yaml"):
        python, flag, module, *arguments = shlex.split(yaml.safe_load(path.read_text())["spec"]["entrypoint"])
        assert (python, flag) == ("python", "-m")
        commands.append((path.name, module.removeprefix("batchseg."), tuple(arguments)))
    return commands


def test_commands_are_found_in_every_file() -> None:
    sources = {name for name, _, _ in list_commands()}
    assert sources >= {"cluster.yaml", "cluster-ssh.yaml", "submit.sh", "segment.sh", "rayjob-train.yaml",
                       "rayjob-segment.yaml", "README.md"}  # fmt: skip


@pytest.mark.parametrize(("name", "verb", "arguments"), list_commands())
def test_the_command_line_takes_it(
    name: str, verb: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    command = cli.commands[verb]
    given = command.make_context(verb, list(arguments)).params
    if verb == "train":
        knobs = {key.replace("__", "."): value for key, value in given.items() if "__" in key or key in ("data", "out")}
        load_config(given["config"], {key: value for key, value in knobs.items() if value is not None})
