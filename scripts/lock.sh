#!/usr/bin/env bash
# Rewrites requirements.lock: installs pyproject.toml with the extras demo, gguf, hub, serve, postgres and dev into an
# empty environment and pins every package. Uses Python 3.11, the oldest supported one, so that every pin has a release
# for all supported versions.
#
#   make lock      (or: PYTHON=python3.11 scripts/lock.sh)
#
# torch is pinned here by hand, because every number in docs/ depends on it. Its local version (+cpu, +cu130) is cut off,
# and the CUDA libraries that come with it on Linux are left out; the Makefile adds them if torch needs them.
# pysqlite3 has no wheel for Linux on ARM; there, Python's own SQLite is used.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=2.13.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3.11}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet "torch==$torch" "setuptools>=77" ".[demo,gguf,hub,serve,postgres,dev]"
{
    echo "# The pinned packages that \`make\` and CI install, with --no-deps. To rewrite this file: make lock"
    echo "# It has no index address, no hashes and no local version of torch, so it serves CPU and CUDA machines."
    "${pip[@]}" freeze --all --exclude pip --exclude tutelage |
        grep --invert-match --extended-regexp '^(nvidia-|cuda-|triton==)' |
        sed -e 's/^\([^=]*==[^+ ]*\)+[^ ]*/\1/' -e "s/^pysqlite3==.*/&; platform_machine == 'x86_64' or sys_platform == 'darwin'/"
} >"$work/lock"
mv "$work/lock" requirements.lock
echo "requirements.lock: $(grep --count == requirements.lock) pins"
