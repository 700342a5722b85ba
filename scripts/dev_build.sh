#!/usr/bin/env bash
# Builds the extension of this checkout, genfast/_C*.so, as `make` and CI do; extra arguments go to CMake.
#   PYTHON        the interpreter it is for (default: .venv/bin/python, then python3)
#   GENFAST_CUDA, GENFAST_CUDA_ARCHS, ...   as in CMakeLists.txt; without them: CUDA where there is a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
python=$(command -v "$python")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
PATH="$(dirname "$python"):$PATH" # its cmake and ninja, where it has them
launcher=$(command -v ccache || true)
if [ -z "${GENFAST_CUDA:-}" ]; then
  GENFAST_CUDA=$(nvidia-smi -L 2>/dev/null | grep -q GPU && echo AUTO || echo OFF)
fi
cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" ${launcher:+-DCMAKE_CXX_COMPILER_LAUNCHER=$launcher} \
  -DGENFAST_SIMT=ON -DGENFAST_CUDA="$GENFAST_CUDA" -DGENFAST_CUDA_ARCHS="${GENFAST_CUDA_ARCHS:-}" "$@" >/dev/null
cmake --build build/dev
