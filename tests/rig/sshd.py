"""An ssh server on a host, and an ssh of our own that uses none of the user's keys or settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.rig import engines
from tests.rig.network import STATE, Host, RigError, run

START_TIMEOUT_S = 15


@dataclass(frozen=True)
class SshServer:
    """One host's ssh server; docker over it reaches that host's engine."""

    host: Host

    @property
    def folder(self) -> Path:
        return STATE / self.host.name / "ssh"

    @property
    def context(self) -> str:
        return f"{engines.context_of(self.host)}-ssh"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def environment(self) -> dict[str, str]:
        """An environment in which `ssh` is the wrapper that reads this folder's settings alone."""
        return {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start the server with keys of its own, nobody's known host yet, and make its context."""
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd leaves its privileges
        for name in ("host_key", "user_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)])
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(self._server_settings())
        (self.folder / "ssh_config").write_text(self._client_settings())
        wrapper = self.folder / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {" ".join(self._options)} "$@"\n')
        wrapper.chmod(0o755)
        sshd = ("/usr/sbin/sshd", "-f", str(self.folder / "sshd_config"), "-E", str(self._log))
        run(self.host.command(*sshd))
        self._wait()
        engines.make_context(self.context, f"ssh://root@{self.host.address}")

    @property
    def logins(self) -> int:
        """How many connections it has let in."""
        return self._log.read_text().count("Accepted publickey")

    def trust(self) -> None:
        """Know the host's key, as `ssh-keyscan` would find it."""
        key = (self.folder / "host_key.pub").read_text()
        self.known_hosts.write_text(f"{self.host.address} {key}")

    def stop(self) -> None:
        """Stop the server and forget its keys and context."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        engines.remove_context(self.context)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @property
    def _options(self) -> tuple[str, ...]:
        """Its own settings, and connections that are shared with no server before it."""
        return ("-F", str(self.folder / "ssh_config"), "-o", f"ControlPath={self.folder / '%C'}")

    def _server_settings(self) -> str:
        return "\n".join(
            (
                f"ListenAddress {self.host.address}",
                f"HostKey {self.folder / 'host_key'}",
                f"PidFile {self.folder / 'pid'}",
                f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
                "PermitRootLogin prohibit-password",
                "StrictModes no",
                "UsePAM no",
                # `docker system dial-stdio` there is to reach that host's engine.
                f"SetEnv DOCKER_HOST=unix://{engines.socket_of(self.host)}",
                "",
            )
        )

    def _client_settings(self) -> str:
        return (
            f"IdentityFile {self.folder / 'user_key'}\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {self.known_hosts}\n"
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        knock = self.host.command("bash", "-c", f"< /dev/tcp/{self.host.address}/22")
        while subprocess.run(knock, capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise RigError(f"the ssh server of {self.host.name} did not start in {START_TIMEOUT_S} s")
            time.sleep(0.1)
