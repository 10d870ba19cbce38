#!/bin/sh
# Writes the lock files of the images, docker/locks/*.txt: every package at one version, with the
# hashes of its files. Needs uv (pip install uv); arguments go to it:
#   sh docker/lock.sh              after a change of pyproject.toml; versions stay where they can
#   sh docker/lock.sh --upgrade    takes the newest versions
set -eu
cd "$(dirname "$0")/.."

# One release of PyTorch for both builds of it: the one that the tests run with.
torch=2.13.0
pypi=https://pypi.org/simple
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

lock() {
    name=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes --no-annotate \
        --custom-compile-command 'sh docker/lock.sh' --output-file "docker/locks/$name.txt" "$@"
}

lock decode pyproject.toml --extra decode --extra telemetry "$@"
echo "torch==$torch" | lock gpu pyproject.toml - --extra server --extra telemetry "$@"
# PyPI first: only what it lacks, the CPU build, comes from PyTorch's index.
echo "torch==$torch+cpu" | lock cpu pyproject.toml - --extra server --extra telemetry \
    --index "$pypi" --default-index "$torch_index" --index-strategy unsafe-first-match "$@"
# What builds the wheel.
sed -n 's/^requires = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n' | lock build - "$@"
