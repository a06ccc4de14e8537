"""What does each token get? One rollout of a ReFT run, or one pair of a DPO run, token by token.

    python explain.py out/reft --question 3
    python explain.py out/reft --question 3 --html page.html   # the warm-up, too, on a slider
    python explain.py out/dpo --pair 5

The rollout is one of a whole step: the run's best model samples it and learns from it.
"""

import plumbing  # noqa: F401 (before torch)

import functools
import json
import sys
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

import dpo
import reft_ppo
from eval import load_task
from lm import (adamw, context_length, encode_prompts, generate_ids, load_for_training, pad,
                split_by_length, token_logprobs)
from plumbing.checkpoints import read_best, write_text
from plumbing.cli import HOME, Parser, not_empty, number, stop
from plumbing.data import load_pairs
from plumbing.run import flags_of
from plumbing.tables import table

COLUMNS = {"logprob": "log pi", "ref_logprob": "log pi_ref", "kl": "KL", "reward": "reward",
           "value": "V", "advantage": "A", "return": "return", "white": "A, whitened",
           "ratio": "ratio after", "clipped": "clipped"}


@torch.no_grad()
def roll_out(policy, reference, tokenizer, task, asked, config, first=None):
    """Steps 1 to 4 of reft_ppo.train for the questions `asked`. first: the first response, if it is
    not to be sampled. Returns: {name: (batch, ...)}; the first response's token ids; its score."""
    lm, eos = policy.lm, tokenizer.eos_token_id
    prompts = encode_prompts(tokenizer, task.prompts(task.train[asked]))
    generator = torch.Generator(lm.device).manual_seed(config.seed)
    responses = generate_ids(lm, prompts, eos, config.max_new_tokens, temperature=1.0,
                             generator=generator, batch_size=2 * config.micro_batch_size)
    responses[0] = first or responses[0]
    ids, attention_mask, mask = pad(list(zip(prompts, responses)), lm.device)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    grades = task.grade(texts, task.train[asked])
    scores = torch.tensor([grade.score - config.eos_penalty * (eos not in response)
                           for grade, response in zip(grades, responses)], device=lm.device)

    logprobs, values, ref_logprobs = torch.zeros(3, *mask.shape, device=lm.device)
    everything = torch.arange(len(ids), device=lm.device)
    for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
        logprobs[rows], values[rows] = policy(ids[rows], attention_mask[rows], mask[rows])
        ref_logprobs[rows] = token_logprobs(reference, ids[rows], attention_mask[rows], mask[rows])
    rewards = reft_ppo.token_rewards(scores, logprobs, ref_logprobs, mask, config.kl_coef)
    advantages, returns = reft_ppo.compute_gae(rewards, values, mask, config.gamma, config.lam)
    return {"ids": ids, "attention_mask": attention_mask, "mask": mask, "logprob": logprobs,
            "ref_logprob": ref_logprobs, "kl": logprobs - ref_logprobs, "reward": rewards,
            "value": values, "advantage": advantages, "return": returns,
            "white": reft_ppo.whiten(advantages, mask)}, responses[0], scores[0].item()


