"""How the stack of test_two_engines is stopped, and what a second decode node changes."""

from __future__ import annotations

import psutil
import pytest

from tests.rig import engines
from tests.rig.__main__ import settings_for
from tests.rig.network import DECODE, DECODE_2, PREFILL
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import TwoMachines
from tests.scenarios.two_engines.conftest import remove_rules
from tests.scenarios.two_engines.machines import nothing_named, nothing_runs, over_ssh, refuses_the_key

TWO_DECODE_NODES = settings_for(2)
THREE_SERVERS_GIB = 9.5

pytestmark = pytest.mark.timeout(900)


def test_down_serves_the_others_where_a_host_key_is_unknown(rig: TwoMachines, ssh: SshServer) -> None:
    refuses_the_key(over_ssh(rig, ssh, "down", terminal=True))
    assert nothing_named(PREFILL, "prefill")
    assert not nothing_named(DECODE, "decode")


def test_down_leaves_nothing_running(rig: TwoMachines) -> None:
    assert rig.kvshare("down").code == 0
    assert nothing_runs()


# All at once, with a second decode node.


@pytest.fixture(scope="module")
def decode_2(rig: TwoMachines, long: bool) -> None:
    """The second decode node's engine, with no image yet; the rig stops it at its end."""
    del rig
    if not long:
        pytest.skip("a third engine and a third server take minutes: make test-long")
    need, have = THREE_SERVERS_GIB, psutil.virtual_memory().available / 2**30
    if have < need:
        pytest.skip(f"three servers need {need} GiB, and {have:.1f} GiB are available")
    for host in (PREFILL, DECODE):
        remove_rules(host)  # made for one decode node
    engines.start(DECODE_2)


@pytest.mark.usefixtures("decode_2")
def test_a_missing_image_is_named_before_anything_starts(rig: TwoMachines) -> None:
    outcome = rig.up(**TWO_DECODE_NODES)
    assert outcome.code == 2
    assert f"context {engines.context_of(DECODE_2)} has no image kvshare/engine-cpu:0.1.0" in outcome.err
    assert nothing_runs()


@pytest.mark.usefixtures("decode_2")
def test_images_are_shipped_from_engine_to_engine(rig: TwoMachines) -> None:
    shipped = rig.run("ship", "decode-2", **TWO_DECODE_NODES)
    assert shipped.code == 0, shipped.err
    assert f"goes from context default to context {engines.context_of(DECODE_2)}" in shipped.err
    again = rig.run("ship", **TWO_DECODE_NODES)
    assert again.code == 0, again.err
    assert "nothing to ship" in again.err


@pytest.mark.usefixtures("decode_2")
def test_reuse_is_proven_on_each_of_two_decode_nodes(rig: TwoMachines) -> None:
    started = rig.up(**TWO_DECODE_NODES)
    assert started.code == 0, started.err
    outcome = rig.run(*rig.verification(), **TWO_DECODE_NODES)
    assert outcome.code == 0, outcome.said
    assert [report["proven"] for report in outcome.report["nodes"].values()] == [True, True]


@pytest.mark.usefixtures("decode_2")
def test_a_silent_engine_does_not_keep_the_others_from_stopping(rig: TwoMachines) -> None:
    engines.stop(DECODE_2)
    outcome = rig.run("down", **TWO_DECODE_NODES)
    assert outcome.code == 3, outcome.err
    assert f"context {engines.context_of(DECODE_2)}" in outcome.err
    assert nothing_runs()
