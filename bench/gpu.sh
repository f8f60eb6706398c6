#!/usr/bin/env bash
# Everything about poisonkit that needs a CUDA device: install, the tests marked gpu, and the GPU measurements.
#
#   bench/gpu.sh [PART...]      parts: ops dpa epic ieu rdm-dc mmac (default: all)
#
# ops: every op against the device's bandwidth or matrix rate and against torch, as it is and compiled. The others: a
# paper from end to end, undefended beside defended. One part alone ends within nine minutes: 110 s to install, 150 s of
# tests, 270 s of measuring, whatever is done by then. Rows are written as they come, and the run of a paper that was cut
# off goes on in runs/bench when its part is asked for again.
#
# Needs no network, only a python that has torch >= 2.10 with CUDA, triton and pytest: PYTHON names it, else python3. The
# package goes into a temporary folder, so that python stays as it was. Results: bench/results/gpu/<date>-<device>.json,
# and a copy in the folder OUT if that variable is set. Without a CUDA device it says so and succeeds.
#
# POISONKIT_COMMIT tells the commit where the tree comes without its history. POISONKIT_DATA is the folder of data sets
# (default .data); the papers take its cifar10/train-00000-of-00001.parquet and cifar10/test-00000-of-00001.parquet (19 MB
# together, as Hugging Face has CIFAR-10; pyarrow and pillow read them). Without, they take the digits that come with the
# package, and their rows say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then parts=(ops dpa epic ieu rdm-dc mmac); fi

if ! "$python" -c 'import torch'; then
  echo "bench/gpu.sh: $python has no torch; name one that has with PYTHON" >&2
  exit 1
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "bench/gpu.sh: no CUDA device; nothing was measured"
  exit 0
fi
if ! "$python" -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))'; then
  echo "bench/gpu.sh: torch must be 2.10 or later, got $("$python" -c 'import torch; print(torch.__version__)')" >&2
  exit 1
fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
POISONKIT_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
export POISONKIT_CUDA_ARCHS
install() {
  timeout 110 "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --upgrade --target "$site" .
}
if ! "$python" -c 'import ninja, pybind11, setuptools' || ! install; then
  # The rows then say so: their machine has the instruction set "reference" alone.
  echo "bench/gpu.sh: no native module; what runs on the CPU is torch alone"
  POISONKIT_NO_EXT=1 install
fi

# The package from the temporary folder; bench and tests from here. A failure in one step leaves the others to run.
export PYTHONSAFEPATH=1 PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic training refuses to run without it
status=0
# A test file whose imports are not here leaves the others to run
timeout 150 "$python" -m pytest -q -m gpu -W default -p no:cacheprovider --continue-on-collection-errors || status=1
for part in "${parts[@]}"; do
  timeout 270 "$python" -m bench --gpu "$part" || status=1
done
exit $status
