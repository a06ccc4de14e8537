"""What does each token get? One rollout of a ReFT run, or one pair of a DPO run, token by token.

    python explain.py out/reft --question 3
    python explain.py out/reft --question 3 --html page.html   # the warm-up, too, on a slider
    python explain.py out/dpo --pair 5

The rollout belongs to a whole step: the run's best model samples it and learns from it, by the
functions of reft_ppo.py, in the order of reft_ppo.train.
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


def load_config(run, **changes):
    """The script of a finished run, and its Config. Flags that no longer exist are left out."""
    path = Path(run) / "config.json"
    flags = read_json(path).get("flags", {}) if path.exists() else {}
    script = reft_ppo if "lam" in flags else dpo if "sft_coef" in flags else None
    if script is None:
        stop(f"{run} is not a run of reft_ppo.py or dpo.py. Name the folder of one")
    if not is_finished(run):
        stop(f"{run} is an unfinished run. Finish it with --resume, then explain it")
    return script, script.Config(**{name: x for name, x in (flags | changes).items()
                                    if name in script.Config.__dataclass_fields__})


# --- A rollout of a ReFT run ---


def load_policy(path, config, task=None, value_head=None):
    """The policy with the model `path`, and its tokenizer. value_head: its file (default: V = 0,
    as at the beginning of a run)."""
    lm, tokenizer = load_for_training(path, config, task)
    policy = reft_ppo.PolicyWithValue(lm)
    if value_head:
        policy.value_head.load_state_dict(torch.load(value_head, lm.device, weights_only=True))
    return policy, tokenizer


def roll_out(policy, reference, tokenizer, task, asked, config, first=None):
    """Steps 1 to 4 of reft_ppo.train for the questions `asked`.

    first: the first response, as token ids (default: it is sampled like the others).
    Returns: the rollout, a dict of tensors: what lm.pad returns, and COLUMNS per token, (batch,
        seq-1); the first response's score; the first response.
    """
    lm, eos = policy.lm, tokenizer.eos_token_id
    prompts = encode_prompts(tokenizer, task.prompts(task.train[asked]))
    generator = torch.Generator(lm.device).manual_seed(config.seed)
    responses = generate_ids(lm, prompts, eos, config.max_new_tokens, temperature=1.0,
                             generator=generator, batch_size=2 * config.micro_batch_size)
    responses[0] = first or responses[0]
    batch = ids, attention_mask, mask = pad(list(zip(prompts, responses)), lm.device)

    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    grades = task.grade(texts, task.train[asked])
    scores = torch.tensor([grade.score - config.eos_penalty * (eos not in response)
                           for grade, response in zip(grades, responses)], device=lm.device)

    logprobs, values, ref_logprobs = torch.zeros(3, *mask.shape, device=lm.device)
    everything = torch.arange(len(ids), device=lm.device)
    with torch.no_grad():
        for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
            part = [x[rows] for x in batch]
            logprobs[rows], values[rows] = policy(*part)
            ref_logprobs[rows], _ = reference(*part)

    rewards = reft_ppo.token_rewards(scores, logprobs, ref_logprobs, mask, config.kl_coef)
    advantages, returns = reft_ppo.compute_gae(rewards, values, mask, config.gamma, config.lam)
    return {"ids": ids, "attention_mask": attention_mask, "mask": mask, "logprob": logprobs,
            "ref_logprob": ref_logprobs, "kl": logprobs - ref_logprobs, "reward": rewards,
            "value": values, "advantage": advantages, "return": returns,
            "white": reft_ppo.whiten(advantages, mask)}, scores[0].item(), responses[0]


def update(policy, rollout, config):
    """Step 5 of reft_ppo.train, one epoch, with a new optimizer at the peak learning rate. It
    changes the policy. Returns: pi / pi_old of the first response's tokens after it, (seq-1,)."""
    optimizer, _ = adamw(policy, config.lr, steps=1, warmup_steps=1)
    batch = [rollout[name] for name in ("ids", "attention_mask", "mask")]
    torch.manual_seed(config.seed)  # it decides the order of the minibatches
    order = torch.randperm(len(batch[0])).to(policy.lm.device)
    for minibatch in order.split(config.minibatch_size):
        for rows in split_by_length(minibatch, rollout["attention_mask"], config.micro_batch_size):
            part = {name: x[rows] for name, x in rollout.items()}
            logprobs, values = policy(*(x[rows] for x in batch))
            loss = reft_ppo.policy_loss(logprobs, part["logprob"], part["white"], part["mask"],
                                        config.clip_eps)
            loss += config.vf_coef * reft_ppo.value_loss(values, part["value"], part["return"],
                                                         part["mask"], config.clip_eps)
            (loss * len(rows) / len(minibatch)).backward()
        clip_grad_norm_(policy.parameters(), reft_ppo.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        first, _ = policy(*(x[:1] for x in batch))
    return (first[0] - rollout["logprob"][0]).exp()


def ledger(tokenizer, rollout, ratio, clip_eps):
    """The first response, as a dict per token: its text and COLUMNS. ratio (seq-1,)."""
    mask, rows = rollout["mask"][0], []
    numbers = {name: x[0][mask].tolist() for name, x in rollout.items() if name in COLUMNS}
    numbers["ratio"] = ratio[mask].tolist()
    for token, *row in zip(rollout["ids"][0, 1:][mask].tolist(), *numbers.values()):
        row = {"token": tokenizer.decode([token])} | dict(zip(numbers, row))
        moved = row["ratio"] - 1 if row["white"] > 0 else 1 - row["ratio"]
        rows.append(row | {"clipped": moved > clip_eps})
    return rows


def print_ledger(rows, score, count, config):
    sums = {name: sum(row[name] for row in rows)
            for name in ("logprob", "ref_logprob", "kl", "reward")}
    lines = [[show_token(row["token"]), *(digits(row[name]) for name in COLUMNS
                                          if name != "clipped"), "yes" * row["clipped"]]
             for row in rows]
    lines.append(["sum", *(digits(sums[name]) if name in sums else "" for name in COLUMNS)])
    print(table(["token", *COLUMNS.values()], lines))
    print(f"\nsum of the rewards = score - beta x sum of KL: {sums['reward']:.3f} = {score:.3f} - "
          f"{config.kl_coef:g} x {sums['kl']:.3f}\nof each token: return = A + V; " + (
              "with gamma = lambda = 1 the first return is the sum of the rewards"
              if config.gamma == config.lam == 1 else
              f"A = reward + gamma V(next) - V + gamma lambda A(next), with gamma {config.gamma:g} "
              f"and lambda {config.lam:g}") +
          f"\nratio after: pi / pi_old after one epoch of updates with a step's {count} rollouts, "
          f"by a new AdamW at the peak --lr {config.lr:g}\nclipped: the ratio has moved more than "
          f"{config.clip_eps:g} in the direction of A, so the token has no gradient")


def explain_rollout(run, config, number, html):
    model = Path(run) / "model"
    if not (model / "value_head.pt").exists():
        stop(f"{model} has no value_head.pt: an older version made this run. Make it again")
    task = load_task(config, config.partial_reward)
    if number > len(task.train):
        stop(f"--question {number}: the training split has only {len(task.train):,} questions")
    asked = [(number - 1 + i) % len(task.train) for i in range(config.batch_size)
             for _ in range(config.samples_per_question)]
    question = task.prompts(task.train[asked[:1]])[0]
    reference, tokenizer = load_policy(config.warmup, config, task)
    best, first, pages = read_best(model)["step"], None, {}
    for step in dict.fromkeys([best, 0] if html else [best]):
        policy, _ = load_policy(*([run, config, task, model / "value_head.pt"] if step else
                                  [config.warmup, config]))
        rollout, score, first = roll_out(policy, reference, tokenizer, task, asked, config, first)
        ratio = update(policy, rollout, config)
        pages[step] = {"score": score, "tokens": ledger(tokenizer, rollout, ratio,
                                                        config.clip_eps)}
    print(f"{run}, its best model, of step {best}: a sample at T = 1\n\n{question}")
    print_ledger(pages[best]["tokens"], pages[best]["score"], len(asked), config)
    if html:
        write_page(html, run, question, dict(sorted(pages.items())))


# --- A pair of a DPO run ---


@torch.no_grad()
def explain_pair(run, config, number):
    file = Path(run) / "pairs.jsonl"
    pairs = load_pairs(file if file.exists() else config.pairs)
    if number > len(pairs):
        stop(f"--pair {number}: the run has only {len(pairs):,} pairs")
    policy, tokenizer = load_for_training(run, config)
    reference, _ = load_for_training(config.warmup, config)
    [pair] = dpo.encode_pairs(tokenizer, pairs[number - 1:number],
                              min(dpo.MAX_LENGTH, context_length(policy)))
    print(f"{run}, pair {number}\n\n{pairs[number - 1]['prompt']}")
    for side in ("chosen", "rejected"):
        batch = pad([(pair["prompt"], pair[side])], policy.device)
        logprobs, ref_logprobs = (token_logprobs(lm, *batch)[batch[2]].tolist()
                                  for lm in (policy, reference))
        tokens = [show_token(tokenizer.decode([token])) for token in pair[side]]
        lines = [[token, digits(p), digits(q), digits(p - q, "+")] for token, p, q in zip(
            [*tokens, "sum"], [*logprobs, sum(logprobs)], [*ref_logprobs, sum(ref_logprobs)])]
        print(table([side, "log pi", "log pi_ref", "difference"], lines) + "\n")
    loss, r_w, r_l = dpo.dpo_loss(*dpo.pair_logps(policy, [pair]),
                                  *dpo.pair_logps(reference, [pair]), config.beta)
    print(f"r = beta x the sum of the differences, beta {config.beta:g}: chosen {r_w.item():.3f}, "
          f"rejected {r_l.item():.3f}\nmargin {(r_w - r_l).item():.3f}; DPO's loss "
          f"-log sigmoid(margin) {loss.item():.3f}; weight in its gradient sigmoid(-margin) "
          f"{torch.sigmoid(r_l - r_w).item():.3f}")


# --- How numbers, tokens and the page look ---


def digits(x, sign=""):
    """Three digits, and no minus before 0."""
    return f"{round(x, 3) + 0.0:{sign}.3f}"


def show_token(token):
    return json.dumps(token, ensure_ascii=False)[1:-1].replace("|", "\\|").replace(" ", "·")


def write_page(path, run, question, pages):
    """One HTML file that needs no other. pages: {step: {"score", "tokens"}}."""
    content = json.dumps({"run": run, "question": question, "columns": COLUMNS, "pages": pages})
    page = (HOME / "plumbing" / "ledger.html").read_text()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page.replace("/*LEDGER*/", content.replace("<", "\\u003c")))  # no </script>
    print(f"\nsaved: {path}; open it in a browser")


def main(argv=None):
    sys.stdout.reconfigure(errors="backslashreplace")  # a model may write anything
    parser = Parser(description=__doc__)
    count = functools.partial(number, int, at_least=1)
    parser.add_argument("run", type=not_empty, help="a finished run of reft_ppo.py or dpo.py")
    parser.add_argument("--question", type=count, metavar="N",
                        help="its number in the training split (default: 1)")
    parser.add_argument("--html", type=not_empty, metavar="FILE", help="write a page, too")
    parser.add_argument("--pair", type=count, metavar="N", help="of a DPO run (default: 1)")
    parser.add_argument("--seed", type=functools.partial(number, int, at_least=0, at_most=2**32),
                        default=0, metavar="N", help="of the samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args(argv)
    script, config = load_config(args.run, seed=args.seed, device=args.device)
    for name in ["pair"] if script is reft_ppo else ["question", "html"]:
        if getattr(args, name):
            stop(f"--{name}: {args.run} is a run of {script.__name__}.py. Leave --{name} out")
    if script is reft_ppo:
        explain_rollout(args.run, config, args.question or 1, args.html)
    else:
        explain_pair(args.run, config, args.pair or 1)


if __name__ == "__main__":
    main()
