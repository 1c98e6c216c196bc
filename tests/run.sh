#!/usr/bin/env bash
# The whole test run: linters, then every test. Starts the Docker engine if none answers, and stops it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests/lint.sh
trap '.venv/bin/kvshare engine stop' EXIT
.venv/bin/kvshare engine start
.venv/bin/python -m pytest tests "$@"
