"""What does each token get? A rollout of a ReFT run, a line a token; or a pair of a DPO run.

    python explain.py out/reft --question 3
    python explain.py out/dpo --pair 5
    python explain.py out/reft --question 3 --html page.html   # a slider over the checkpoints

The rollout is one of a whole step's, which is sampled, scored and learned from as reft_ppo.py does
it, by its own functions. The policy is that of a checkpoint, which holds the value head; a model
folder does not.
"""

import plumbing.threads  # noqa: F401 (before torch)

import argparse
import copy
from pathlib import Path

import torch

import dpo
import reft_ppo
from graders import load_task
from grpo import token_logprobs
from plumbing import files
from plumbing.checkpoints import checkpoints, step_of
from plumbing.cli import Parser, number, stop, text
from plumbing.ledger import digits, show_token, write_page
from plumbing.models import load_model
from plumbing.packing import pad
from plumbing.pairs import encode_pairs, load_pairs
from plumbing.rollouts import Rollout, micro_batches, minibatches
from plumbing.sampling import encode_prompts, generate_ids
from plumbing.schedule import adamw
from plumbing.tables import table

COLUMNS = {"logprob": "log pi", "ref_logprob": "log pi_ref", "kl": "KL", "reward": "reward",
           "value": "V", "advantage": "A", "return": "return", "white": "A, whitened",
           "ratio": "ratio after", "clipped": "clipped"}


# --- A rollout of a ReFT run ---


def policy_at(path, start, flags):
    """A copy of the policy `start`, with the weights of the checkpoint `path`, where one is given,
    and its optimizer, at the peak learning rate."""
    policy = copy.deepcopy(start)
    optimizer = adamw(policy, flags.lr)
    if path:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        policy.load_state_dict(saved["parts"][0])
        optimizer.load_state_dict(saved["parts"][1])
    optimizer.param_groups[0]["lr"] = flags.lr
    return policy, optimizer


def roll_out(policy, reference, tokenizer, task, asked, flags, first=None):
    """Steps 1 to 4 of reft_ppo.train for the questions asked. first: the first one's response,
    where it is given. Returns: the rollout, with `rewards` and `raw`, the advantages before they
    are whitened; the scores; the first response."""
    lm, eos = policy.lm, tokenizer.eos_token_id
    prompts = encode_prompts(tokenizer, task.prompts(task.train[asked]))
    responses = generate_ids(lm, prompts, eos, flags.max_new_tokens, temperature=1.0,
                             generator=torch.Generator(lm.device).manual_seed(flags.seed),
                             batch_size=flags.generate_batch_size)
    responses[0] = first or responses[0]
    rollout = Rollout(*pad(list(zip(prompts, responses)), lm.device))
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    scores = torch.tensor([grade.score - (flags.eos_penalty or 0.0) * (eos not in response)
                           for grade, response in zip(task.grade(texts, task.train[asked]),
                                                      responses)], device=lm.device)
    if task.learned:
        scores = reft_ppo.RunningScale()(scores)
    credit(policy, reference, rollout, scores, flags)
    return rollout, scores, responses[0]


def credit(policy, reference, rollout, scores, flags):
    """Steps 3 and 4: fill in the rest of the rollout."""
    reft_ppo.score_tokens(policy, reference, rollout, flags.micro_batch_size)
    rollout.rewards = reft_ppo.token_rewards(scores, rollout.logprobs, rollout.ref_logprobs,
                                             rollout.mask, flags.kl_coef)
    rollout.raw, rollout.returns = reft_ppo.compute_gae(rollout.rewards, rollout.values,
                                                        rollout.mask, flags.gamma, flags.lam)
    rollout.advantages = reft_ppo.whiten(rollout.raw, rollout.mask)


def ratios_after(policy, optimizer, rollout, flags):
    """pi / pi_old of the first response's tokens after one epoch of updates: (1, seq-1). The policy
    is another then."""
    torch.manual_seed(flags.seed)  # of the minibatches' order
    learn(policy, optimizer, rollout, flags)
    first = rollout.rows(slice(1))
    with torch.no_grad():
        return (reft_ppo.logprobs_and_values(policy, first)[0] - first.logprobs).exp()


