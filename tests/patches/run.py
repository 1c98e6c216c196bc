"""Run these tests inside an engine image, which has LMCache and vLLM but no pytest.

usage: run.py SITE_PACKAGES [PYTEST_ARGUMENT ...]      (files are named as seen from this folder)

SITE_PACKAGES holds pytest and hypothesis; it comes last on the path, so that the image's own packages are the
ones tested. test_in_image.py does this for `make test`.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    site.addsitedir(sys.argv[1])
    os.chdir(Path(__file__).parent)
    import pytest

    # The repository may be mounted read-only.
    return int(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))


if __name__ == "__main__":
    sys.exit(main())
