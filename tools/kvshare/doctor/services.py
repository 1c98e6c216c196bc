"""A service as Compose resolves it, turned into what a probe in its place must be given."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from kvshare.errors import KvshareError
from kvshare.site.engine import Place


@dataclass(frozen=True)
class Service:
    """A resolved service: its image, and its environment, volumes, limits and devices."""

    image: str
    place: Place

    @property
    def environment(self) -> Mapping[str, str]:
        """Its variables."""
        return self.place.environment

    def probed(self, volumes: Collection[str], limits: bool = True, folders: bool = True) -> Place:
        """Return the place of a probe, with or without the service's limits and devices, and its folders.

        A volume that does not exist yet is left out: mounting would make it, without Compose's labels.
        """
        mounts = tuple(
            mount
            for mount in self.place.mounts
            if (mount[0] == "volume" and mount[1] in volumes) or (mount[0] == "bind" and folders)
        )
        return replace(self.place if limits else Place(self.place.environment), mounts=mounts)


def service_of(config: Mapping[str, Any], name: str) -> Service:
    """Return a service of a `docker compose config`; KvshareError if it has none of that name."""
    try:
        described = config["services"][name]
    except KeyError:
        raise KvshareError(f"compose.yaml has no service {name}.") from None
    place = Place(
        {k: "" if v is None else str(v) for k, v in (described.get("environment") or {}).items()},
        _volumes(config, described),
        tuple((limit, *_soft_and_hard(value)) for limit, value in (described.get("ulimits") or {}).items()),
        tuple(described.get("cap_add") or ()),
        tuple(_device(device) for device in described.get("devices") or ()),
    )
    return Service(described["image"], place)


def _volumes(
    config: Mapping[str, Any], described: Mapping[str, Any]
) -> tuple[tuple[Literal["bind", "volume"], str, str], ...]:
    named = config.get("volumes") or {}
    return tuple(
        (
            volume["type"],
            named.get(volume["source"], {}).get("name", volume["source"]),
            volume["target"],
        )
        for volume in described.get("volumes") or ()
    )


def _device(described: str | Mapping[str, str]) -> str:
    return described if isinstance(described, str) else f"{described['source']}:{described['target']}"


def _soft_and_hard(value: int | Mapping[str, int]) -> tuple[int, int]:
    return (value["soft"], value["hard"]) if isinstance(value, Mapping) else (value, value)
