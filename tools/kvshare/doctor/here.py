"""What must be so before a start: the checks that need no container, on what this machine shows of itself."""

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from kvshare.checking.registry import ERROR
from kvshare.config.settings import MULTIPROCESS, Settings
from kvshare.contract import ANY_ADDRESS, Endpoint, Facts, Model, Ucx, folder_of
from kvshare.doctor import engines as engine_side
from kvshare.doctor.checks import REGISTRY
from kvshare.doctor.evidence import Engine, Evidence, Node, Operator
from kvshare.doctor.gather import services_of
from kvshare.doctor.services import Service
from kvshare.errors import KvshareError
from kvshare.refusals import GROUPS, USER, may_write, unshareable
from kvshare.site import disk, images
from kvshare.site.disk import Room
from kvshare.stack.members import LOOPBACK, Member, Server, Stack

CHECKS = (
    *("DOC-HOST-04", "DOC-HOST-06", "DOC-HOST-07", "DOC-HOST-08"),
    *("DOC-CONF-08", "DOC-CONF-09", "DOC-CONF-11"),
)
OVERRIDES = "LMCACHE_"  # begins the variables that LMCache takes before its file
# What none of these checks asks for, and only a container shows.
NOTHING = Facts("", 0, (), 0, 0, 0, None, (), Model("", True), None, Ucx("", "", ()), {}, (), None, "", 0, {})


def require(settings: Settings, stack: Stack, members: Sequence[Member]) -> None:
    """Judge what can be before these members start; what runs already, and other machines, are left alone.

    Raises:
        KvshareError: what keeps them from starting, and what to do about it.
    """
    for result in REGISTRY.evaluate(look(settings, stack, members), CHECKS):
        if result.result == ERROR:
            raise KvshareError(
                f"{result.found}; expected {result.expected}: {result.next} ({result.check.id})."
            )


def look(settings: Settings, stack: Stack, members: Sequence[Member]) -> Evidence:
    """Return what there is of these members on this machine, with facts as far as they show from here."""
    services = services_of(settings, members)
    places = dict.fromkeys(member.context for member in members)
    local = {context: room for context in places if (room := disk.room(context)) is not None}
    seen = replace(
        NOTHING,
        memory_available=psutil.virtual_memory().available,
        listening=_listening({member.host for member in members}),
        model=_model(settings, services[members[-1].name]),
    )
    return Evidence(
        started="",
        stack=stack,
        operator=Operator("", ""),
        engines=tuple(
            _engine(context, local[context], stack, members, services[members[0].name].image)
            if context in local
            else Engine(context, error="not asked")
            for context in stack.contexts
        ),
        nodes=tuple(
            Node(
                m.name,
                m.service,
                m.context,
                m.host,
                "",
                replace(seen, disk_free=local[m.context].free, lmcache=_lmcache(settings, services[m.name])),
            )
            for m in members
            if isinstance(m, Server) and m.context in local
        ),
        environments={name: service.environment for name, service in services.items()},
    )


def _engine(context: str, room: Room, stack: Stack, members: Sequence[Member], image: str) -> Engine:
    """Return an engine of this machine; what is not to start now is left alone, like what runs."""
    left = (m.service for m in stack.members if m.context == context and m not in members)
    return Engine(
        context,
        image=images.find(context, image),
        folder=str(room.folder),
        running=(*engine_side.running(context, stack.project), *left),
    )


def _lmcache(settings: Settings, service: Service) -> dict[str, Any]:
    """Return LMCache's settings as a server would have them: of its environment, else of the file."""
    shared: dict[str, Any] = yaml.safe_load((settings.root / "configs/lmcache.yaml").read_text())
    given = service.environment.items()
    return shared | {k.removeprefix(OVERRIDES).lower(): v for k, v in given if k.startswith(OVERRIDES) and v}


def _model(settings: Settings, service: Service) -> Model:
    """Return the model, as far as the models volume is a folder of this machine and shows it."""
    models = settings.get("MODELS", "models")
    name = settings.get("MODEL") or service.environment.get("KVSHARE_MODEL", "")
    if not models.startswith("/"):
        return Model(name, found=True)
    folder = Path(models) / folder_of(name)
    if not name.startswith("/models/"):  # what is not there yet is put there
        writable = may_write(Path(models), USER, GROUPS)
        return Model(name, found=writable or folder.exists(), writable=writable)
    config = folder / "config.json"
    with suppress(OSError, ValueError):
        of = json.loads(config.read_text())
        beside = settings.sharing == MULTIPROCESS
        reason = unshareable(of, settings.device, settings.get("VLLM_ARGS"), beside)
        return Model(str(folder), True, unshareable=reason)
    return Model(str(folder), config.is_file())


def _listening(hosts: Collection[str]) -> tuple[Endpoint, ...]:
    """Return what listens at these addresses, and where only this machine gets to.

    A host that this machine does not hold is of an engine with a network of its own.
    """
    held = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    mine = held.intersection(hosts)
    return tuple(
        Endpoint(host, connection.laddr.port, _process(connection.pid))
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
        for host in (mine | {LOOPBACK} if mine else mine)
        if connection.laddr.ip in (host, *ANY_ADDRESS)
    )


def _process(pid: int | None) -> str:
    """Return a process's name and pid, where we may know them."""
    if pid is None:
        return "another user's process" if os.geteuid() else "a process in another namespace"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
