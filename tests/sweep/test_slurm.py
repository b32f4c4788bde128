"""The scripts for SLURM, with stand-ins for its programs that write down how they are called."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import pytest
from cluster_files import (
    CLUSTER,
    NODE,
    executable,
    text_of,
)
from ray.scripts import scripts as ray_program


@pytest.fixture
def slurm(tmp_path):
    """Run slurm.sh on two nodes that are stand-ins, with a driver that does as it is told."""
    submitted, storage, log = tmp_path / "repository", tmp_path / "storage", tmp_path / "log"
    programs = submitted / ".venv" / "bin"
    record = f'echo "$(basename "$0") $*" >>{log}\n'
    executable(programs / "scontrol", f'{record}[[ "$1" != show ]] || printf "n1\\nn2\\n"')
    executable(programs / "hostname", f'echo "{NODE} 203.0.113.1 "')
    executable(programs / "srun", f'{record}while [[ $1 == -* ]]; do shift; done; exec "$@"')
    ray = f"""
    {record}
    [[ $1 == start ]] || exit ${{HEAD_MISSING:-0}}
    stat --format "token %a" "$RAY_AUTH_TOKEN_PATH" >>{log}
    [[ -z $HEAD_MISSING ]] || exit 1
    exec sleep 60
    """
    executable(programs / "ray", ray)
    driver = f"""
    {record}
    echo "address $RAY_ADDRESS" >>{log}
    trap 'echo interrupted >>{log}; exit 130' USR1
    until (($(grep --count ^token {log}) == 2)); do sleep 0.05; done
    [[ $DRIVER == signal ]] || exit "$DRIVER"
    kill -USR1 "$PPID"
    while :; do sleep 0.05; done
    """
    executable(programs / "python", driver)
    script = tmp_path / "spooled"
    script.write_text(
        text_of("slurm.sh").replace("/tmp/", f"{tmp_path}/").replace("EDIT_SHARED", str(storage)),
        encoding="utf-8",
    )

    def run(driver: str, **more: str) -> tuple[int, list[str]]:
        """Run the job; return its status and the calls."""
        env = {
            "PATH": os.environ["PATH"],
            "DRIVER": driver,
            "SLURM_SUBMIT_DIR": str(submitted),
            "SLURM_JOB_ID": "4321",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
            **more,
        }
        ended = subprocess.run(
            ["bash", str(script)], cwd=tmp_path, env=env, capture_output=True, timeout=300
        )
        assert list(storage.iterdir()) == [], "the token outlived the job"
        return ended.returncode, log.read_text(encoding="utf-8").splitlines()

    return run


@pytest.mark.parametrize("name", ["slurm.sh", "setup_node.sh"])
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)


def test_slurm_asks_for_a_signal_and_a_second_try():
    options = re.findall(r"^#SBATCH --([\w-]+)", text_of("slurm.sh"), re.MULTILINE)
    assert {"requeue", "signal", "open-mode", "nodes", "no-kill"} <= set(options)


def test_slurm_starts_ray_and_the_sweep(slurm):
    status, calls = slurm("0")
    assert status == 0
    head, worker = (
        ray_program.start.make_context("ray start", shlex.split(call)[2:]).params
        for call in sorted(call for call in calls if call.startswith("ray start"))[::-1]
    )
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"{head['node_ip_address']}:{head['port']}"
    assert f"address {worker['address']}" in calls
    for options in (head, worker):
        assert (options["num_cpus"], options["num_gpus"]) == (16, 4)
        assert options["disable_usage_stats"]
        assert options["block"]
    assert calls.count("token 600") == 2
    assert any(call.startswith("srun") and "--exclude=n1" in call for call in calls)
    assert not any("requeue" in call for call in calls)


def test_slurm_requeues_at_the_time_limit(slurm):
    _, calls = slurm("signal")
    assert "interrupted" in calls
    assert calls[-1] == "scontrol requeue 4321"


def test_slurm_tells_of_a_failed_sweep(slurm):
    status, calls = slurm("7")
    assert status == 7
    assert not any("requeue" in call for call in calls)


def test_slurm_gives_up_without_a_head(slurm):
    status, calls = slurm("0", HEAD_MISSING="1")
    assert status == 1
    assert not any(call.startswith("python") for call in calls)
