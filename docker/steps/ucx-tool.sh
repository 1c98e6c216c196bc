#!/bin/sh
# ucx_info and ucx_perftest from the wheel libucx-cu13, whose programs do not find their own libraries.
root=$(echo /opt/venv/lib/python3*/site-packages/libucx)
LD_LIBRARY_PATH="$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$root/bin/$(basename "$0")" "$@"
