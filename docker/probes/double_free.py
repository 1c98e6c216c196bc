"""Probe of double-free: however often a prompt is pulled or found, every page has one owner."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import Node, running_node, settings_for

REPEATS = 200
CHUNKS = 4
PAGES = 64


def probe() -> None:
    """Raises ProbeError unless pulls and local hits, many and under pressure, are right and lose no page."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("a", ports, pages=PAGES)) as a,
        running_node(settings_for("b", ports, pages=PAGES)) as b,
    ):
        a.wait_until_synced(ports)
        a.ask("store", seed=1, chunks=CHUNKS)
        b.pull_until_hit(seed=1, chunks=CHUNKS)
        for number in range(REPEATS):
            _check_values(b, 1, f"pull-{number}", "pulled")
        _check_pages(b, stored=0)
        for number in range(REPEATS):
            a.ask("store", seed=100 + number, chunks=CHUNKS)
            _check_values(a, 100 + number, f"hit-{number}", "found")
        _check_pages(a, stored=PAGES)


def _check_values(node: Node, seed: int, request: str, how: str) -> None:
    found = node.ask("get", seed=seed, chunks=CHUNKS, request=request)
    if found["wrong"]:
        raise ProbeError(f"{found['wrong']} tokens that were {how} in {request} have values of others.")
    if found["seconds"] > 2:
        raise ProbeError(f"{request} should take milliseconds, but took {found['seconds']:.1f} s.")
    if not found["hits"]:
        raise ProbeError(f"{request} should be a hit.")


def _check_pages(node: Node, stored: int) -> None:
    pages = node.ask("pages")
    for fault in ("free_twice", "free_and_stored"):
        if pages[fault]:
            raise ProbeError(f"{pages[fault]} pages of node {node.settings.instance} are {fault}: {pages}.")
    if pages["free"] + pages["stored"] != pages["all"] or pages["stored"] < stored - CHUNKS:
        raise ProbeError(f"Pages of node {node.settings.instance} are lost: {pages}.")
    if node.logged("Double"):
        raise ProbeError(f"Node {node.settings.instance} logged a double release.")
