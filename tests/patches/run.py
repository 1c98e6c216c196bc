"""Run these tests inside an engine image, which has LMCache and vLLM but no pytest.

usage: run.py SITE_PACKAGES [PYTEST_ARGUMENT ...]

SITE_PACKAGES holds pytest and hypothesis; it comes last on the path, so that the image's own packages are the
ones tested. Stages of docker/Dockerfile do this for `make test`.
"""

from __future__ import annotations

import site
import sys


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    site.addsitedir(sys.argv[1])
    import pytest

    # The repository is mounted read-only.
    return int(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))


if __name__ == "__main__":
    sys.exit(main())
