"""A service as Compose resolves it, turned into what `docker run` must be told for a probe in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvshare.errors import KvshareError


@dataclass(frozen=True)
class Service:
    """A resolved service: its environment and volumes, and the limits and devices that it asks for."""

    image: str
    environment: Mapping[str, str]
    volumes: tuple[tuple[str, str, str], ...]
    limits: tuple[str, ...]

    def options(
        self, existing_volumes: tuple[str, ...], limits: bool = True, folders: bool = True
    ) -> tuple[str, ...]:
        """Return the options of `docker run`, with or without its limits and devices, and its folders.

        A volume that does not exist yet is left out: mounting would make it, without Compose's labels.
        """
        found = [f"--env={name}={value}" for name, value in self.environment.items()]
        for kind, source, target in self.volumes:
            if (kind == "volume" and source in existing_volumes) or (kind == "bind" and folders):
                found.append(f"--mount=type={kind},source={source},target={target},readonly")
        return (*found, *(self.limits if limits else ()))


def service_of(config: Mapping[str, Any], name: str) -> Service:
    """Return a service of a `docker compose config`; KvshareError if it has none of that name."""
    try:
        described = config["services"][name]
    except KeyError:
        raise KvshareError(f"compose.yaml has no service {name}.") from None
    environment = {k: "" if v is None else str(v) for k, v in (described.get("environment") or {}).items()}
    return Service(described["image"], environment, _volumes(config, described), _limits(described))


def _volumes(config: Mapping[str, Any], described: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    named = config.get("volumes") or {}
    return tuple(
        (
            volume["type"],
            named.get(volume["source"], {}).get("name", volume["source"]),
            volume["target"],
        )
        for volume in described.get("volumes") or ()
    )


def _limits(described: Mapping[str, Any]) -> tuple[str, ...]:
    found = [f"--ulimit={name}={_ulimit(value)}" for name, value in (described.get("ulimits") or {}).items()]
    found += [f"--cap-add={name}" for name in described.get("cap_add") or ()]
    for device in described.get("devices") or ():
        source = device if isinstance(device, str) else f"{device['source']}:{device['target']}"
        found.append(f"--device={source}")
    return tuple(found)


def _ulimit(value: Any) -> str:
    return f"{value['soft']}:{value['hard']}" if isinstance(value, Mapping) else str(value)
