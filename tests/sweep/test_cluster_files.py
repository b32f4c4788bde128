"""The files in jobs/cluster: valid for those who read them, closed to strangers, commands that run.

Neither Ray nor a scheduler is started: EC2 is moto's, and SLURM and Ray's programs are stand-ins
that write down how they are called.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cluster_files import (
    CLUSTER,
    ENDS,
    NODE,
    TOP,
    cluster_of,
    executable,
    package_parts,
    pyproject,
    text_of,
)
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts as ray_program

import distsynth.sweep.run
from distsynth.cli.main import main

LAUNCHER = ("aws.yaml", "gcp.yaml", "onprem.yaml")
CLOUDS = ("aws.yaml", "gcp.yaml")
TO_EDIT = (*LAUNCHER, "kuberay-rayjob.yaml", "slurm.sh")
RUN_SWEEP = ("README.md", "kuberay-rayjob.yaml", "slurm.sh")


def prepared(name: str) -> dict[str, Any]:
    """A launcher's file with Ray's defaults filled in, as `ray up` goes on with it."""
    return prepare_config(cluster_of(name))


def start_commands(config: dict[str, Any]) -> dict[str, str]:
    """The command that starts Ray on the head and on a worker."""
    return {
        kind: "\n".join(config[f"{kind}_start_ray_commands"]).replace("$RAY_HEAD_IP", NODE)
        for kind in ("head", "worker")
    }


def arguments_of(command: str, text: str) -> list[list[str]]:
    """The arguments of every call of a command in a shell text."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for rest in line.split(f"{command} ")[1:]:
            words = shlex.shlex(rest, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            given = []
            for word in words:
                if word in ENDS:
                    break
                given.append(word)
            found.append(given[1:] if given[:1] == ["--"] else given)
    return found


def sweep_arguments(text: str) -> list[list[str]]:
    """The arguments of every command in a shell text that runs jobs/tune_gan.py."""
    return arguments_of("tune_gan.py", text)


def shell_of(name: str) -> str:
    """What a file runs, or has run, in a shell."""
    text = text_of(name)
    if name.endswith(".md"):
        return "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    if name.endswith(".yaml"):
        return "\n".join(strings(yaml.safe_load(text)))
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


class Parsed(BaseException):
    """The command line was read to its end. No exception that the program could take for a bug."""


def parsed_plan(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> tuple[Any, ...]:
    """What a sweep's command line asks for: name, configuration, space, search."""

    def stop(*given: Any, **_: Any) -> None:
        raise Parsed(*given)

    monkeypatch.setattr(distsynth.sweep.run, "make_plan", stop)
    known = [re.sub(r"\$\w+", "s3://bucket", arg) for arg in args]
    with pytest.raises(Parsed) as parsed:
        main(["sweep", *known, "--address", "auto"])
    return parsed.value.args


# What every file must hold.


@pytest.mark.parametrize("name", TO_EDIT)
def test_what_to_edit_is_listed_at_the_top(name):
    top, _, body = text_of(name).partition("\n\n")
    used = set(re.findall(r"EDIT_\w+", body))
    assert used
    assert used == set(re.findall(r"EDIT_\w+", top.partition("# Edit:")[2]))


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_nothing_listens_everywhere(path):
    assert "0.0.0.0" not in path.read_text(encoding="utf-8")


def test_one_version_of_ray():
    (ray_version,) = re.findall(r"^ray_version=([\d.]+)", text_of("setup_node.sh"), re.MULTILINE)
    assert cluster_of("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray_version
    dockerfile = text_of("Dockerfile")
    assert re.findall(r"\d+\.\d+\.\d+", dockerfile) == [ray_version] * 2


@pytest.mark.parametrize("name", RUN_SWEEP)
def test_sweeps_are_resumable_and_parse(name, monkeypatch):
    commands = sweep_arguments(shell_of(name))
    assert commands
    for args in commands:
        assert "--resume" in args
        sweep_name, config, space, sweep = parsed_plan(monkeypatch, args)
        assert sweep_name == "lambdas"
        assert config.data.shards.startswith("s3://")
        assert "optim.lr_generator" in space
        assert (sweep.search, sweep.scheduler, sweep.gpus) == ("optuna", "asha", 1)


# The cluster launcher.


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_accepts(name):
    config = prepared(name)
    validate_config(config)
    assert "0.0.0.0" not in "\n".join(strings(config))


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_closed(name, kind):
    command = start_commands(prepared(name))[kind]
    assert "RAY_AUTH_MODE=token" in command
    assert "RAY_USAGE_STATS_ENABLED=0" in command
    (args,) = arguments_of("ray start", command)
    options = ray_program.start.make_context("ray start", args).params
    if kind == "head":
        assert options["head"]
        assert options["dashboard_host"] == "127.0.0.1"
        assert options["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    else:
        assert options["address"] == f"{NODE}:6379"
    assert bool("ray stop" in command) == (name in CLOUDS)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_is_not_started_twice_on_own_machines(kind, tmp_path):
    port = f"9{os.getpid()}"  # of no other Ray that runs here
    running = {
        "head": f"gcs_server --log_dir=x --gcs_server_port={port} --node-ip-address=y",
        "worker": f"raylet --node_ip_address=x --gcs-address={NODE}:{port} --session-name=y",
    }
    executable(tmp_path / "ray", 'echo "$@"')
    command = start_commands(prepared("onprem.yaml"))[kind].replace("6379", port)

    def started() -> str:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        words = ["bash", "-c", command]
        return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout

    assert started().startswith("start ")
    # A process whose command line reads like Ray's.
    words = ["bash", "-c", f"exec -a '{running[kind]}' sleep 60"]
    with subprocess.Popen(words) as process:
        try:
            while port.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                assert process.poll() is None
            assert started() == ""
        finally:
            process.kill()


@pytest.mark.parametrize("name", LAUNCHER)
def test_nodes_get_the_package_and_the_token(name):
    config = cluster_of(name)
    mounts = config["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    for remote, local in mounts.items():
        assert (TOP / local).exists()
        assert remote == f"~/distsynth-source/{Path(local).name}"
    assert set(mounts.values()) == {*package_parts(), "jobs/cluster/setup_node.sh"}
    (setup,) = config["setup_commands"]
    script, storage, extra, *requirements = shlex.split(setup)[1:]
    assert script == "~/distsynth-source/setup_node.sh"
    assert (storage, extra, requirements) == {
        "aws.yaml": ("s3://EDIT_BUCKET", "s3", ["boto3"]),
        "gcp.yaml": ("gs://EDIT_BUCKET", "gs", ["google-api-python-client"]),
        "onprem.yaml": ("EDIT_SHARED", "", []),
    }[name]
    assert extra in ("", *pyproject()["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_and_the_head_is_not(name):
    config = cluster_of(name)
    types = config["available_node_types"]
    head, worker = types["head"], types["worker"]
    assert config["head_node_type"] == "head"
    assert "spot" not in str(head).lower()
    assert head["resources"]["CPU"] == 0
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == config["max_workers"]
    assert worker["resources"]["GPU"] == 1
    if name == "aws.yaml":
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    else:
        scheduling = worker["node_config"]["scheduling"]
        assert scheduling["provisioningModel"] == "SPOT"
        assert scheduling["onHostMaintenance"] == "TERMINATE"


@pytest.mark.slow
def test_aws_launches_what_is_asked(monkeypatch, tmp_path):
    """Ray's own EC2 code makes both kinds of node, and no group or role of its own."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    region = "eu-central-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc)["GroupId"]
        for profile in ("head", "worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        edits = {
            "EDIT_REGION": region,
            "EDIT_BUCKET": "bucket",
            "EDIT_IMAGE_ID": ec2.describe_images()["Images"][0]["ImageId"],
            "EDIT_SECURITY_GROUP_ID": group,
            "EDIT_HEAD_PROFILE": "head",
            "EDIT_WORKER_PROFILE": "worker",
        }
        text = re.sub(r"EDIT_\w+", lambda found: edits[found[0]], text_of("aws.yaml"))
        config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind in ("head", "worker"):
            node = config["available_node_types"][kind]["node_config"]
            provider.create_node(node, {"ray-node-name": kind}, 1)
        launched = {
            instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]: instance
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        }
        assert launched["head"].get("InstanceLifecycle") is None
        assert launched["worker"]["InstanceLifecycle"] == "spot"
        for instance in launched.values():
            assert [given["GroupId"] for given in instance["SecurityGroups"]] == [group]
        groups = ec2.describe_security_groups()["SecurityGroups"]
        assert {found["GroupName"] for found in groups} == {"default", "own"}
        assert iam.list_roles()["Roles"] == []


def test_submitting_passes_the_arguments_on(monkeypatch):
    """The README's `ray submit` through Ray's own command line, up to where it would connect."""
    ran = []
    monkeypatch.setattr(ray_program, "rsync", lambda *_, **__: None)
    monkeypatch.setattr(ray_program, "exec_cluster", lambda _, cmd, **__: ran.append(cmd))
    text = shell_of("README.md")
    (given,) = [line for line in arguments_of("ray submit", text) if line]
    result = CliRunner().invoke(ray_program.submit, given, catch_exceptions=False)
    assert result.exit_code == 0
    assert given[:3] == ["jobs/cluster/aws.yaml", "jobs/tune_gan.py", "--"]
    # The head's shell expands what stood in single quotes here.
    assert ran == ["python ~/tune_gan.py " + " ".join(given[3:])]
    assert "$DISTSYNTH_STORAGE/sweeps" in ran[0]


def test_a_job_needs_no_variable_of_the_node():
    """`ray job submit` quotes its arguments, so that the head expands nothing."""
    jobs = [part.partition("ray job submit")[2] for part in shell_of("README.md").split("\n\n")]
    (job,) = [part for part in jobs if part]
    assert '"$DISTSYNTH_STORAGE/sweeps"' in job
    assert "'$" not in job
    assert "$" not in cluster_of("kuberay-rayjob.yaml")["spec"]["entrypoint"]


# Setting up a node.


@pytest.fixture
def node(tmp_path):
    """A machine that has received the mounted files; its Python writes down how it is called."""
    home, log = tmp_path / "home", tmp_path / "log"
    source = home / "distsynth-source"
    (source / "distsynth").mkdir(parents=True)
    (source / "distsynth" / "train.py").write_text("1\n", encoding="utf-8")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("token", encoding="utf-8")
    log.touch()
    python = f"""
    echo "python $*" >>{log}
    if [[ "$1 $2" == "-m venv" ]]; then
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        cp "$0" "$3/bin/pip"
    fi
    """
    executable(tmp_path / "bin" / "python3", python)

    def run(command: str) -> str:
        env = {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        ended = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def set_up(*args: str) -> list[str]:
        """Run the script; return the installations."""
        log.write_text("", encoding="utf-8")
        run(shlex.join(["bash", str(CLUSTER / "setup_node.sh"), *args]))
        return re.findall(r"install .*", log.read_text(encoding="utf-8"))

    return home, run, set_up


def test_package_is_installed_once_for_a_state_of_the_source(node):
    home, _, set_up = node
    (installation,) = set_up("s3://bucket", "s3", "boto3")
    assert re.search(r" /\S+\[s3\] ray\[default,tune\]==[\d.]+ boto3$", installation)
    assert set_up("s3://bucket", "s3", "boto3") == []
    cache = home / "distsynth-source" / "distsynth" / "__pycache__"
    cache.mkdir()
    (cache / "train.pyc").touch()
    assert set_up("s3://bucket", "s3", "boto3") == []
    (home / "distsynth-source" / "distsynth" / "train.py").write_text("2\n", encoding="utf-8")
    assert len(set_up("s3://bucket", "s3", "boto3")) == 1
    (installation,) = set_up("/shared", "")
    assert "[s3]" not in installation


def test_ray_finds_the_environment_in_a_login_shell(node):
    home, run, set_up = node
    for _ in range(2):
        set_up("/shared", "")
    show = "echo $DISTSYNTH_STORAGE $RAY_AUTH_MODE $RAY_USAGE_STATS_ENABLED $(command -v python)"
    shown = run(" ".join(_with_interactive(show)))
    assert shown.split() == ["/shared", "token", "0", f"{home}/distsynth-venv/bin/python"]
    assert (home / ".bashrc").read_text(encoding="utf-8").count("distsynth") == 1
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / ".ray").stat().st_mode) == 0o700


# Kubernetes.


# SLURM.
