#!/usr/bin/env bash
# Rewrites requirements.lock: resolves pyproject.toml with the extras demo, gguf, hub, serve, postgres and dev in an
# empty environment and pins all that came. Runs on Python 3.11, the oldest supported, so that every pin has a release.
#
#   make lock      (or: PYTHON=python3.11 scripts/lock.sh)
#
# torch is pinned by hand, here, because every number in docs/ depends on it. Its local version (+cpu, +cu130) is cut
# off, and the CUDA libraries that a Linux machine may bring are left out: the Makefile adds them where torch needs them.
# pysqlite3 has no wheel for Linux on ARM; there Python's own SQLite is used.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=2.13.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3.11}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet "torch==$torch" "setuptools>=77" ".[demo,gguf,hub,serve,postgres,dev]"
{
    echo "# Every package that \`make\` and CI install, pinned; installed with --no-deps. Regenerate: make lock"
    echo "# No index address and no hash, torch without a local version: one lock for CPU and CUDA machines alike."
    "${pip[@]}" freeze --all --exclude pip --exclude tutelage |
        grep --invert-match --extended-regexp '^(nvidia-|cuda-|triton==)' |
        sed -e 's/^\([^=]*==[^+ ]*\)+[^ ]*/\1/' -e "s/^pysqlite3==.*/&; platform_machine == 'x86_64' or sys_platform == 'darwin'/"
} >"$work/lock"
mv "$work/lock" requirements.lock
echo "requirements.lock: $(grep --count == requirements.lock) pins"
