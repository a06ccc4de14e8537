#!/usr/bin/env bash
# ReFT on verl (0.9.1): PPO with a critic, sharded over the GPUs of one machine. From the root:
#
#     python sft.py --task gsm8k --model Qwen/Qwen2.5-1.5B --epochs 2 --lr 1e-5 --out out/warmup
#     python -m scale.make_parquet --task gsm8k --out out/parquet
#     MODEL=out/warmup/model DATA=out/parquet GPUS=8 bash scale/verl_reft.sh [KEY=VALUE ...]
#
# Not run on a GPU yet. tests/test_scale.py checks against verl itself that it knows each key, and
# that with these values its losses and advantages are those of reft_ppo.py. What still differs:
# - the critic is a network of its own with its own optimizer (the paper's ablation, as good there):
#   there is no weight of the value loss, and memory holds a second trained model
# - the critic's head starts at random, not at zero: the first advantages hold its noise.
#   trainer.critic_warmup=N trains the critic alone for N steps
# - vLLM samples in bfloat16; log pi_old is computed anew by the trainer, as here
# - advantages are divided by the unbiased deviation; the learning rate stays constant
# - no BOS stands before the prompt. A model that was trained with one gets it by the chat template
#   "{{ bos_token }}{{ messages[0]['content'] }}"
# - verl chooses no model: it logs the accuracy on dev. Measure the checkpoint that you choose with
#   eval.py, on test, once
#
# Settings stand here, on the command line, where verl refuses a key it does not know. In a YAML
# file such a key passes unnoticed; and so does custom_reward_function at the top level, which verl
# still accepts and no longer reads: it is reward.custom_reward_function.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${MODEL:?the folder of a warmed-up model}" "${DATA:?the folder that make_parquet.py wrote}"

settings=(
    # the algorithm: gamma and lambda 1, the KL per token inside the reward (program: KL=0.01)
    algorithm.adv_estimator=gae
    algorithm.gamma=1
    algorithm.lam=1
    algorithm.use_kl_in_reward=True
    algorithm.kl_penalty=kl  # k1: log pi_old - log pi_ref
    algorithm.kl_ctrl.type=fixed
    algorithm.kl_ctrl.kl_coef="${KL:-0.05}"

    # the losses: a mean per response, then over the batch; the critic takes over what is not set
    actor_rollout_ref.actor.clip_ratio=0.2
    actor_rollout_ref.actor.clip_ratio_low=0.2  # these two count, not the one above
    actor_rollout_ref.actor.clip_ratio_high=0.2
    actor_rollout_ref.actor.clip_ratio_c=1000  # no second clip at negative advantages
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    actor_rollout_ref.actor.use_kl_loss=False
    actor_rollout_ref.actor.entropy_coeff=0
    critic.cliprange_value=0.2

    # the updates: two epochs of two minibatches
    data.train_batch_size=256
    actor_rollout_ref.actor.ppo_mini_batch_size=128
    actor_rollout_ref.actor.ppo_epochs=2
    actor_rollout_ref.actor.shuffle=True
    actor_rollout_ref.actor.optim.lr="${LR:-3e-6}"
    actor_rollout_ref.actor.optim.weight_decay=0
    critic.optim.lr="${CRITIC_LR:-1e-5}"
    critic.optim.weight_decay=0

    # the models, and a prompt that is format_prompt's text and nothing else
    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.custom_chat_template="\"{{ messages[0]['content'] }}\""
    critic.model.path="$MODEL"

    # the rollout: one response a question, T = 1
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.n=1
    actor_rollout_ref.rollout.temperature=1
    actor_rollout_ref.rollout.top_p=1
    actor_rollout_ref.rollout.top_k=-1
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/dev.parquet"
    data.max_prompt_length=256
    data.max_response_length=400
    data.filter_overlong_prompts=True  # leaves them out, where verl would cut off how they begin

    # the score
    reward.custom_reward_function.path="$here/verl_reward.py"
    reward.custom_reward_function.name=score_and_accuracy

    # the run. Memory: fewer tokens at once in an update, a smaller share of each GPU for vLLM
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.rollout.gpu_memory_utilization=0.4
    actor_rollout_ref.actor.checkpoint.save_contents="[model,optimizer,extra,hf_model]"
    trainer.n_gpus_per_node="${GPUS:-1}"
    trainer.nnodes=1
    trainer.total_epochs=30
    trainer.test_freq=20
    trainer.save_freq=20
    trainer.logger="[console]"
    trainer.default_local_dir="${OUT:-out/verl}"
)
exec python -m verl.trainer.main_ppo "${settings[@]}" "$@"
