"""Measure a model; compare finished runs in tables and figures.

    python eval.py out/warmup out/sft out/reft out/dpo         # all of it in out/compare
    python eval.py data/base_model --samples 0 --out out/base  # any model; greedy accuracy only
    python eval.py out/warmup --rerank out/reward_model        # the best of n, and weighted votes
    python eval.py --rescore out/compare/generations/0-warmup.jsonl

Each model answers every problem greedily, for its accuracy, and --samples times at T = 1, for
pass@k, maj@k and its KL to the warm-up model. Runs that differ in their seed alone share a row.
"""

import plumbing.threads  # noqa: F401 (before torch)

import functools
import itertools
import json
from pathlib import Path

import torch
from tqdm import tqdm

from graders import with_grader
from plumbing import figures, files
from plumbing.checkpoints import guarded
from plumbing.cli import is_grader, is_reward_model, make_parser, number, stop, text
from plumbing.models import load_model
from plumbing.packing import pad, predict
from plumbing.reward_models import add_scores, check_context, load_reward_model
from plumbing.rollouts import mean_parts
from plumbing.sampling import (check_room, encode_prompts, generate,  # noqa: F401 (generate)
                               generate_rows)
from plumbing.stats import at_k, mean_and_error, reranked_at_k
from plumbing.tables import by_seed, compare_groups, comparison_tables
from verifier import Task, choices_of, load_problems, score

# --- One model ---


def respond(model, tokenizer, problems, task, max_new_tokens=100, n=1, temperature=0.0, seed=None,
            batch_size=256):
    """n responses to each problem, graded: a list of dicts, problem after problem."""
    columns = problems if isinstance(problems, dict) else problems[:]
    asked = {name: [x for x in column for _ in range(n)] for name, column in columns.items()}
    prompts = task.prompts(asked)
    training = model.training
    model.eval()
    rows = generate_rows(model, tokenizer, prompts, max_new_tokens, temperature, seed, batch_size)
    model.train(training)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [{"prompt": prompt, "response": text, "answer": answer, "cot": task.cot,
             "choices": task.choices, "ended": tokenizer.eos_token_id in row, "ids": row,
             **vars(grade)}
            for prompt, text, answer, row, grade in zip(
                prompts, texts, asked["answer"], rows, task.grade(texts, asked))]


def rates(responses, task):
    """A dict: accuracy, eos_rate, no_answer and the task's own metrics, fractions in [0, 1];
    mean_tokens of a response, EOS included; and the mean of a score other than the rule's."""
    count = len(responses)
    return {
        "accuracy": sum(r["correct"] for r in responses) / count,
        "mean_tokens": sum(len(r["ids"]) for r in responses) / count,
        "eos_rate": sum(r["ended"] for r in responses) / count,
        "no_answer": sum(r["extracted"] is None for r in responses) / count,
        **({"score": sum(r["score"] for r in responses) / count} if task.scored else {}),
        **mean_parts([(r["parts"], r["failed"]) for r in responses]),
        **task.own_metrics([r["response"] for r in responses])}


def evaluate(model, tokenizer, problems, cot="nl", max_new_tokens=100, batch_size=256, task=None):
    """The rates of the greedy responses to `problems`. task: how they are asked and graded;
    without it, in the style `cot`, by the rule."""
    task = task or Task(cot=cot, choices=choices_of(problems))
    return rates(respond(model, tokenizer, problems, task, max_new_tokens, batch_size=batch_size),
                 task)


def eval_kwargs(args):
    """The arguments of `respond` and `evaluate` that are a run's flags."""
    return dict(max_new_tokens=args.max_new_tokens, batch_size=args.generate_batch_size)


def dev_metrics(model, tokenizer, task, args, reference=None):
    """What a run measures on dev as it trains: dev_accuracy; dev_score, where it is not the rule's;
    and with --eval-samples, reward_and_kl to the reference model."""
    found = evaluate(model, tokenizer, task.dev, task=task, **eval_kwargs(args))
    measured = {f"dev_{name}": found[name] for name in ["accuracy", "score"] if name in found}
    if getattr(args, "eval_samples", 0):
        measured |= reward_and_kl(model, reference, tokenizer, task, args.eval_samples,
                                  **eval_kwargs(args))
    return measured


def reward_and_kl(model, reference, tokenizer, task, n, seed=0, **kwargs):
    """A point of the reward-KL frontier, of n samples at T = 1 to each dev problem: dev_reward (the
    rule's mean score), dev_kl (nats a response) and their standard errors. kwargs: eval_kwargs."""
    responses = respond(model, tokenizer, task.dev, task, n=n, temperature=1.0, seed=seed, **kwargs)
    kl, kl_error = mean_and_error(response_kl(model, reference, tokenizer, responses), n)
    mean, error = mean_and_error([score(r["extracted"], r["correct"], task.choices, task.partial)
                                  for r in responses], n)
    return {"dev_reward": mean, "dev_reward_error": error, "dev_kl": kl, "dev_kl_error": kl_error}


