"""Write an image's bill of materials: its Debian packages and Python distributions, as CycloneDX 1.5.

usage: python sbom.py IMAGE VERSION > sbom.cdx.json
Format: https://cyclonedx.org/docs/1.5/json/, package URLs: https://github.com/package-url/purl-spec.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

DPKG_FORMAT = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"


def debian_packages() -> Iterator[Component]:
    command = ["dpkg-query", "--show", f"--showformat={DPKG_FORMAT}"]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        status, name, version, architecture = line.split()
        if status == "installed":
            yield component(PackageURL("deb", "debian", name, version, {"arch": architecture}))


def python_distributions() -> Iterator[Component]:
    for path in {entry for entry in sys.path if entry.endswith("site-packages")}:
        for distribution in metadata.distributions(path=[path]):
            yield component(PackageURL("pypi", None, distribution.name.lower(), distribution.version))


def component(url: PackageURL) -> Component:
    return Component(
        name=url.name, version=url.version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string()
    )


def main(image: str, version: str) -> None:
    contents = [*debian_packages(), *python_distributions()]
    whole = Component(name=image, version=version, type=ComponentType.CONTAINER, bom_ref=image)
    bom = Bom(components=contents)
    bom.metadata.component = whole
    bom.register_dependency(whole, contents)
    print(JsonV1Dot5(bom).output_as_string(indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
