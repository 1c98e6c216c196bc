"""What runs on the two machines, and the tool on the operator's own host, which reaches them over ssh."""

from __future__ import annotations

import shlex
import subprocess

from tests.conftest import ROOT
from tests.rig import engines, network
from tests.rig.network import DECODE, OPERATOR, PREFILL
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import Outcome, TwoMachines

SSH_TIMEOUT_S = 240


def nothing_runs() -> bool:
    return not any(engines.docker(host, "ps", "--quiet") for host in (PREFILL, DECODE))


def nothing_named(host: network.Host, service: str) -> bool:
    label = f"label=com.docker.compose.service={service}"
    return not engines.docker(host, "ps", "--quiet", "--filter", label)


def over_ssh(rig: TwoMachines, server: SshServer, *arguments: str, terminal: bool = False) -> Outcome:
    """Run the tool on the operator's host; in a terminal, ssh could ask there and wait for an answer."""
    command = OPERATOR.command(str(ROOT / ".venv/bin/kvshare"), *arguments)
    if terminal:
        command = ["script", "--quiet", "--return", "--command", shlex.join(command), "/dev/null"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**rig.environment, **server.environment(), "DECODE_CONTEXT": server.context},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SSH_TIMEOUT_S,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def refuses_the_key(outcome: Outcome) -> None:
    said = " ".join((outcome.out + outcome.err).split())
    assert outcome.code == 2, said
    assert f"ssh-keyscan {DECODE.address} >> ~/.ssh/known_hosts" in said
