"""One machine, seen from a container in a server's place."""

import json
from dataclasses import replace

from kvshare import records
from kvshare.contract import Facts
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import Gpus, Node
from kvshare.doctor.services import Service
from kvshare.errors import CouldNotCheckError
from kvshare.site.base import answered
from kvshare.site.engine import Place

_GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader")


def look(node: Node, service: Service, volumes: tuple[str, ...], token: str, one_offs: OneOffs) -> Node:
    """Return the node with its facts.

    The probe runs as the service would; where the engine refuses that, without its limits and devices, and
    then without its folders; what was refused is kept.
    """
    places = (
        service.probed(volumes),
        service.probed(volumes, limits=False),
        service.probed(volumes, limits=False, folders=False),
    )
    refusals: list[str] = []
    said = json.dumps({"hub_token": token})  # where no list of processes shows it
    for number, place in enumerate(places):
        if place in places[:number]:
            continue
        try:
            facts = _facts(answered(one_offs.start(node.context, place, "probe", "facts"), said))
        except CouldNotCheckError as error:
            refusals.append(error.message)
        else:
            return replace(node, facts=facts, refused="; ".join(dict.fromkeys(refusals)))
    return replace(node, error=refusals[0])


def gpus(node: Node, one_offs: OneOffs) -> Gpus:
    """Return the GPUs that a container on the node's machine gets."""
    try:
        return parse_gpus(answered(one_offs.start(node.context, Place(gpus=True), *_GPU_QUERY)))
    except CouldNotCheckError as error:
        return Gpus(error=error.message)


def parse_gpus(text: str) -> Gpus:
    """Return the GPUs that ``nvidia-smi`` lists as lines of ``index, uuid, name, driver``."""
    rows = [tuple(field.strip() for field in line.split(",")) for line in text.splitlines() if line.strip()]
    if any(len(row) != 4 for row in rows):
        return Gpus(error=f"nvidia-smi said: {' '.join(text.split())[:200]}")
    found = tuple((index, uuid, name) for index, uuid, name, _ in rows)
    return Gpus(driver=rows[0][3] if rows else "", found=found)


def _facts(text: str) -> Facts:
    try:
        return records.loads(Facts, text)
    except ValueError as error:
        raise CouldNotCheckError(f"its image's probe is of another version ({error})") from None