def learn(policy, optimizer, rollout, flags):
    """Step 5: one epoch of updates."""
    for minibatch in minibatches(len(rollout.ids), flags.minibatch_size or 128, 1,
                                 rollout.ids.device):
        for index in micro_batches(rollout, minibatch, flags.micro_batch_size):
            part = rollout.rows(index)
            logprobs, values = reft_ppo.logprobs_and_values(policy, part)
            loss = reft_ppo.policy_loss(logprobs, part.logprobs, part.advantages, part.mask,
                                        flags.clip_eps)
            loss += flags.vf_coef * reft_ppo.value_loss(values, part.values, part.returns,
                                                        part.mask, flags.clip_eps)
            (loss * len(index) / len(minibatch)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), flags.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def ledger(tokenizer, rollout, ratios, clip_eps):
    """A dict a token of the rollout's first response: its text and COLUMNS."""
    mask = rollout.mask[0]
    of = {"logprob": rollout.logprobs, "ref_logprob": rollout.ref_logprobs,
          "kl": rollout.logprobs - rollout.ref_logprobs, "reward": rollout.rewards,
          "value": rollout.values, "advantage": rollout.raw, "return": rollout.returns,
          "white": rollout.advantages, "ratio": ratios}
    rows = [dict(zip(of, numbers)) for numbers in zip(*(x[0][mask].tolist() for x in of.values()))]
    for row, token in zip(rows, rollout.ids[0, 1:][mask].tolist()):
        row["token"] = tokenizer.decode([token])
        moved = row["ratio"] - 1 if row["white"] > 0 else 1 - row["ratio"]
        row["clipped"] = moved > clip_eps  # there its gradient is 0
    return rows


def show_rollout(run, step, question, rows, score, flags, count):
    print(f"{run}, step {step}: a sample at T = 1\n\n{question}")
    sums = {name: sum(row[name] for row in rows)
            for name in ["logprob", "ref_logprob", "kl", "reward"]}
    lines = [[show_token(row["token"]), *(digits(row[name]) for name in list(COLUMNS)[:-1]),
              "yes" if row["clipped"] else ""] for row in rows]
    lines.append(["sum", *(digits(sums[name]) if name in sums else "" for name in COLUMNS)])
    print(table(["token", *COLUMNS.values()], lines))
    way = (f"; with gamma = lambda = 1 the first return is that sum: {rows[0]['return']:.3f}"
           if flags.gamma == flags.lam == 1 else
           f"; gamma {flags.gamma:g}, lambda {flags.lam:g}: A = delta + gamma lambda A of the next")
    print(f"\nsum of the rewards = score - beta x sum of KL: {sums['reward']:.3f} = {score:.3f} - "
          f"{flags.kl_coef:g} x {sums['kl']:.3f}\nof each token return = A + V{way}\n"
          f"ratio after: one epoch of updates at --lr {flags.lr:g} with a step's "
          f"{count} rollouts; clipped: no gradient, as the ratio has moved by more than "
          f"{flags.clip_eps:g} where A asks it to")


def explain_rollout(run, args, flags):
    paths = {0: None} | {step_of(path): path for path in checkpoints(run)}
    step = max(paths) if args.step is None else args.step
    if step not in paths:
        stop(f"--step {step}: {run} has the steps {', '.join(map(str, paths))}")
    task = load_task(flags, flags.partial_reward)
    if args.question > len(task.train):
        stop(f"--question {args.question}: the training split has {len(task.train):,}")
    asked = [(args.question - 1 + i) % len(task.train) for i in range(flags.batch_size)
             for _ in range(flags.samples_per_question or 1)]
    question = task.prompts(task.train[asked[:1]])[0]
    lm, tokenizer = load_model(flags.warmup, flags.device)
    start = reft_ppo.PolicyWithValue(lm, separate=flags.value == "separate")  # its V is 0
    pages, first = {}, None
    for at in [step, *(paths.keys() - {step} if args.html else [])]:
        policy, optimizer = policy_at(paths[at], start, flags)
        rollout, scores, first = roll_out(policy, start, tokenizer, task, asked, flags, first)
        ratios = ratios_after(policy, optimizer, rollout, flags)
        rows = ledger(tokenizer, rollout, ratios, flags.clip_eps)
        pages[at] = {"score": scores[0].item(), "tokens": rows}
    show_rollout(run, step, question, pages[step]["tokens"], pages[step]["score"], flags,
                 len(asked))
    if args.html:
        write_page(args.html, run, question, COLUMNS, dict(sorted(pages.items())))


