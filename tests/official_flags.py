"""The flags of ToDi's official training scripts, as they stand there."""

TODI_KD = """
    --base-path . --model-path model_hub/tinyllama --n-gpu 4 --teacher-model-path model_hub/llama2
    --teacher-peft-path teacher/epoch10 --teacher-model-fp16 --gradient-checkpointing --data-dir data/dolly/
    --num-workers 0 --dev-num 1000 --task vanilla_kd --lr 0.001 --batch-size 4 --eval-batch-size 16
    --gradient-accumulation-steps 2 --warmup-iters 0 --lr-decay-style cosine --weight-decay 1e-2 --clip-grad 1.0
    --num-epochs 10 --kd-rate 0.5 --kd-temperature 2.0 --kd-objective ToDi --peft lora --peft-lora-r 256
    --peft-lora-alpha 8 --peft-lora-dropout 0.1 --max-length 512 --max-prompt-length 256 --do-train --do-valid
    --eval-gen --save-interval 1 --eval-interval 1 --log-interval 50 --save-dir outputs/x --keep-best-n-checkpoints 1
    --criterion various_divergence --seed 10 --deepspeed --deepspeed_config configs/deepspeed/ds_config_bf16.json
    --do-sample --top-k 0 --top-p 1.0 --temperature 1.0"""
TODI_SFT = """
    --base-path . --model-path model_hub/gpt2 --model-type gpt2 --n-gpu 4 --data-dir data/dolly/ --num-workers 0
    --dev-num 1000 --task sft --lr 0.0005 --batch-size 4 --eval-batch-size 32 --gradient-accumulation-steps 2
    --warmup-iters 0 --lr-decay-style cosine --weight-decay 1e-2 --clip-grad 1.0 --num-epochs 20 --max-length 512
    --max-prompt-length 256 --do-train --do-valid --eval-gen --save-interval 1 --eval-interval 1 --log-interval 50
    --save-dir outputs/x --keep-best-n-checkpoints 1 --criterion cross_entropy --seed 10 --deepspeed
    --deepspeed_config configs/deepspeed/ds_config_bf16.json --do-sample --top-k 0 --top-p 1.0 --temperature 1.0"""
