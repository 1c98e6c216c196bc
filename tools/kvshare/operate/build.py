"""Build the images: what a build takes from this machine, and a log of all it says."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.progress import Step, step
from kvshare.site import compose, dockerd, images
from kvshare.site.attached import EngineError
from kvshare.site.engine import engine

LOCAL_BASE = "kvshare/base:bookworm"
LOG_LINES = 15


def build(settings: Settings, context: str) -> None:
    """Build the images on a context, Prometheus's with OBSERVE; the output goes to ``.kvshare/build.log``.

    Raises:
        KvshareError: with the last lines of the output.
    """
    environment = {**settings.compose_environment(context), **_build_environment(settings, context)}
    command = compose.command(context, "build", "--progress", "plain", *images.built(settings))
    with step(f"Build the images ({settings.device})") as current:
        _logged(command, settings.root, environment, "build.log", current)


def build_target(settings: Settings, context: str, target: str) -> None:
    """Build one stage of the Dockerfile on a context, for its effect alone; no image is kept."""
    environment = {**settings.compose_environment(context), **_build_environment(settings, context)}
    options = [f"--build-arg=BASE={base}"] if (base := environment.get("BASE")) else []
    options += [f"--secret=id=ca,src={ca}"] if (ca := environment.get("CA_BUNDLE")) else []
    command = ["docker", "--context", context, "build", "--network", "host", "--progress", "plain"]
    command += [*options, "--file", "docker/Dockerfile", "--target", target, "."]
    with step(f"Build {target}") as current:
        _logged(command, settings.root, environment, f"{target}.log", current)


def _build_environment(settings: Settings, context: str) -> dict[str, str]:
    """What a build takes from this machine: its CA bundle, and a base image where none can be pulled."""
    found = _provenance(settings.root)
    if not settings.get("CA_BUNDLE") and (bundle := _ca_bundle()):
        found["CA_BUNDLE"] = bundle
    if not settings.get("BASE") and (base := _base_image(settings, context)):
        found["BASE"] = base
    if settings.device == "cpu":
        with step("Fetch PyTorch for the CPU") as current:
            script = ["bash", "docker/wheelhouse/fill.sh"]
            # This tool's own Python, whose pip reads this machine's pip settings.
            environment = {**settings.compose_environment(context), "PYTHON": sys.executable}
            _logged(script, settings.root, environment, "wheelhouse.log", current)
    return found


def _provenance(root: Path) -> dict[str, str]:
    """Where the images come from, for their labels; nothing outside a git clone."""

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return result.stdout.strip()

    found = {"REVISION": git("describe", "--always", "--dirty"), "SOURCE": git("remote", "get-url", "origin")}
    return {name: value for name, value in found.items() if value}


def _ca_bundle() -> str | None:
    """The CA bundle that this machine's own clients are told to use, if any."""
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if (path := os.environ.get(name)) and Path(path).is_file():
            return path
    return None


def _base_image(settings: Settings, context: str) -> str | None:
    """The base made here if the registry's cannot be had; None leaves the Dockerfile's own."""
    if engine(context).image(LOCAL_BASE):
        return LOCAL_BASE
    default = _default_base(settings.root)
    if engine(context).image(default):
        return None
    with step(f"Pull the base image {default.split('@')[0]}") as current:
        if _pulls(context, default):
            return None
        current.detail("no registry to pull from")
    with step("Make a base image without a registry") as current:
        environment = {**settings.compose_environment(context), "DOCKER_CONTEXT": context}
        _logged(
            ["bash", "docker/base/make-base.sh", LOCAL_BASE], settings.root, environment, "base.log", current
        )
    return LOCAL_BASE


def _default_base(root: Path) -> str:
    for line in (root / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("ARG BASE="):
            return line.removeprefix("ARG BASE=").strip()
    raise KvshareError("docker/Dockerfile has no ARG BASE= with a default: restore it.")


def _pulls(context: str, name: str) -> bool:
    try:
        for _ in engine(context).pull(name):
            pass
    except EngineError:
        return False
    return True


def _logged(
    command: Sequence[str], root: Path, environment: Mapping[str, str], log_name: str, current: Step
) -> None:
    """Run a long command; its output goes to a log and, line by line, into the step."""
    log = dockerd.state_dir(root) / log_name
    tail: list[str] = []
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sink.write(line)
                if line.strip():
                    tail = [*tail[1 - LOG_LINES :], line.rstrip()]
                    current.detail(line.strip())
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.wait() != 0:
        raise KvshareError(f"{' '.join(command[:4])} … failed; the end of {log}:\n" + "\n".join(tail))
