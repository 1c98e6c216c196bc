"""Upstream's own tests of what this mode uses: the patches keep them green, or change them with a reason."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS.parent / "docker"))

from guard.series import Series, load_all  # noqa: E402

# What the stage of the Dockerfile mounts: pytest, LMCache's source distribution, the package without patches.
PYTEST, SOURCE, RELEASED = "/opt/tests", Path("/source"), "/released"
TIMEOUT_S = 1200
SHARED_POOL = "MixedMemoryAllocator(5 * 1024 * 1024 * 1024)"

FILES = (
    # First: a process that has made an engine spawns others, and these wait only for a fork.
    "storage_backend/test_p2p_backend_with_controller.py",
    "cache_controller",
    "lookup_client",
    "storage_backend/test_batched_message_sender.py",
    "storage_backend/test_local_cpu_backend.py",
    "storage_backend/test_storage_manager.py",
    "test_cache_engine_cleanup.py",
    "test_config.py",
    "test_decode_save_and_preemption.py",
    "test_manager.py",
    "test_retrieve_pin_ownership.py",
    "test_token_database.py",
)
LEFT_OUT = (
    # They configure KV in a GPU's memory, and fail as released too where there is no GPU.
    "test_config.py::TestNixlBufferDeviceCpuValidation::test_gpu_mode_accepts_enable_p2p",
    "test_config.py::TestNixlBufferDeviceCpuValidation::test_gpu_mode_accepts_nixl_buffer_size",
    "test_config.py::TestNixlBufferDeviceCpuValidation::test_gpu_mode_still_requires_nixl_buffer_size",
    "test_config.py::TestNixlUseHugepagesDeprecation::test_gpu_mode_drops_flag_without_aliasing",
    # A limit on the share of the time that statistics take, of which a busy machine has its own.
    "lookup_client/test_chunk_statistics_lookup_client.py::TestChunkStatisticsPerformance",
)
NUMBER_LEFT_OUT = 8
# In a process of its own: its engine takes 5 GiB, which would come on top of what the others hold.
WITH_AN_ENGINE = ("test_freeze_mode_integration.py",)


@pytest.fixture(scope="module")
def series() -> Series:
    return next(series for series in load_all() if series.distribution == "lmcache").of("cpu")


@pytest.fixture(scope="module")
def tests(series: Series, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's tests, with what the patches change in them."""
    folder = tmp_path_factory.mktemp("upstream")
    shutil.copy(SOURCE / "pytest.ini", folder)
    shutil.copytree(SOURCE / "tests", folder / "tests")
    # One pool that the tests share, of 5 GiB and all of it touched.
    conftest = folder / "tests/conftest.py"
    text = conftest.read_text()
    assert text.count(SHARED_POOL) == 1
    conftest.write_text(text.replace(SHARED_POOL, "MixedMemoryAllocator(1024**3)"))
    for path in series.tests:
        (folder / path).write_bytes(series.applied(path, (folder / path).read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("files", "left_out"), [(FILES, NUMBER_LEFT_OUT), (WITH_AN_ENGINE, 0)], ids=["most", "with-an-engine"]
)
def test_they_pass_with_the_patches(tests: Path, files: Sequence[str], left_out: int) -> None:
    without = [f"--deselect=tests/v1/{name}" for name in LEFT_OUT]
    result = run(tests, [f"tests/v1/{file}" for file in files], *without)
    if result.returncode != 0:
        pytest.fail(f"{result.stdout[-20_000:]}\n{result.stderr[-5_000:]}", pytrace=False)
    summary = next(line for line in reversed(result.stdout.splitlines()) if " passed" in line)
    print(summary)
    deselected = re.search(r"(\d+) deselected", summary)
    assert int(deselected[1] if deselected else 0) == left_out, "each name is still that of a test"


def test_what_the_patches_change_in_them_fails_as_released(series: Series, tests: Path) -> None:
    changed = {path for path in series.tests if Path(path).name.startswith("test_")}
    result = run(tests, changed, packages=RELEASED)
    failed = set(re.findall(r"^FAILED (\S+?)::", result.stdout, re.M))
    assert failed == changed, f"{result.stdout[-5_000:]}\n{result.stderr[-5_000:]}"


def run(
    tests: Path, files: Iterable[str], *options: str, packages: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run files of upstream's tests in a process of their own, with packages that come before the image's."""
    command = (
        *(sys.executable, str(TESTS / "patches/run.py"), PYTEST),
        *("--rootdir=.", "--config-file=pytest.ini"),
        *("--override-ini=log_cli=false", "-p", "no:warnings", "--durations=5"),
        *options,
        *files,
    )
    path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
    # A lookup's client and its server must agree on hashes, or upstream skips their tests.
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        command, cwd=tests, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
