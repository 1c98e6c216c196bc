#!/usr/bin/env bash
# The whole test run: linters, then every test. Starts the Docker engine if none answers, and stops it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests/lint.sh
trap '.venv/bin/kvshare engine stop' EXIT
.venv/bin/kvshare engine start
# What needs no stack on every core at once; the rest has the machine to itself, in order.
.venv/bin/python -m pytest --numprocesses auto tests/unit tests/config "$@"
.venv/bin/python -m pytest --ignore tests/unit --ignore tests/config --durations 30 --durations-min 10 tests "$@"
