#!/usr/bin/env bash
# Regenerates every lock file in this folder from the .in files beside it and from tools/pyproject.toml.
# usage: docker/locks/compile.sh      UPGRADE=1 takes the newest versions allowed; otherwise locked ones are kept
# Needs uv (in docker/locks/dev.txt) and PyTorch for the CPU in docker/wheelhouse (fill.sh there).
set -euo pipefail
cd "$(dirname "$0")"

compile() { # compile OUTPUT SOURCE... [OPTION...]
    uv pip compile --quiet --generate-hashes --python-version 3.11 \
        --custom-compile-command docker/locks/compile.sh ${UPGRADE:+--upgrade} --output-file "$@"
    echo "docker/locks/$1"
}

# Inside the images: Debian 12 on x86-64.
image() { compile "$@" --python-platform x86_64-manylinux_2_28; }

image engine-cpu.txt engine-cpu.in --excludes engine.excludes --excludes engine-cpu.excludes --no-emit-package lmcache --find-links ../wheelhouse
image engine-cuda.txt engine-cuda.in --excludes engine.excludes --excludes engine-cuda.excludes
image lmcache-build.txt lmcache-build.in --constraints engine-cpu.txt --find-links ../wheelhouse
image lmcache-source.txt lmcache-source.in --no-deps --no-binary lmcache
image build.txt build.in

# The tool: with Docker's SDK on the operator's machine, whatever its Python from 3.11 on, and without it in the client image.
tool=../../tools/pyproject.toml
compile client.txt "$tool" build.in --extra operator --universal
compile dev.txt "$tool" build.in dev.in --extra operator --constraints client.txt --universal
image client-image.txt "$tool" --constraints client.txt
