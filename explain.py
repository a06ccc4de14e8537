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
from plumbing.checkpoints import read_best, read_json, write_text
from plumbing.cli import HOME, Parser, not_empty, number, stop
from plumbing.data import load_pairs
from plumbing.run import is_finished
from plumbing.tables import table

COLUMNS = {"logprob": "log pi", "ref_logprob": "log pi_ref", "kl": "KL", "reward": "reward",
           "value": "V", "advantage": "A", "return": "return", "white": "A, whitened",
           "ratio": "ratio after", "clipped": "clipped"}


def roll_out(policy, reference, tokenizer, task, asked, config, first=None):
    """Steps 1 to 4 of reft_ppo.train for the questions `asked`. first: the first response, as token
    ids (default: it is sampled like the others). Returns: {name: (batch, ...)}, what lm.pad returns
    and COLUMNS; the first response; its score."""
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
    with torch.no_grad():
        for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
            part = ids[rows], attention_mask[rows], mask[rows]
            logprobs[rows], values[rows] = policy(*part)
            ref_logprobs[rows], _ = reference(*part)
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


def ledger(policy, rollout, tokenizer, clip_eps):
    """The first response, a dict per token: its text and COLUMNS. policy: after the updates."""
    first = {name: x[:1] for name, x in rollout.items()}
    with torch.no_grad():
        logprobs, _ = policy(first["ids"], first["attention_mask"], first["mask"])
    first["ratio"] = (logprobs - first["logprob"]).exp()
    first["clipped"] = (first["ratio"] - 1) * first["white"].sign() > clip_eps
    tokens = first["ids"][:, 1:][first["mask"]].tolist()
    numbers = zip(*(first[name][first["mask"]].tolist() for name in COLUMNS))
    return [{"token": tokenizer.decode([token])} | dict(zip(COLUMNS, row))
            for token, row in zip(tokens, numbers)]


def print_ledger(rows, score, count, config):
    sums = {name: sum(row[name] for row in rows) for name in list(COLUMNS)[:4]}
    lines = [[show_token(row["token"]), *(digits(row[name]) for name in COLUMNS)] for row in rows]
    lines.append(["sum", *map(digits, sums.values()), *[""] * (len(COLUMNS) - len(sums))])
    print(table(["token", *COLUMNS.values()], lines))
    print(f"""
sum of the rewards = score - beta x sum of KL: {sums["reward"]:.3f} = {score:.3f} - \
{config.kl_coef:g} x {sums["kl"]:.3f}
return = A + V; if gamma ({config.gamma:g}) and lambda ({config.lam:g}) are 1, it is the sum of the \
rewards from there on
ratio after: pi / pi_old after one epoch of updates with a step's {count} rollouts, by a new \
optimizer at the peak --lr {config.lr:g}
clipped: the ratio has moved more than {config.clip_eps:g} in the direction of A: no gradient""")


def explain_rollout(run, config, number, html):
    model, first, pages = Path(run) / "model", None, {}
    if not (model / "value_head.pt").exists():
        stop(f"{model} has no value_head.pt: an older version made this run. Make it again")
    task = load_task(config, config.partial_reward)
    if number > len(task.train):
        stop(f"--question {number}: the training split has {len(task.train):,} questions")
    asked = [(number - 1 + i) % len(task.train) for i in range(config.batch_size)
             for _ in range(config.samples_per_question)]
    question = task.prompts(task.train[asked[:1]])[0]
    reference = reft_ppo.PolicyWithValue(load_for_training(config.warmup, config)[0])
    best = read_best(model)["step"]
    for step in [best, 0] if html else [best]:  # step 0: the warm-up, whose V is 0
        lm, tokenizer = load_for_training(run if step else config.warmup, config)
        policy = reft_ppo.PolicyWithValue(lm)
        if step:
            policy.value_head.load_state_dict(torch.load(model / "value_head.pt", lm.device))
        rollout, first, score = roll_out(policy, reference, tokenizer, task, asked, config, first)
        torch.manual_seed(config.seed)  # of the minibatches
        update(policy, rollout, config)
        pages[step] = {"score": score, "tokens": ledger(policy, rollout, tokenizer,
                                                        config.clip_eps)}
    print(f"{run}, the best model, of step {best}: a sample at T = 1\n\n{question}")
    print_ledger(pages[best]["tokens"], pages[best]["score"], len(asked), config)
    if html:
        content = json.dumps({"run": run, "question": question, "columns": COLUMNS, "pages": pages})
        page = (HOME / "plumbing" / "ledger.html").read_text()
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        write_text(html, page.replace("/*LEDGER*/", content.replace("<", "\\u003c")))  # no </script>
        print(f"\nsaved: {html}; open it in a browser")