def update(policy, rollout, config):
    """Step 5 of reft_ppo.train: one epoch, by a new optimizer at the peak learning rate."""
    optimizer, _ = adamw(policy, config.lr, steps=1, warmup_steps=1)
    order = torch.randperm(len(rollout["ids"])).to(rollout["ids"].device)
    for minibatch in order.split(config.minibatch_size):
        for rows in split_by_length(minibatch, rollout["attention_mask"], config.micro_batch_size):
            part = {name: x[rows] for name, x in rollout.items()}
            logprobs, values = policy(part["ids"], part["attention_mask"], part["mask"])
            loss = reft_ppo.policy_loss(logprobs, part["logprob"], part["white"], part["mask"],
                                        config.clip_eps)
            loss += config.vf_coef * reft_ppo.value_loss(values, part["value"], part["return"],
                                                         part["mask"], config.clip_eps)
            (loss * len(rows) / len(minibatch)).backward()
        clip_grad_norm_(policy.parameters(), reft_ppo.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()


def ledger(policy, rollout, tokenizer, config):
    """The first response, a dict per token: its text and COLUMNS. policy: after the updates."""
    first = {name: x[:1] for name, x in rollout.items()}
    with torch.no_grad():
        logprobs, _ = policy(first["ids"], first["attention_mask"], first["mask"])
    first["ratio"] = (logprobs - first["logprob"]).exp()
    first["clipped"] = (first["ratio"] - 1) * first["white"].sign() > config.clip_eps
    numbers = zip(*(first[name][first["mask"]].tolist() for name in COLUMNS))
    return [{"token": tokenizer.decode([token])} | dict(zip(COLUMNS, row)) for token, row in zip(
        first["ids"][:, 1:][first["mask"]].tolist(), numbers)]


def print_ledger(rows, score, count, config):
    sums = {name: sum(row[name] for row in rows) for name in list(COLUMNS)[:4]}
    lines = [[show_token(row["token"]), *(digits(row[name]) for name in COLUMNS)] for row in rows]
    lines.append(["sum", *map(digits, sums.values()), *[""] * (len(COLUMNS) - len(sums))])
    print(table(["token", *COLUMNS.values()], lines))
    print(f"\nsum of the rewards = score - beta x sum of KL: {sums['reward']:.3f} = {score:.3f} - "
          f"{config.kl_coef:g} x {sums['kl']:.3f}\nof each token: return = A + V\nratio after: pi "
          f"/ pi_old after one epoch of updates with a step's {count} rollouts, by a new optimizer "
          f"at the peak --lr {config.lr:g}\nclipped: the ratio has moved more than "
          f"{config.clip_eps:g} in the direction of A, so the token has no gradient")


def explain_rollout(args, config):
    model, first, pages = Path(args.run) / "model", None, {}
    if not (model / "value_head.pt").exists():
        stop(f"{model} has no value_head.pt: an older version made this run. Make it again")
    task = load_task(config, config.partial_reward)
    if not 1 <= args.question <= len(task.train):
        stop(f"--question {args.question}: choose one from 1 to {len(task.train)}")
    asked = [(args.question - 1 + i) % len(task.train) for i in range(config.batch_size)
             for _ in range(config.samples_per_question)]
    question = task.prompts(task.train[asked[:1]])[0]
    reference, _ = load_for_training(config.warmup, config)
    best = read_best(model)["step"]
    for step in [best, 0] if args.html else [best]:  # step 0: the warm-up, whose V is 0
        lm, tokenizer = load_for_training(args.run if step else config.warmup, config)
        policy = reft_ppo.PolicyWithValue(lm)
        if step:
            policy.value_head.load_state_dict(
                torch.load(model / "value_head.pt", lm.device, weights_only=True))
        rollout, first, score = roll_out(policy, reference, tokenizer, task, asked, config, first)
        torch.manual_seed(config.seed)  # of the minibatches
        update(policy, rollout, config)
        pages[step] = {"score": score, "tokens": ledger(policy, rollout, tokenizer, config)}
    print(f"{args.run}, best model, step {best}: a sample at T = 1\n\n{question}")
    print_ledger(pages[best]["tokens"], pages[best]["score"], len(asked), config)
    if args.html:  # "<" is escaped, so that no text can end the page's script
        content = json.dumps({"run": args.run, "question": question, "columns": COLUMNS,
                              "pages": pages}).replace("<", "\\u003c")
        page = (HOME / "plumbing" / "ledger.html").read_text()
        Path(args.html).parent.mkdir(parents=True, exist_ok=True)
        write_text(args.html, page.replace("/*LEDGER*/", content))
        print(f"\nsaved: {args.html}; open it in a browser")


@torch.no_grad()
def explain_pair(args, config):
    file, sides = Path(args.run) / "pairs.jsonl", ("chosen", "rejected")
    pairs = load_pairs(file if file.exists() else config.pairs)
    if not 1 <= args.pair <= len(pairs):
        stop(f"--pair {args.pair}: choose one from 1 to {len(pairs)}")
    policy, tokenizer = load_for_training(args.run, config)
    reference, _ = load_for_training(config.warmup, config)
    [pair] = dpo.encode_pairs(tokenizer, pairs[args.pair - 1:args.pair],
                              min(dpo.MAX_LENGTH, context_length(policy)))
    batch = pad([(pair["prompt"], pair[side]) for side in sides], policy.device)
    logprobs, ref_logprobs = (token_logprobs(lm, *batch) for lm in (policy, reference))
    columns = torch.stack([logprobs, ref_logprobs, logprobs - ref_logprobs], 1)  # (2, 3, seq-1)
    print(f"{args.run}, pair {args.pair}\n\n{pairs[args.pair - 1]['prompt']}")
    for side, mask, numbers in zip(sides, batch[2], columns):
        names = [*(show_token(tokenizer.decode([token])) for token in pair[side]), "sum"]
        rows = zip(names, [*numbers[:, mask].T.tolist(), numbers.sum(-1).tolist()])
        print(table([side, "log pi", "log pi_ref", "difference"],
                    [[name, *map(digits, row)] for name, row in rows]) + "\n")
    loss, r_w, r_l = dpo.dpo_loss(*logprobs.sum(-1), *ref_logprobs.sum(-1), config.beta)
    print(f"r = beta x the sum of the differences, beta {config.beta:g}: chosen {r_w:.3f}, "
          f"rejected {r_l:.3f}\nmargin {r_w - r_l:.3f}; DPO's loss -log sigmoid(margin) "
          f"{loss:.3f}; weight in its gradient sigmoid(-margin) {torch.sigmoid(r_l - r_w):.3f}")


def digits(x):
    """Three digits, and no minus before 0; "yes" for True."""
    return "yes" * x if isinstance(x, bool) else f"{round(x, 3) + 0.0:.3f}"


def show_token(token):
    return json.dumps(token, ensure_ascii=False)[1:-1].replace("|", "\\|").replace(" ", "·")


def main(argv=None):
    sys.stdout.reconfigure(errors="backslashreplace")  # a model may write anything
    parser = Parser(description=__doc__)
    whole = functools.partial(number, int, at_least=0, at_most=2**32)
    parser.add_argument("run", type=not_empty, help="a finished run of reft_ppo.py or dpo.py")
    parser.add_argument("--question", type=whole, default=1, help="of the training split")
    parser.add_argument("--pair", type=whole, default=1, help="of a DPO run")
    parser.add_argument("--html", type=not_empty, metavar="FILE", help="write a page, too")
    parser.add_argument("--seed", type=whole, default=0, help="of the samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args(argv)
    flags = flags_of(args.run)
    script = reft_ppo if "lam" in flags else dpo if "sft_coef" in flags else None
    if script is None:
        stop(f"{args.run} is not a finished run of reft_ppo.py or dpo.py. Name one, or --resume it")
    for name in ["pair"] if script is reft_ppo else ["question", "html"]:
        if getattr(args, name) not in (None, 1):
            stop(f"--{name}: {args.run} is a run of {script.__name__}.py. Leave --{name} out")
    flags |= {"seed": args.seed, "device": args.device}
    names = script.Config.__dataclass_fields__  # an older run has flags that no longer exist
    config = script.Config(**{name: x for name, x in flags.items() if name in names})
    explain = explain_rollout if script is reft_ppo else explain_pair
    explain(args, config)


if __name__ == "__main__":
    main()
