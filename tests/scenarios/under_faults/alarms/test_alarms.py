"""Each alarm fires on the real stack once what it watches is broken, and not before."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from kvshare.config import cluster_key
from kvshare.config.settings import MULTIPROCESS
from kvshare.servers.wait import poll
from tests.conftest import ROOT
from tests.rig import engines, network
from tests.rig.network import DECODE, PREFILL, Link
from tests.scenarios.conftest import TwoMachines
from tests.scenarios.one_engine.test_scenarios import CORRUPT, HONEST
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.alarms import prometheus
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack, container
from tests.scenarios.under_faults.traffic import Traffic, as_operator, controller
from tests.scenarios.under_faults.undecodable_messages.test_undecodable_messages import send_noise
from tests.scenarios.under_traffic.cures import SITE
from tests.scenarios.watching import Alarm

HERE = Path(__file__).parent
SLOWER = Link(rate=8e6)  # bytes a second: a canary's two chunks of 6.5 MB take longer than computing them
TOO_SLOW = Link(rate=1e6)  # a chunk takes more than twice the lookup's timeout
CONNECTOR = f"{SITE}/lmcache/v1/gpu_connector/cpu_connector.py"
VERSION = f"{SITE}/vllm/version.py"
MANAGER = f"{SITE}/lmcache/v1/cache_controller/controller_manager.py"
SURVIVES, DIES = "rejected.add(e)\n\n    async def _handle_pushed", "raise\n\n    async def _handle_pushed"
LOSES_COUNTS = "rm $(grep -l p2p_time_to_transfer /tmp/kvshare/metrics/*.db)"

pytestmark = pytest.mark.timeout(900)
Fires = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def watched(long: bool, request: pytest.FixtureRequest) -> Iterator[TwoMachines]:
    if not long:
        pytest.skip("make test-faults breaks what each alarm watches; the short form is in one_engine")
    machines: TwoMachines = request.getfixturevalue("two_machines")
    if machines.sharing == MULTIPROCESS:
        pytest.skip("OBSERVE watches SHARING=controller alone")
    outcome = machines.up()
    assert outcome.code == 0, outcome.err
    prometheus.start(machines)
    yield machines
    prometheus.stop()


@pytest.fixture
def fires(stack: Stack, watched: TwoMachines, record: Callable[[Figures], Figures]) -> Fires:
    """A block that breaks something, by which these alarms fire that did not before."""
    del stack, watched

    @contextmanager
    def fires(variant: str, *alarms: Alarm) -> Iterator[None]:
        due, fired = set(alarms), set[Alarm]()

        def look() -> set[Alarm]:
            fired.update(prometheus.firing() & due)
            return due - fired

        early = poll(lambda: prometheus.firing() & due, lambda found: not found, prometheus.DEADLINE_S)
        assert not early, f"{early} without a fault"
        yield
        silent = poll(look, lambda missing: not missing, prometheus.DEADLINE_S)
        named = ", ".join(sorted({name for name, _ in fired}))
        record(figures.of(HERE, variant, 1, (), notes={"fired": named}))
        assert not silent, f"{silent} did not fire; {prometheus.firing()} do"

    return fires


def test_a_link_on_which_computing_is_faster(watched: TwoMachines, fires: Fires) -> None:
    with fires("a link slower than computing", ("KvsharePullSlower", "decode")):
        network.shape(DECODE, SLOWER)
        prometheus.sing(watched)


def test_a_link_too_slow_for_a_lookup(watched: TwoMachines, fires: Fires, traffic: Traffic) -> None:
    alarms = ("KvshareLookupsTimeOut", "decode"), ("KvshareNotReused", "decode")
    pool = traffic.know(40)
    asked = traffic.running((DECODE,), pool, clients=1, pause_s=1.0)
    with asked, fires("a link too slow for any pull", *alarms):
        network.shape(DECODE, TOO_SLOW)
        prometheus.sing(watched)


def test_a_canary_that_allows_too_much(watched: TwoMachines, fires: Fires) -> None:
    with fires("a canary that takes the KV for coarser", ("KvshareCanaryBlind", "decode")):
        prometheus.sing(watched, HERE / "coarse_canary.yaml")
        prometheus.await_canary("blind")
    prometheus.sing(watched)


@pytest.mark.usefixtures("watched")
def test_chunks_that_are_pinned_and_never_given_free(fires: Fires, traffic: Traffic) -> None:
    """By the controller's own route, as whoever reaches its HTTP port can."""
    (known,) = traffic.know(1)
    chunks = {"instance_id": "lmcache_instance_1", "location": "LocalCPUBackend", "tokens": known.prompt}
    with fires("a chunk pinned through the controller", ("KvshareMemoryPinned", "prefill")):
        told = as_operator(lambda: controller().post("/pin", chunks))
        assert json.loads(told)["num_tokens"] > 0


