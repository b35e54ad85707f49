#!/usr/bin/env bash
# The same as run_eval.sh, which takes LoRA adapters too.
#
#   bash scripts/eval/run_eval_lora.sh RUN_OR_CKPT [RUN_OR_CKPT...] [BATCH] [FLAGS...]
#   BASE_MODEL_PATH=model_hub/tinyllama/tinyllama-1.1b-3T bash scripts/eval/run_eval_lora.sh RUN_OR_CKPT
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh" "$@"
