#!/usr/bin/env bash
# Fetches the one locked wheel that is not on PyPI, PyTorch for the CPU, into this folder, from where the image takes it.
# Uses this machine's own pip settings (indexes, find-links, certificates); TORCH_INDEX adds one more index. PYTHON picks the pip.
set -euo pipefail
cd "$(dirname "$0")"

lock=../locks/engine-cpu.txt
requirement=$(mktemp) && trap 'rm -f "$requirement"' EXIT
awk '/^[^ #]/ {keep = /^torch==/} keep && !/#/' "$lock" > "$requirement"
name=$(sed -n 's/^torch==\([^ ]*\).*/torch-\1/p' "$requirement")

locked() { # a wheel of that name is here, and its hash is one of the lock's
    for wheel in "$name"-cp311-*.whl; do
        [ -f "$wheel" ] && grep -q "sha256:$(sha256sum "$wheel" | cut -d' ' -f1)" "$requirement" && return 0
    done
    return 1
}

if locked; then
    echo "docker/wheelhouse: $name is already here"
    exit 0
fi
rm -f "$name"-*.whl
echo "docker/wheelhouse: fetching $name"
if ! "${PYTHON:-python3}" -m pip download --quiet --no-deps --require-hashes --requirement "$requirement" --dest . \
    --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}; then
    echo "docker/wheelhouse: expected $name from this machine's pip, which gives its reason above; if no index has it," \
        "run this again with TORCH_INDEX= set to the address of PyTorch's own CPU wheel index." >&2
    exit 2
fi