@torch.no_grad()
def response_kl(model, reference, tokenizer, responses, batch_size=64):
    """KL(model || reference) on each response, a (count,) tensor in nats.

    The exact KL between the two next-token distributions, summed over the response's tokens. By
    the chain rule its mean over the model's own samples at T = 1 is the KL of whole responses; it
    is never negative, and less noisy than the mean of log pi - log pi_ref.
    """
    prompts = encode_prompts(tokenizer, [r["prompt"] for r in responses])
    examples = [(prompt, r["ids"]) for prompt, r in zip(prompts, responses)]
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i][1]))  # longest first
    kl = torch.zeros(len(examples))
    vocab, numbers = model.get_output_embeddings().out_features, 2**28  # 1 GB a tensor
    while order:
        longest = len(examples[order[0]][1])
        size = max(1, min(batch_size, numbers // (vocab * longest)))
        rows, order = order[:size], order[size:]
        ids, attention_mask, mask = pad([examples[i] for i in rows], model.device)
        logits = [predict(lm, ids, attention_mask, mask)[0]  # (response tokens, vocab)
                  for lm in (model, reference)]
        per_token = torch.cat([next_token_kl(*parts)
                               for parts in zip(*(x.split(256) for x in logits))])
        kl[rows] = torch.zeros(mask.shape, device=ids.device).masked_scatter(
            mask, per_token).sum(-1).cpu()
    return kl


def next_token_kl(logits, reference_logits):
    """KL of two distributions a row: logits (tokens, vocab). Returns: (tokens,), nats."""
    p, q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


# --- Runs, measured and compared ---


def measure_fully(run, problems, task, flags, args, generations):
    """All that is to be known of one model, as a dict; each response is saved in `generations`.
    problems, task, flags: what_to_measure's."""
    model, tokenizer = load_model(run, args.device, flags["dtype"])
    ask = functools.partial(respond, model, tokenizer, problems, task, flags["max_new_tokens"],
                            batch_size=args.generate_batch_size)
    greedy, sampled, n = ask(), [], args.samples
    measured = {"task": task.name, "cot": task.cot, "split": args.split, "problems": len(problems),
                "generations": str(generations), "cost": cost_of(run),
                **rates(greedy, task), "correct": [int(r["correct"]) for r in greedy]}
    if n:
        sampled = ask(n=n, temperature=1.0, seed=args.seed)
        per_problem = [sampled[start:start + n] for start in range(0, len(sampled), n)]
        measured["pass_at"], measured["maj_at"] = at_k(per_problem, n)
        if args.rerank:
            add_scores(args.rerank, sampled, n, args)
            measured |= reranked_at_k(per_problem, n)
        if warmup := warmup_of(run):
            reference, _ = load_model(warmup, args.device, flags["dtype"])
            kl = response_kl(model, reference, tokenizer, sampled, args.micro_batch_size)
            measured["kl"], measured["kl_error"] = mean_and_error(kl, n)
    files.write_lines(generations.parent, generations.name, [
        {"decoding": name, **{key: x for key, x in r.items() if key != "ids"},
         "tokens": len(r["ids"])}
        for name, responses in [("greedy", greedy), ("sampled", sampled)] for r in responses])
    return measured


def what_to_measure(run, args):
    """The problems, their task, and the flags of the run, unless args have them."""
    own = files.flags_of(run)
    flags = {name: getattr(args, name) or own.get(name, usual) for name, usual in [
        ("task", "word_problems"), ("cot", "nl"), ("max_new_tokens", 100),
        ("dtype", "float32")]}
    if flags["task"] == "none":
        stop(f"{run} was trained on pairs alone: name a --task to measure it on")
    limit = args.eval_limit or own.get("limit" if args.split == "train" else "eval_limit")
    reward = args.reward or own.get("reward")
    problems = load_problems(flags["task"], args.split, limit, is_grader(reward))
    task = Task(flags["task"], flags["cot"], choices_of(problems), **{args.split: problems})
    return problems, with_grader(task, reward) if is_grader(reward) else task, flags


def warmup_of(run):
    """The model that KL is measured from: what the run started from, where that is still there, or
    else the `warmup` beside it; None without either."""
    own = files.flags_of(run).get("warmup")
    beside = Path(run).parent / "warmup"
    return (own if own and Path(own).exists() else
            str(beside) if files.is_run(beside) else None)


def cost_of(run):
    """What training took, from the run's own log; evaluations, and the warm-up, are not in it."""
    if not files.is_run(run):
        return {}
    metrics = files.read_metrics(run)
    return {name: sum(m.get(name, 0) for m in metrics)
            for name in ["questions", "samples", "tokens", "seconds"]} | {
        "peak_memory_mb": files.read_json(run, "result.json").get("peak_memory_mb", 0)}


def check(folders, args):
    """Stop at what is wrong with any of the runs, before one of them is measured. Returns: {run:
    what_to_measure}."""
    if not folders:
        stop("nothing to evaluate; name runs or models: python eval.py out/warmup out/reft")
    for run, other in itertools.combinations(folders, 2):
        if Path(run).resolve() == Path(other).resolve():
            stop(f"{run} and {other} are the same run; name it once")
    for run in folders:
        cost_of(run)
    found = {run: what_to_measure(run, args) for run in folders}
    judge = load_reward_model(args.rerank, args.device) if args.rerank else None
    for run, (problems, task, flags) in found.items():
        model, tokenizer = load_model(run, args.device, flags["dtype"])
        prompts = {args.split: task.prompts(problems)}
        check_room(model, tokenizer, prompts, flags["max_new_tokens"])
        if judge:
            check_context(*judge, prompts, flags["max_new_tokens"])
    return found


def compare(args):
    """Measure the runs named; print and save tables and figures."""
    runs, out = args.runs + [args.model] * bool(args.model), Path(args.out)
    found = check(runs, args)
    files.make_folder(out / "generations")
    measured = {}
    for i, run in enumerate(bar := tqdm(runs, unit="run")):
        bar.set_description(run)
        measured[run] = measure_fully(
            run, *found[run], args, out / "generations" / f"{i}-{Path(run).name}.jsonl")
    text = comparison_tables(compare_groups(measured)) + (
        "\n\n[]: 95% interval, of one run Wilson's, of seeds and of differences by bootstrap; ±: "
        "standard deviation of the seeds, of the KL the standard error of one of them")
    print(f"\n{text}")
    files.write_json(out, "compare.json", measured)
    files.write_text(out, "compare.md", f"{text}\n")
    groups = by_seed(runs)
    finished = [(name, group) for name, group in groups if files.is_run(group[0])]
    if finished:
        own = Task(measured[finished[0][1][0]]["task"]).own_metrics([])
        figures.draw_curves(finished, out / "curves.png", own)
    if args.samples:
        figures.draw_samples([(name, [measured[run] for run in group]) for name, group in groups],
                             out / "samples.png")
    print(f"saved in {out}")


def rescore(args):
    """Score saved generations again, and say what changed."""
    try:
        with open(args.rescore, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if any(row.get("failed") is not None for row in rows):
            stop(f"--rescore {args.rescore}: these were scored by a grader, which reads more than "
                 "is saved with them; measure the run again")
        graded = [Task(cot=row["cot"], choices=row["choices"]).grade(
            [row["response"]], {"answer": [row["answer"]]})[0] for row in rows]
        saved = [(row["score"], row["score"] == 1) for row in rows]
        kinds = dict.fromkeys(row["decoding"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        stop(f"--rescore {args.rescore}: not generations that eval.py saved ({error!r}); name a "
             "file in the folder `generations` of a comparison")
    for kind in kinds:
        picked = [i for i, row in enumerate(rows) if row["decoding"] == kind]
        print(f"{kind}: {len(picked):,} responses, accuracy "
              f"{sum(saved[i][1] for i in picked) / len(picked):.1%} as saved, "
              f"{sum(graded[i].correct for i in picked) / len(picked):.1%} as scored now")
    changed = [i for i, grade in enumerate(graded) if grade.score != saved[i][0]]
    print(f"{len(changed)} of {len(rows):,} scores changed")
    for i in changed[:5]:
        print(f"line {i + 1}: {saved[i][0]} -> {graded[i].score}, right answer "
              f"{rows[i]['answer']}, read as {graded[i].extracted}, from "
              f"...{rows[i]['response'][-60:]!r}")


def main(argv=None):
    parser = make_parser(__doc__, out="out/compare", trains=False)
    parser.add_argument("runs", nargs="*", type=text, help="folders of finished runs, or models")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--samples", type=number(int, 0), default=32,
                        help="responses to each problem at T = 1 (0: none, greedy accuracy only)")
    parser.add_argument("--rerank", type=text, metavar="FOLDER",
                        help="a reward model: the best of k samples by it, votes weighted by it")
    parser.add_argument("--rescore", type=text, metavar="FILE",
                        help="score saved generations again")
    # A run is measured on the task it was trained on, unless the flags say otherwise.
    parser.set_defaults(model=None, task=None, cot=None, max_new_tokens=None, dtype=None)
    args = parser.parse_args(argv)
    if args.rerank and not args.samples:
        parser.error("--rerank chooses among samples: give --samples, too")
    if is_reward_model(args.reward):
        parser.error(f"--reward {args.reward}: takes a grader's .json file here; a reward model is "
                     "given to --rerank")
    if (Path(args.out) / "config.json").exists():
        stop(f"--out {args.out} holds a run; choose another folder for what is measured")
    guarded(rescore if args.rescore else compare, args)


if __name__ == "__main__":
    main()
