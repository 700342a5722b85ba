#!/usr/bin/env bash
# Builds the extension in place (genfast/_C*.so) for work on the kernels; extra arguments go to CMake.
# PYTHON picks the interpreter (default: .venv/bin/python, then python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
launcher=$(command -v ccache || true)
cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/genfast" \
  ${launcher:+-DCMAKE_CXX_COMPILER_LAUNCHER=$launcher} \
  -DGENFAST_SIMT=ON -DGENFAST_CUDA="${GENFAST_CUDA:-OFF}" "$@" >/dev/null
cmake --build build/dev
