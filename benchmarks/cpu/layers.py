"""An image's size by layer, from `docker history`.

make benchmarks ARGS="--part layers"      of engine-cuda, where it is built (REGISTRY as make image had it)
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
SHOWN_FROM = 1e6  # bytes
WHAT = (
    ("debian", re.compile(r"^(?!RUN|COPY|USER|ENV|LABEL|ARG)|ADD ")),
    ("Debian packages: Python", re.compile(r"apt-get install.* python3\s")),
    ("Debian packages of the engine", re.compile(r"apt-get install")),
    ("Python environment", re.compile(r"COPY /opt/venv")),
    ("patched files, compiled", re.compile(r"apply\.py")),
    ("bill of materials", re.compile(r"sbom\.py")),
)


def measure_layers() -> dict[str, Any]:
    """Name and bytes of every layer that has any, the first one first, and the venv's largest packages."""
    image = f"{os.environ.get('REGISTRY') or 'kvshare'}/engine-cuda:0.1.0"
    history = _docker("history", "--no-trunc", "--format", "{{json .}}", image)
    layers = [json.loads(line) for line in history.splitlines()]
    return {
        "bytes": int(_docker("image", "inspect", "--format", "{{.Size}}", image)),
        "layers": [
            (_name(layer["CreatedBy"]), _bytes(layer["Size"]))
            for layer in reversed(layers)
            if _bytes(layer["Size"]) > 0
        ],
        "packages": _packages(image),
    }


def section(found: dict[str, Any]) -> list[str]:
    """Return the document's lines."""
    small = sum(size for _, size in found["layers"] if size < SHOWN_FROM)
    return [
        "",
        "## The CUDA image, by layer",
        "",
        f"`make image DEVICE=cuda` builds `engine-cuda`, {found['bytes'] / 1e9:.2f} GB, from the locks.",
        "",
        "| layer | MB |",
        "|---|---|",
        *(f"| {name} | {size / 1e6:.0f} |" for name, size in found["layers"] if size >= SHOWN_FROM),
        f"| all others | {small / 1e6:.1f} |",
        "",
        "Of the Python environment the ten largest packages:",
        "",
        "| package | MB |",
        "|---|---|",
        *(f"| {name} | {size / 1e6:.0f} |" for name, size in found["packages"]),
    ]


def _packages(image: str) -> list[tuple[str, int]]:
    folder = "/opt/venv/lib/python3.11/site-packages"
    command = f"cd {folder} && du -b --summarize $(ls -d nvidia/*/ */ | grep -v '^nvidia/$')"
    listing = _docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", command)
    sizes = [line.split("\t") for line in listing.splitlines()]
    return sorted(((name.rstrip("/"), int(size)) for size, name in sizes), key=lambda pair: -pair[1])[:10]


def _name(created_by: str) -> str:
    return next((name for name, pattern in WHAT if pattern.search(created_by)), created_by[:60])


def _bytes(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout
