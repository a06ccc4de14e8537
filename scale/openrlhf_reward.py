"""The rule as a reward function of OpenRLHF (0.11.2), whose PPO has a critic too.

    python -m scale.make_parquet --out out/parquet
    python -m openrlhf.cli.train_ppo_ray \
        --reward.remote_url "$PWD/scale/openrlhf_reward.py" \
        --data.prompt_dataset out/parquet/train.parquet --data.input_key text \
        --data.label_key answer --actor.model_name_or_path out/warmup/model \
        --critic.model_name_or_path out/warmup/model --algo.advantage.estimator gae \
        --algo.advantage.gamma 1 --algo.advantage.lambd 1 --algo.kl.estimator k1 \
        --algo.kl.init_coef 0.05 --actor.eps_clip 0.2 --critic.value_clip 0.2 \
        --actor.loss_agg_mode seq-mean-token-mean --rollout.batch_size 256 --train.batch_size 128 \
        --train.max_epochs 2 --rollout.max_new_tokens 400

Not run on a GPU yet. OpenRLHF swallows what a reward function raises and goes on without a reward:
look at the reward it logs for the first step. What else differs from reft_ppo.py is as with verl.
"""
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import verifier  # noqa: E402

del sys.path[0]  # our `eval`, `data` and `tests` would hide others' of these names

SPECIAL = re.compile(r"(?:<[^<>\s]{1,40}>\s{0,9}){1,9}\Z")  # <eos>, </s>, <|im_end|>, ...


def reward_func(queries, prompts, labels):
    """The scores of a batch, which OpenRLHF makes of one response.

    Args:
        queries: prompts with their responses, as decoded: special tokens stand in the text. Left at
            its end, an EOS would make a syntax error of every program.
        prompts: texts of format_prompt; one that ends in "Program:" asks for a program.
        labels: the right answers.
    Returns: a dict of tensors (batch,): rewards, scores and, in extra_logs, accuracy.
    """
    responses = [SPECIAL.sub("", query.removeprefix(prompt))
                 for query, prompt in zip(queries, prompts, strict=True)]
    scores = torch.tensor(verifier.reward_func(responses, labels, prompts=prompts))
    return {"rewards": scores, "scores": scores,
            "extra_logs": {"accuracy": (scores == 1).float()}}
