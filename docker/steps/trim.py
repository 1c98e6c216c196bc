"""Delete from an image's virtual environment what it never loads, strip its libraries, then compile it once.

usage: trim.py cpu|cuda|client VENV
"""

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

LEFT_OUT = {
    "cpu": (
        "torch/include",  # headers of PyTorch: for compilers, and this image has none
        "torch/share",
        "torch/test",
        "torch/bin/test_*",
        "torch/bin/protoc*",
        "torch/lib/*test*",
        "libucx/include",
        "libucx/share",
        "libucx/bin/io_demo",
        "**/*.a",
        "**/*.pyi",
        "**/tests",  # every package's own tests
        "**/__pycache__",
        "nixl_ep*",  # NIXL's expert parallelism, for GPUs
    ),
    # Triton and TorchInductor compile at run time, so the headers stay.
    "cuda": (
        "torch/test",
        "torch/bin/test_*",
        "torch/bin/protoc*",
        "torch/lib/*test*",
        "**/tests",
        "**/__pycache__",
        "nixl_ep*",
    ),
    "client": ("**/tests", "**/__pycache__"),
}
# Libraries that carry megabytes, on the CPU hundreds, of symbol tables. The CUDA ones are left as published.
STRIPPED = {
    "cpu": ("vllm/*.so", "torch/lib/libtorch_*.so", "lmcache/*.so", "libucx/**/*.so.*.*.*", "libucx/bin/*"),
    "cuda": (),
    "client": ("uvloop/*.so",),
}


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_copies(folder: Path) -> None:
    """Turn libNAME.so and libNAME.so.N into links to libNAME.so.N.N.N: wheels hold copies instead."""
    for library in folder.glob("**/*.so.*.*.*"):
        stem, major = library.name.split(".so.")[0], library.name.split(".so.")[1].split(".")[0]
        for copy in (library.with_name(f"{stem}.so"), library.with_name(f"{stem}.so.{major}")):
            copy.unlink(missing_ok=True)
            copy.symlink_to(library.name)


def main(image: str, venv: Path) -> None:
    """Trim and compile the site-packages folder of `venv`."""
    (site,) = venv.glob("lib/python3*/site-packages")
    for pattern in LEFT_OUT[image]:
        for path in list(site.glob(pattern)):
            remove(path)
    link_copies(site / "libucx")
    for pattern in STRIPPED[image]:
        for path in site.glob(pattern):
            subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)
    # Some wheels carry templates that are not valid Python: those stay uncompiled, and nothing imports them.
    compileall.compile_dir(str(site), quiet=2, workers=0)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in LEFT_OUT:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
