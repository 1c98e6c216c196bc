"""Where Docker contexts lead, and what is said when they lead nowhere good."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvshare.site import contexts


@pytest.mark.parametrize(
    ("text", "numbers"), [("26.1.5+dfsg1", (26, 1, 5)), ("v0.13.1", (0, 13, 1)), ("dev", ())]
)
def test_versions_are_read_up_to_what_is_no_number(text: str, numbers: tuple[int, ...]) -> None:
    assert contexts.version_of(text) == numbers


def test_ssh_never_asks_on_the_terminal_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_ASKPASS", raising=False)
    monkeypatch.delenv("SSH_ASKPASS_REQUIRE", raising=False)
    assert contexts.ssh_environment()["SSH_ASKPASS_REQUIRE"] == "force"
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "prefer")
    assert contexts.ssh_environment()["SSH_ASKPASS_REQUIRE"] == "prefer"


@pytest.mark.parametrize("writable", [True, False])
def test_the_docker_command_takes_an_ssh_that_shares_its_connection(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path if writable else "/proc"))
    for _ in range(2):  # a tool that a tool starts
        for name, value in contexts.ssh_environment().items():
            monkeypatch.setenv(name, value)
    said = subprocess.run(["ssh", "-T", "--", "gpu-b"], capture_output=True, text=True, check=True).stdout
    assert said.endswith("-T -- gpu-b\n")
    assert (f"-o ControlPath={tmp_path}/.ssh/kvshare-%C" in said) is ("Control" in said) is writable
