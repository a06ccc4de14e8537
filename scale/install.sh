#!/usr/bin/env bash
# A virtual environment in which tests/test_scale.py skips nothing, on a machine without a GPU:
#
#     bash scale/install.sh .venv-scale && .venv-scale/bin/python -m pytest tests/test_scale.py
#
# It is for these tests, not for training: for that, follow the engine's own installation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.venv-scale}
python -m venv "$folder"
"$folder/bin/pip" install -r requirements.txt -r scale/requirements.txt
# without what they ask for: CUDA, vLLM, and older releases of torch and transformers than ours
"$folder/bin/pip" install --no-deps verl==0.9.1 openrlhf==0.11.2
