#!/usr/bin/env bash
# Makes a Debian or Ubuntu machine ready for kvshare: Docker and its plugins, and the tool in .venv.
# usage: setup/setup.sh [LOCK [PACKAGE...]]
#   LOCK: the tool's lock file (default docker/locks/client.txt; tests use dev.txt); PACKAGE: Debian packages beside it
# Whatever is there already is left as it is. Exit 2 where this machine will not do, with one sentence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Pre-flight. No impact yet.
source setup/say.sh
source setup/requirements.sh
source setup/find-missing.sh

# Impact starts here.
source setup/install-packages.sh
source setup/install-tool.sh
[ ${#MISSING[@]} = 0 ] || install_packages "${MISSING[@]}"
install_tool "${1:-docker/locks/client.txt}"