@pytest.mark.usefixtures("watched")
def test_messages_that_nobody_can_read(stack: Stack, fires: Fires) -> None:
    with fires(
        "bad messages on every port",
        *(("KvshareMessagesRejected", node) for node in ("controller", "prefill", "decode")),
    ):
        send_noise(stack.sockets)


@pytest.mark.usefixtures("watched")
def test_a_worker_that_never_ends_its_synchronisation(fires: Fires) -> None:
    """What it says that it holds grows for ever, and the controller keeps it."""
    alarms = ("KvshareWorkerNotSynced", "controller"), ("KvshareMemoryGrows", "controller")
    with stand_in(), fires("a worker's synchronisation that never ends, and grows", *alarms):
        pass
    restart("controller")


@contextmanager
def stand_in() -> Iterator[None]:
    name = "kvshare-stand-in"
    engines.docker(
        DECODE, "run", "--detach", "--network=host", f"--name={name}", "--entrypoint=python",
        f"--volume={HERE}:/here:ro", "--env=KVSHARE_CLUSTER_KEY_FILE=/key",
        f"--volume={ROOT / cluster_key.MADE}:/key:ro", "--user=root", engines.ENGINE,
        "/here/stand_in.py", f"{PREFILL.address}:8400", f"{PREFILL.address}:8300",
    )  # fmt: skip
    try:
        yield
    finally:
        engines.docker(DECODE, "rm", "--force", name)


@pytest.mark.usefixtures("watched")
def test_a_controller_that_reads_no_more(stack: Stack, fires: Fires, traffic: Traffic) -> None:
    """As LMCache's own does after one bad message; workers go on telling it."""
    with fires("a bad message, without the cure", ("KvshareControllerDeaf", "controller")):
        replace_line("controller", MANAGER, SURVIVES, DIES)
        restart("controller")
        send_noise(stack.sockets)
        traffic.know(2)
    anew(stack, "controller")


@pytest.mark.usefixtures("watched")
def test_counts_of_what_was_sent_that_are_lost(watched: TwoMachines, stack: Stack, fires: Fires) -> None:
    with fires("the file of prefill's count of transfers removed", ("KvshareHitsWithoutBytes", "decode")):
        engines.docker(PREFILL, "exec", container("prefill"), "sh", "-c", LOSES_COUNTS)
        prometheus.sing(watched)
    anew(stack, "prefill")


def test_a_decode_server_of_another_version_that_answers_wrong(
    watched: TwoMachines, stack: Stack, fires: Fires, traffic: Traffic
) -> None:
    alarms = ("KvshareAnswersWrong", "decode"), ("KvshareVersionsApart", "")
    with fires("decode of another version, which writes zeros for values", *alarms):
        replace_line("decode", VERSION, "", '\n__version__ = "0.31.0"\n')
        replace_line("decode", CONNECTOR, HONEST, CORRUPT)
        restart("decode")
        traffic.wait_until_up(DECODE)
        prometheus.sing(watched)
    anew(stack, "decode")


@pytest.mark.usefixtures("watched")
def test_an_engine_that_stands_still(fires: Fires) -> None:
    alarms = [
        (alarm, "decode") for alarm in ("KvshareCanarySilent", "KvshareCanaryUnanswered", "KvshareWorkerLost")
    ]
    process = engine_process("decode")
    try:
        with fires("decode's engine stopped, its API server not", *alarms):
            os.kill(process, signal.SIGSTOP)
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.usefixtures("watched")
def test_a_server_that_is_killed(stack: Stack, fires: Fires) -> None:
    with fires("decode killed", ("KvshareDown", "decode")):
        stack.kill("decode")
    stack.start("decode")


def engine_process(service: str) -> int:
    """The process in which a server's engine computes, as this machine numbers it."""
    shown = engines.docker(HOST_OF[service], "top", container(service), "-eo", "pid,args")
    (process,) = [line.split()[0] for line in shown.splitlines() if "VLLM::EngineCore" in line]
    return int(process)


def replace_line(service: str, path: str, honest: str, line: str) -> None:
    """Replace a line of a file in a service's container, or add it at the end; it must be started again."""
    host, name = HOST_OF[service], container(service)
    text = engines.docker(host, "exec", name, "cat", path)
    assert not honest or text.count(honest) == 1, f"{path} has not one {honest}"
    made = ROOT / ".kvshare/scenarios" / Path(path).name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text.replace(honest, line) if honest else text + line)
    made.chmod(0o644)
    engines.docker(host, "cp", str(made), f"{name}:{path}")


def restart(service: str) -> None:
    engines.docker(HOST_OF[service], "restart", container(service))


def anew(stack: Stack, service: str) -> None:
    """A new container for a service whose own was changed."""
    engines.docker(HOST_OF[service], "rm", "--force", container(service))
    stack.up()
