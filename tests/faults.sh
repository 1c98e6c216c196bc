#!/usr/bin/env bash
# Every fault in its long form, into docs/reliability.md. Starts the Docker engine if none answers, and stops it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

trap '.venv/bin/kvshare engine stop' EXIT
.venv/bin/kvshare engine start
.venv/bin/python -m tests.scenarios.under_faults "$@"
