"""Upstream's own tests of what this mode uses: the patches keep them green, or change them with a reason."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard import source  # noqa: E402
from guard.series import Series, load_all  # noqa: E402

SITE = "/opt/venv/lib/python3.11/site-packages"
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
def archive(series: Series) -> Path:
    """LMCache's source distribution."""
    found = source.fetch(series)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def tests(series: Series, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's tests, with what the patches change in them."""
    folder = tmp_path_factory.mktemp("upstream")
    folder.chmod(0o755)  # the image has a user of its own
    source.unpack(archive, folder, "pytest.ini", "tests")
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
def test_they_pass_with_the_patches(
    images: dict[str, str], tests: Path, files: Sequence[str], left_out: int
) -> None:
    without = [f"--deselect=tests/v1/{name}" for name in LEFT_OUT]
    result = run(images["prefill"], tests, [f"tests/v1/{file}" for file in files], without)
    if result.returncode != 0:
        pytest.fail(f"{result.stdout[-20_000:]}\n{result.stderr[-5_000:]}", pytrace=False)
    summary = next(line for line in reversed(result.stdout.splitlines()) if " passed" in line)
    print(summary)
    deselected = re.search(r"(\d+) deselected", summary)
    assert int(deselected[1] if deselected else 0) == left_out, "each name is still that of a test"


def test_what_the_patches_change_in_them_fails_as_released(
    images: dict[str, str], series: Series, archive: Path, tests: Path, tmp_path: Path
) -> None:
    source.unpack(archive, tmp_path, "lmcache")
    released = [path for path in series.files if series.before(path)]
    mounts = [f"--volume={tmp_path / path}:{SITE}/{path}:ro" for path in released]
    changed = {path for path in series.tests if Path(path).name.startswith("test_")}
    result = run(images["prefill"], tests, changed, mounts=mounts)
    failed = set(re.findall(r"^FAILED \S*/upstream/(\S+?)::", result.stdout, re.M))
    assert failed == changed, f"{result.stdout[-5_000:]}\n{result.stderr[-5_000:]}"


def run(
    image: str, tests: Path, files: Iterable[str], options: Iterable[str] = (), mounts: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run files of upstream's tests inside the image, which has no pytest: it takes ours."""
    volumes = (f"{ROOT}:/src:ro", f"{sysconfig.get_path('purelib')}:/pytest:ro", f"{tests}:/upstream:ro")
    command = (
        *("docker", "run", "--rm", "--network", "none", "--entrypoint", "python"),
        # A lookup's client and its server must agree on hashes, or upstream skips their tests.
        *("--env", "PYTHONHASHSEED=0"),
        *(part for volume in volumes for part in ("--volume", volume)),
        *mounts,
        *(image, "/src/tests/patches/run.py", "/pytest"),
        *("--rootdir=/upstream", "--config-file=/upstream/pytest.ini"),
        *("--override-ini=log_cli=false", "-p", "no:warnings", "--durations=5"),
        *options,
        *(f"/upstream/{file}" for file in files),
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
