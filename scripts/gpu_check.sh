#!/usr/bin/env bash
# All checks that need an NVIDIA GPU, in one go and under 10 minutes, offline and with the torch that is installed:
#
#   scripts/gpu_check.sh [--out DIR]
#
# builds the CUDA kernels for this GPU, runs the tests marked `cuda`, compute-sanitizer (memcheck and racecheck) on a
# small case of every op, and the CUDA benchmarks. DIR (default benchmarks/results) gets gpu_check.log, gpu_check.json
# and the benchmarks' cuda.json, cuda.csv and cuda.png. Prints a summary last; exits with 1 where something failed,
# with 2 where nothing could be run. The Python is $PYTHON, else .venv's, else python3; it is not changed: the package
# is installed into an environment of its own under build/gpu_check.
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

work=build/gpu_check
mkdir -p "$work"
log=$out/gpu_check.log
results=$work/phases.tsv
: >"$log"
: >"$results"
echo "gpu_check: $gpu"

# --- phases ---

total_limit=585
failures=0

record() { # phase, outcome, seconds, detail
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$results"
  [ "$2" = passed ] || failures=$((failures + 1))
  printf 'gpu_check: %-10s %-8s %4d s  %s\n' "$1" "$2" "$3" "$4"
}

# Runs a command with a time limit, its output into the log; keeps this phase's own output in $work/<phase>.log.
phase() { # phase, limit in seconds, pattern of the line that says how it went, command...
  local name=$1 limit=$2 pattern=$3 left=$((total_limit - SECONDS)) started=$SECONDS rc
  shift 3
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    record "$name" "not run" 0 "no time left of $total_limit s"
    return 1
  fi
  printf '\n=== %s (limit %d s): %s\n' "$name" "$limit" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1
  rc=$?
  cat "$work/$name.log" >>"$log"
  local detail
  detail=$(grep -aE "$pattern" "$work/$name.log" | tail -n 1)
  if [ $rc -eq 0 ]; then
    record "$name" passed $((SECONDS - started)) "$detail"
    return 0
  elif [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
    record "$name" "timed out" $((SECONDS - started)) "after $limit s; $detail"
  else
    record "$name" failed $((SECONDS - started)) "exit code $rc; $detail"
  fi
  return 1
}

# An environment that sees the packages of the parent, and gets genfast.
make_environment() {
  "$parent" -m venv --without-pip --system-site-packages --clear "$work/venv" || return
  local packages
  packages=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
  "$parent" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$packages/parent.pth"
}

build() {
  rm -rf "$work/cmake" # a whole build, or its log does not list every kernel
  make_environment || return
  "$work/venv/bin/python" -m pip install --no-build-isolation --no-deps -v --disable-pip-version-check \
    -C build-dir="$work/cmake" -C cmake.define.GENFAST_CUDA=ON \
    -C cmake.define.GENFAST_CUDA_ARCHS="${GENFAST_CUDA_ARCHS:-native}" -e . || return
  "$work/venv/bin/python" -m genfast info
}

# A run in which every test was skipped has checked nothing.
run_tests() {
  local parallel=()
  "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 4)
  "$python" -m pytest -m cuda -q -p no:cacheprovider "${parallel[@]}" tests | tee "$work/pytest.out"
  local rc=${PIPESTATUS[0]}
  [ "$rc" -ne 0 ] || grep -qE '[1-9][0-9]* passed' "$work/pytest.out" || rc=1
  return "$rc"
}

# Without torch's cache each tensor is an allocation of its own, so that a step past its end is seen.
sanitize() { # tool
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --error-exitcode 9 --report-api-errors no \
    "$python" -m pytest -m cuda -k "float32 or bfloat16" -q -p no:cacheprovider -p no:xdist tests/test_small_cases.py |
    tee "$work/$1.out"
  local rc=${PIPESTATUS[0]}
  [ "$rc" -ne 0 ] || grep -qE '[1-9][0-9]* passed' "$work/$1.out" || rc=1
  return "$rc"
}

# `timeout` starts programs, not functions.
export work parent python=$PWD/$work/venv/bin/python sanitizer
PATH=$PATH:$(dirname "$(readlink -f "$(command -v nvcc)")")
sanitizer=$(command -v compute-sanitizer)
export -f make_environment build run_tests sanitize

if phase build 300 '^(CUDA kernels|ERROR|.*error:)' bash -c build; then
  phase spills 20 'kernels, ' "$python" scripts/cuda_report.py --log "$work/build.log" --out "$work/kernels.json"
  phase tests 150 '(passed|failed|skipped|error)' bash -c run_tests
  if [ -n "$sanitizer" ]; then
    phase memcheck 110 '(ERROR SUMMARY|passed|failed)' bash -c 'sanitize memcheck'
    phase racecheck 110 '(RACECHECK SUMMARY|passed|failed)' bash -c 'sanitize racecheck'
  else
    record sanitizer "not run" 0 "no compute-sanitizer beside nvcc or on the PATH"
  fi
  phase benchmarks 200 '(written:|rror)' \
    "$python" -m benchmarks --device cuda --quick --no-compile --out "$out"
else
  tail -n 25 "$work/build.log" >&2
fi

# --- summary ---

"$parent" - "$results" "$work/kernels.json" "$out/gpu_check.json" "$gpu" "$SECONDS" <<'PY' || failures=$((failures + 1))
import json, pathlib, sys
phases, kernels, target, gpu, seconds = sys.argv[1:]
rows = [line.split("\t") for line in pathlib.Path(phases).read_text().splitlines()]
kernels = pathlib.Path(kernels)
pathlib.Path(target).write_text(json.dumps({
    "machine": gpu,
    "seconds": int(seconds),
    "phases": [dict(zip(("phase", "outcome", "seconds", "detail"), row)) for row in rows],
    "kernels": json.loads(kernels.read_text()) if kernels.exists() else [],
}, indent=1) + "\n")
PY

if [ $failures -eq 0 ]; then
  echo "gpu_check: everything passed on $gpu in $SECONDS s; results in $out"
else
  echo "gpu_check: $failures phase(s) failed on $gpu; see $log"
  exit 1
fi