@torch.no_grad()
def explain_pair(run, config, number):
    file, sides = Path(run) / "pairs.jsonl", ("chosen", "rejected")
    pairs = load_pairs(file if file.exists() else config.pairs)
    if number > len(pairs):
        stop(f"--pair {number}: the run has {len(pairs):,} pairs")
    policy, tokenizer = load_for_training(run, config)
    reference, _ = load_for_training(config.warmup, config)
    [pair] = dpo.encode_pairs(tokenizer, pairs[number - 1:number],
                              min(dpo.MAX_LENGTH, context_length(policy)))
    batch = pad([(pair["prompt"], pair[side]) for side in sides], policy.device)
    logprobs = torch.stack([token_logprobs(lm, *batch) for lm in (policy, reference)])
    print(f"{run}, pair {number}\n\n{pairs[number - 1]['prompt']}")
    for side, mask, of_side in zip(sides, batch[2], logprobs.unbind(1)):  # of_side (2, seq-1)
        names = [*(show_token(tokenizer.decode([token])) for token in pair[side]), "sum"]
        rows = [*of_side[:, mask].T.tolist(), of_side.sum(-1).tolist()]
        print(table([side, "log pi", "log pi_ref", "difference"],
                    [[name, digits(p), digits(q), digits(p - q, "+")]
                     for name, (p, q) in zip(names, rows)]) + "\n")
    loss, r_w, r_l = dpo.dpo_loss(*logprobs.sum(-1).flatten(), config.beta)
    print(f"r = beta x the sum of the differences, beta {config.beta:g}: chosen {r_w:.3f}, rejected "
          f"{r_l:.3f}\nmargin {r_w - r_l:.3f}; DPO's loss -log sigmoid(margin) {loss:.3f}; weight in "
          f"its gradient sigmoid(-margin) {torch.sigmoid(r_l - r_w):.3f}")


def digits(x, sign=""):
    """Three digits, and no minus before 0; "yes" for True."""
    return "yes" * x if isinstance(x, bool) else f"{round(x, 3) + 0.0:{sign}.3f}"


def show_token(token):
    return json.dumps(token, ensure_ascii=False)[1:-1].replace("|", "\\|").replace(" ", "·")


def main(argv=None):
    sys.stdout.reconfigure(errors="backslashreplace")  # a model may write anything
    parser, count = Parser(description=__doc__), functools.partial(number, int, at_least=1)
    parser.add_argument("run", type=not_empty, help="a finished run of reft_ppo.py or dpo.py")
    parser.add_argument("--question", type=count, help="of the training split (default: 1)")
    parser.add_argument("--pair", type=count, help="of a DPO run (default: 1)")
    parser.add_argument("--html", type=not_empty, metavar="FILE", help="write a page, too")
    parser.add_argument("--seed", type=functools.partial(number, int, at_least=0, at_most=2**32),
                        default=0, help="of the samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args(argv)
    path = Path(args.run) / "config.json"
    flags = read_json(path).get("flags", {}) if path.exists() else {}
    script = reft_ppo if "lam" in flags else dpo if "sft_coef" in flags else None
    if script is None:
        stop(f"{args.run} is not a run of reft_ppo.py or dpo.py. Name the folder of one")
    if not is_finished(args.run):
        stop(f"{args.run} is an unfinished run. Finish it with --resume, then explain it")
    for name in ["pair"] if script is reft_ppo else ["question", "html"]:
        if getattr(args, name):
            stop(f"--{name}: {args.run} is a run of {script.__name__}.py. Leave --{name} out")
    flags |= {"seed": args.seed, "device": args.device}  # a flag that no longer exists is left out
    config = script.Config(**{name: flags[name] for name in script.Config.__dataclass_fields__
                              if name in flags})
    if script is reft_ppo:
        explain_rollout(args.run, config, args.question or 1, args.html)
    else:
        explain_pair(args.run, config, args.pair or 1)


if __name__ == "__main__":
    main()
