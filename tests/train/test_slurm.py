"""`train/slurm/`, with stand-ins for SLURM's commands and torchrun: what reaches the trainers of each node."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import ROOT
from train.configure import load_settings

SRUN = """
import os, signal, subprocess, sys
while sys.argv[1].startswith("--"):
    del sys.argv[1]
for number, name in enumerate(os.environ["SLURM_JOB_NODELIST"].split(",")):
    task = {"SLURM_NODEID": str(number), "SLURMD_NODENAME": name}
    task["BOUND_CPUS"] = os.environ.get("SRUN_CPUS_PER_TASK", "1")  # and not SLURM_CPUS_PER_TASK, since 22.05
    default = lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    subprocess.run(sys.argv[1:], env={**os.environ, **task}, preexec_fn=default, check=True)
"""
SCONTROL = """
import os, sys
assert sys.argv[1:] == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
print(*os.environ["SLURM_JOB_NODELIST"].split(","), sep="\\n")
"""
TORCHRUN = """
import json, os, signal, sys
seen = {name: os.environ.get(name) for name in ("BOUND_CPUS", "GLOO_SOCKET_IFNAME", "SLURM_NODEID")}
seen |= {"arguments": sys.argv[1:], "ignores_usr1": signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN}
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(seen) + "\\n")
"""
# The address of this host's own name, then that of any other.
GETENT = """
import os, sys
assert sys.argv[1] == "ahostsv4"
address = os.environ["OWN_ADDRESS"] if sys.argv[2] == os.uname().nodename else "10.0.0.7"
print(f"{address}  STREAM {sys.argv[2]}\\n{address}  DGRAM")
"""
IP = """
import os, sys
assert sys.argv[1:] == ["-o", "route", "get", "10.0.0.7"]
print(os.environ["ROUTE"])
"""


def submit(folder: Path, *arguments: str, nodes: str = "n1,n2", **more: str) -> list[dict[str, Any]]:
    """Run the batch script as SLURM would; what the torchrun of each node was given."""
    (folder / "train").symlink_to(ROOT / "train")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    commands = folder / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN), ("getent", GETENT), ("ip", IP)):
        (commands / name).write_text(f"#!{sys.executable}\n{text}")
        (commands / name).chmod(stat.S_IRWXU)
    job = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_NUM_NODES": str(nodes.count(",") + 1)}
    job |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "24", "SEEN": str(folder / "seen")}
    job |= {"OWN_ADDRESS": "10.0.0.3", "ROUTE": "10.0.0.7 via 10.0.0.1 dev eth3 src 10.0.0.3 uid 0 \\    cache", **more}
    unset = ("SRUN_CPUS_PER_TASK", "GLOO_SOCKET_IFNAME")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {**inherited, "PATH": f"{commands}:{os.environ['PATH']}", **job}
    script = ["bash", str(ROOT / "train" / "slurm" / "train.sbatch"), *arguments]
    subprocess.run(script, cwd=folder, env=environment, check=True, timeout=60)
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def test_every_node_starts_its_trainers_and_all_meet_at_the_first(tmp_path: Path) -> None:
    seen = submit(tmp_path, "recipe=convnext_b_dcls", "data.root=/imagenet")
    assert len(seen) == 2
    for number, node in enumerate(seen):
        options, script = node["arguments"][:-5], node["arguments"][-5]
        assert script == "train/main.py"
        assert dict(option.removeprefix("--").split("=") for option in options) == {
            "nnodes": "2",
            "nproc-per-node": "4",
            "node-rank": str(number),
            "rdzv-backend": "c10d",
            "rdzv-endpoint": "n1:21234",
            "rdzv-id": "41234",
        }


def test_the_tasks_of_a_node_share_its_cpus(tmp_path: Path) -> None:
    assert [node["BOUND_CPUS"] for node in submit(tmp_path, "recipe=demo")] == ["24", "24"]


def test_settings_arrive_as_they_were_typed(tmp_path: Path) -> None:
    odd = '/image net/it\'s $HOME "here"; * é'
    given = ["recipe=convnext_b_dcls", f"data.root={odd}", "optim.args={eps: 1.0e-8, betas: [0.9, 0.95]}"]
    for node in submit(tmp_path, *given):
        words = node["arguments"][node["arguments"].index("train/main.py") + 1 :]
        settings = load_settings(words)
        assert settings.data.root == odd and settings.optim.args == {"eps": 1e-8, "betas": [0.9, 0.95]}
        assert settings.run_dir == "runs/slurm-41234" and settings.resume == "auto"


def test_the_folder_of_an_earlier_job_can_be_taken_on(tmp_path: Path) -> None:
    for node in submit(tmp_path, "recipe=demo", "run_dir=runs/slurm-7"):
        settings = load_settings(node["arguments"][node["arguments"].index("train/main.py") + 1 :])
        assert settings.run_dir == "runs/slurm-7" and settings.resume == "auto"


def test_launchers_outlive_the_signal_that_time_is_nearly_up(tmp_path: Path) -> None:
    assert all(node["ignores_usr1"] for node in submit(tmp_path, "recipe=demo"))
    batch = (ROOT / "train" / "slurm" / "train.sbatch").read_text()
    (seconds,) = re.findall(r"^#SBATCH --signal=USR1@(\d+)$", batch, re.MULTILINE)  # to the steps, not to the shell
    assert int(seconds) >= 600


@pytest.mark.parametrize(
    ("nodes", "environment", "interface"),
    [
        ("n1,n2", {}, None),  # the host's name has an address that others reach
        ("n1,n2", {"OWN_ADDRESS": "127.0.1.1"}, "eth3"),
        ("n1", {"OWN_ADDRESS": "127.0.1.1"}, None),  # nobody else is there
        ("n1,n2", {"OWN_ADDRESS": "127.0.1.1", "GLOO_SOCKET_IFNAME": "ib0"}, "ib0"),
        ("n1,n2", {"OWN_ADDRESS": "127.0.1.1", "ROUTE": "local 10.0.0.7 dev lo src 10.0.0.7 uid 0"}, None),
    ],
)
def test_a_host_whose_name_leads_to_the_loopback_takes_the_interface_to_the_others(
    tmp_path: Path, nodes: str, environment: dict[str, str], interface: str | None
) -> None:
    seen = submit(tmp_path, "recipe=demo", nodes=nodes, **environment)
    assert {node["GLOO_SOCKET_IFNAME"] for node in seen} == {interface}
