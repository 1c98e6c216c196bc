# shellcheck shell=bash
# Every minimum in one place. Change README.md ("What it needs") with it.
export MIN_COMPOSE=2.26.0 # !reset, start_interval, additional fields that compose.yaml uses
export MIN_PYTHON=3.11
