#!/usr/bin/env bash
# The whole test run: linters, then every test. Starts the Docker engine if none answers, and stops it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Mostly one process at a time, so beside the tests that need no stack; what it says is shown when they are done.
mkdir -p .kvshare
tests/lint.sh > .kvshare/lint.log 2>&1 &
lint=$!
trap 'kill "$lint" 2> /dev/null || true; .venv/bin/kvshare engine stop' EXIT
.venv/bin/kvshare engine start
# What needs no stack on every core at once; the rest has the machine to itself, in order.
.venv/bin/python -m pytest --numprocesses auto tests/unit tests/config "$@"
wait "$lint" || { cat .kvshare/lint.log >&2; exit 1; }
tail -n 1 .kvshare/lint.log
.venv/bin/python -m pytest --ignore tests/unit --ignore tests/config --durations 30 --durations-min 10 tests "$@"
