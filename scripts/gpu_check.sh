#!/usr/bin/env bash
# All checks that need an NVIDIA GPU, in one go and under 10 minutes, offline and with the torch that is installed:
#
#   scripts/gpu_check.sh [--out DIR]
#
# builds the CUDA kernels for this GPU, runs the CUDA benchmarks, then a small case of every op (noting which kernels
# run), the other tests marked `cuda`, and compute-sanitizer (memcheck and racecheck) on the small cases. Each of these
# gets a share of the time that is left. DIR (default benchmarks/results) gets the benchmarks' cuda.jsonl, written case
# by case, with cuda.json, cuda.csv and cuda.png made of it, gpu_check.log and gpu_check.json. Prints a summary last;
# exits with 1 where something failed, with 2 where nothing could be run. The Python is $PYTHON, else .venv's, else
# python3; it is not changed: the package is installed into an environment of its own under build/gpu_check.
# compute-sanitizer is found on the PATH or beside nvcc.
set -uo pipefail

fail() {
  echo "gpu_check: $1" >&2
  exit 2
}

out=benchmarks/results
while [ $# -gt 0 ]; do
  case $1 in
    --out)
      [ $# -ge 2 ] || fail "--out needs a folder"
      out=$2
      shift 2
      ;;
    --out=*)
      out=${1#--out=}
      shift
      ;;
    -h | --help)
      sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *) fail "unknown argument '$1'; usage: scripts/gpu_check.sh [--out DIR]" ;;
  esac
done
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || fail "cannot write to $out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || fail "cannot enter the checkout"

# --- what is needed ---

parent=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
command -v "$parent" >/dev/null || fail "no Python called '$parent'; set PYTHON"
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
gpu=$("$parent" - 2>&1 <<'PY'
import sys
try:
    import torch
except ImportError:
    sys.exit("torch is not installed for this Python")
if not torch.cuda.is_available():
    sys.exit("torch sees no GPU on this machine")
p = torch.cuda.get_device_properties(0)
print(f"{p.name}, sm_{p.major}{p.minor}, torch {torch.__version__}")
PY
) || fail "nothing to check: ${gpu##*$'\n'} (Python: $parent)"
gpu=${gpu##*$'\n'}  # after any warnings
command -v nvcc >/dev/null || fail "no nvcc on the PATH or in /usr/local/cuda/bin; install the CUDA toolkit"
for module in pip scikit_build_core pybind11 pytest; do
  "$parent" -c "import $module" 2>/dev/null || fail "the Python package $module is missing for $parent"
done
command -v cmake >/dev/null || "$parent" -c 'import cmake' 2>/dev/null || fail "no cmake on the PATH"

# --- an environment that sees the packages of the parent, and gets genfast ---

work=$PWD/build/gpu_check
mkdir -p "$work" || fail "cannot write to $work"
rm -rf "$work/cmake" # a whole build, or its log does not list every kernel
"$parent" -m venv --without-pip --system-site-packages --clear "$work/venv" || fail "python -m venv failed for $parent"
packages=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$parent" -c 'import os, sys; print(*filter(os.path.isdir, sys.path[1:]), sep="\n")' >"$packages/parent.pth"

# A copy of the sources, so that an extension which was built in place is neither used nor changed.
source=$work/source
rm -rf "$source"
mkdir "$source"
tar -cf - --exclude=./.git --exclude=./build --exclude='./.venv*' --exclude=./runs --exclude=./shared --exclude='*.so' \
  --exclude=__pycache__ --exclude='./.*_cache' --exclude=./.hypothesis . | tar -xf - -C "$source" || fail "cannot copy the sources to $source"
[ ! -e .git ] || ln -s "$PWD/.git" "$source/.git" # the benchmarks name the commit
cd "$source" || fail "cannot enter $source"

PATH=$PATH:$(dirname "$(readlink -f "$(command -v nvcc)")")
export PATH CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
exec "$parent" scripts/gpu_check.py --python "$work/venv/bin/python" --work "$work" --out "$out" --gpu "$gpu" \
  --started $((EPOCHSECONDS - SECONDS))