# --- A pair of a DPO run ---


def explain_pair(run, args, flags):
    file = flags.pairs or f"{run}/pairs.jsonl"
    pairs = load_pairs(file)
    if args.pair > len(pairs):
        stop(f"--pair {args.pair}: {file} has {len(pairs):,}")
    pair = pairs[args.pair - 1]
    policy, tokenizer = load_model(run, flags.device)
    reference, _ = load_model(flags.warmup, flags.device)
    encoded = encode_pairs(tokenizer, [pair], flags.max_length)
    if not encoded:
        stop(f"--pair {args.pair}: it is longer than {flags.max_length} tokens, or the same on "
             "both sides, and was left out; choose another")
    print(f"{run}, pair {args.pair}\n\n{pair['prompt']}")
    logps = {}
    for side in ["chosen", "rejected"]:
        response = encoded[0][side]
        rollout = Rollout(*pad([(encoded[0]["prompt"], response)], policy.device))
        with torch.no_grad():
            log_pi, log_ref = (token_logprobs(lm, rollout)[rollout.mask]
                               for lm in (policy, reference))
        logps[side] = log_pi.sum(), log_ref.sum()
        lines = [[name, digits(p), digits(q), digits(p - q, "+")] for name, p, q in zip(
            [*(show_token(tokenizer.decode([token])) for token in response), "sum"],
            [*log_pi.tolist(), log_pi.sum().item()], [*log_ref.tolist(), log_ref.sum().item()])]
        print(table([side, "log pi", "log pi_ref", "difference"], lines) + "\n")
    (chosen, ref_chosen), (rejected, ref_rejected) = logps.values()
    losses, r_w, r_l = dpo.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, flags.beta,
                                    flags.label_smoothing)
    print(f"r = beta x the sum of the differences, beta {flags.beta:g}: chosen {r_w.item():.3f}, "
          f"rejected {r_l.item():.3f}\nmargin {(r_w - r_l).item():.3f}; loss -log sigmoid(margin) "
          f"{losses.item():.3f}; weight in the gradient sigmoid(-margin) "
          f"{torch.sigmoid(r_l - r_w).item():.3f}")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=text, help="the folder of a run of reft_ppo.py or dpo.py")
    parser.add_argument("--question", type=number(int, 1),
                        help="of the training split, counted from 1; without it the first")
    parser.add_argument("--step", type=number(int, 0), default=None,
                        help="of the checkpoint that samples; 0: the warm-up; without it the last")
    parser.add_argument("--pair", type=number(int, 1),
                        help="of a DPO run, counted from 1; without it the first")
    parser.add_argument("--html", type=text, metavar="FILE", help="write a page, too")
    parser.add_argument("--seed", type=number(int, 0, 2**32), default=0, help="of the samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    own = files.flags_in(args.run) if (Path(args.run) / "config.json").exists() else {}
    script = next((module for module, flag in [(reft_ppo, "gamma"), (dpo, "label_smoothing")]
                   if flag in own), None)
    if script is None:
        stop(f"{args.run}: no run of reft_ppo.py or dpo.py; name the folder of one")
    other = "pair" if script is reft_ppo else "question"
    if getattr(args, other):
        stop(f"--{other}: {args.run} is a run of {script.__name__}.py, which has none")
    args.question, args.pair = args.question or 1, args.pair or 1
    flags = argparse.Namespace(**vars(script.parse_args([])) | own | {
        "seed": args.seed, "device": args.device})
    explain = explain_rollout if script is reft_ppo else explain_pair
    explain(args.run, args, flags)


if __name__ == "__main__":
    main()
