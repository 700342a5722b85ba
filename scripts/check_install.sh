#!/usr/bin/env bash
# Does what a user does: `pip install .` with build isolation in an empty virtual environment, from a copy of the tracked
# files, without CUDA; then uses the package from elsewhere. Prints how long each part took.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$work/source"
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --quiet)

start=$SECONDS
GENFAST_CUDA=OFF "${pip[@]}" wheel --no-deps -w "$work/dist" "$work/source"
echo "build in isolation: $((SECONDS - start)) s"
if "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then
  echo "torch was there before the build, so this shows nothing" >&2
  exit 1
fi

start=$SECONDS
"${pip[@]}" install -c constraints-dev.txt "$work"/dist/genfast-*.whl
echo "install with dependencies: $((SECONDS - start)) s"

cd "$work"
"$work/venv/bin/python" -m genfast info
"$work/venv/bin/python" - <<'PY'
import torch

import genfast
from genfast import _native, ops

torch.manual_seed(0)
z, w, u, b = torch.randn(5, 2), torch.randn(3, 2), torch.randn(3, 2), torch.randn(3)
with genfast.backend("native"):
    x, log_det = ops.planar_flow(z, w, ops.planar_constrain_u(w, u), b)
assert x.shape == (5, 2) and log_det.shape == (5,) and torch.isfinite(x).all()
assert not _native.has_cuda(), "GENFAST_CUDA=OFF was not heard"
print("an op of the installed package runs:", genfast.__file__)
PY
