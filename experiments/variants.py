"""Runs that need more than a script's flags: one name in the script's module is replaced.

    python -m experiments.variants reward-and-kl reft_ppo.py --kl-coef 0.2 --out out/frontier/reft
    python -m experiments.variants separate-value reft_ppo.py --out out/separate

reward-and-kl   each evaluation also samples on dev: dev_reward, dev_kl, their standard errors
separate-value  reft_ppo.py: the value is a network of its own (the paper's ablation)
train-accuracy  sft.py: each evaluation is also made on the first 200 training questions
answers         dpo.py: each evaluation writes its first two responses on dev to answers.json
"""

import plumbing  # noqa: F401 (before torch)

import copy
import functools
import importlib
import sys
from pathlib import Path

from torch import nn

import eval  # its functions, before a script's copy of the name is replaced
from lm import gather_logprobs, load_model, response_logits, scatter
from plumbing.checkpoints import write_json
from plumbing.cli import stop
from plumbing.run import warmup_folder
from plumbing.stats import mean_and_error
from verifier import score_answer

DEV_SAMPLES = 4  # per problem, for reward and KL
TRAIN_QUESTIONS = 200


load_reference = functools.cache(load_model)  # the warm-up is loaded once per run


def evaluate_reward_and_kl(model, tokenizer, task, config):
    """A point of the reward-KL frontier, from samples at T = 1: the rule's mean score, and the KL
    in nats per response."""
    dev = eval.evaluate_dev(model, tokenizer, task, config)
    reference, _ = load_reference(warmup_folder(config), config.device)
    responses = eval.respond(model, tokenizer, task.dev, task, n=DEV_SAMPLES, temperature=1.0,
                             seed=0, **eval.sampling_limits(config))
    scores = [score_answer(r["extracted"], r["correct"], task.choices, task.partial)
              for r in responses]
    kl = eval.response_kl(model, reference, tokenizer, responses)
    for name, values in [("dev_reward", scores), ("dev_kl", kl)]:
        dev[name], dev[f"{name}_error"] = mean_and_error(values, DEV_SAMPLES)
    return dev


class SeparateValue(nn.Module):
    """reft_ppo.PolicyWithValue with the value on a copy of the LM, which is trained apart."""

    def __init__(self, lm):
        super().__init__()
        self.lm, self.critic = lm, copy.deepcopy(lm)
        self.value_head = nn.Linear(lm.get_output_embeddings().in_features, 1).to(lm.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, ids, attention_mask, mask):
        logits = response_logits(self.lm, ids, attention_mask, mask)
        _, hidden = response_logits(self.critic, ids, attention_mask, mask, with_hidden=True)
        values = self.value_head(hidden.float())[:, 0]
        return gather_logprobs(logits, ids, mask), scatter(values, mask)


def evaluate_train_too(model, tokenizer, task, config):
    problems = task.train.select(range(min(TRAIN_QUESTIONS, len(task.train))))
    found = eval.evaluate(model, tokenizer, problems, task=task, **eval.sampling_limits(config))
    return eval.evaluate_dev(model, tokenizer, task, config) | {
        "train_accuracy": found["accuracy"]}


def evaluate_and_write_answers(model, tokenizer, task, config):
    """answers.json in the run's folder: the first lines of two questions and of their responses.
    The last evaluation replaces the earlier ones."""
    found = eval.respond(model, tokenizer, task.dev.select(range(2)), task,
                         **eval.sampling_limits(config))
    write_json(Path(config.out) / "answers.json", {"answers": [
        [row["prompt"].splitlines()[0], row["response"][:70]] for row in found]})
    return eval.evaluate_dev(model, tokenizer, task, config)


VARIANTS = {  # name: (the name that is replaced, its replacement)
    "reward-and-kl": ("evaluate_dev", evaluate_reward_and_kl),
    "separate-value": ("PolicyWithValue", SeparateValue),
    "train-accuracy": ("evaluate_dev", evaluate_train_too),
    "answers": ("evaluate_dev", evaluate_and_write_answers)}


def main(argv):
    if len(argv) < 2 or argv[0] not in VARIANTS:
        stop(f"give a variant, {', '.join(VARIANTS)}, and a script with its flags")
    variant, script, *flags = argv
    module = importlib.import_module(Path(script).stem)
    setattr(module, *VARIANTS[variant])
    module.main(flags)


if __name__ == "__main__":
    main(sys.argv[1:])
