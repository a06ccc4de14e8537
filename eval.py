"""Measure a model; compare finished runs in tables and figures.

    python eval.py out/warmup out/sft out/reft out/dpo         # all of it in out/compare
    python eval.py data/base_model --samples 0 --out out/base  # any model; greedy accuracy only
    python eval.py out/warmup --rerank out/reward_model        # the best of n, and weighted votes

Each model answers every problem greedily, for its accuracy, and --samples times at T = 1, for
pass@k, maj@k and its KL to the warm-up model. Runs that differ only in their seed share a row.
"""

import plumbing  # noqa: F401 (before torch)

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from lm import (check_context_length, encode_prompts, generate,  # noqa: F401 (generate)
                generate_by_length, load_model, pad, response_logits, scatter)
from plumbing.checkpoints import read_json, read_metrics, write_json, write_lines, write_text
from plumbing.cli import RunConfig, flag, is_grader, is_reward_model, parse, stop, warn
from plumbing.run import flags_of, is_finished, resolve_model_path, run_safely
from verifier import Task, choices_of, load_problems

# --- A task, and one model's responses to it ---


def load_task(config, partial=0.1) -> Task:
    """The task that a run's flags name, with its problems; scored by --reward if that is given."""
    with_items = is_grader(config.reward)  # it reads the whole row
    train = load_problems(config.task, "train", config.limit, with_items)
    dev, test = (load_problems(config.task, split, config.eval_limit, with_items)
                 for split in ("dev", "test"))
    for name, problems in [("dev", dev), ("test", test)]:
        shared = len(set(problems["question"]) & set(train["question"]))
        if shared:
            warn(f"{shared} {name} questions of {config.task} are in train, too: what is measured "
                 "on them is memory")
    task = Task(config.task, config.cot, choices_of(train), partial, train, dev, test)
    return add_scorer(task, config)


def add_scorer(task, config):
    if config.reward is None:
        return task
    from graders import with_reward
    return with_reward(task, config)


def respond(model, tokenizer, problems, task, max_new_tokens=100, n=1, temperature=0.0, seed=None,
            batch_size=256):
    """n responses to each problem, graded: a list of dicts, problem after problem."""
    columns = problems if isinstance(problems, dict) else problems[:]
    asked = {name: [x for x in column for _ in range(n)] for name, column in columns.items()}
    prompts = task.prompts(asked)
    training = model.training
    model.eval()
    ids = generate_by_length(model, tokenizer, prompts, max_new_tokens, temperature, seed,
                             batch_size)
    model.train(training)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [{"prompt": prompt, "response": text, "answer": answer, "cot": task.cot,
             "choices": task.choices, "ended": tokenizer.eos_token_id in row, "ids": row,
             **vars(grade)}
            for prompt, text, answer, row, grade in zip(
                prompts, texts, asked["answer"], ids, task.grade(texts, asked))]


def rates(responses, task):
    """A dict: accuracy, eos_rate, no_answer and the task's own metrics, fractions in [0, 1];
    mean_tokens of a response, EOS included; with --reward, the mean score."""
    count = len(responses)
    return {
        "accuracy": sum(r["correct"] for r in responses) / count,
        "mean_tokens": sum(len(r["ids"]) for r in responses) / count,
        "eos_rate": sum(r["ended"] for r in responses) / count,
        "no_answer": sum(r["extracted"] is None for r in responses) / count,
        **({"score": sum(r["score"] for r in responses) / count} if task.scorer else {}),
        **grader_metrics([(r["parts"], r["failed"]) for r in responses]),
        **task.task_metrics([r["response"] for r in responses])}


def evaluate(model, tokenizer, problems, cot="nl", max_new_tokens=100, batch_size=256, task=None):
    """The rates of the greedy responses to `problems`. task: how they are asked and graded; without
    it, in the style `cot`, by the rule."""
    task = task or Task(cot=cot, choices=choices_of(problems))
    return rates(respond(model, tokenizer, problems, task, max_new_tokens, batch_size=batch_size),
                 task)


def sampling_limits(config):
    """The arguments of `respond` and `evaluate` that are a run's flags."""
    return {"max_new_tokens": config.max_new_tokens, "batch_size": 2 * config.micro_batch_size}


def evaluate_dev(model, tokenizer, task, config):
    """dev_accuracy, and with --reward dev_score, of greedy responses."""
    found = evaluate(model, tokenizer, task.dev, task=task, **sampling_limits(config))
    return {f"dev_{name}": found[name] for name in ("accuracy", "score") if name in found}


def evaluate_test(model, tokenizer, task, config):
    """The rates of greedy responses to the test problems."""
    return evaluate(model, tokenizer, task.test, task=task, **sampling_limits(config))


# --- What is logged of a rollout and of its updates ---


def rollout_metrics(scores, grades, responses, eos, logprobs, ref_logprobs, mask):
    """Of a step's samples, before the updates. kl: nats per response; entropy: nats per token.

    Args: scores (batch,); grades, responses (token ids), lists; the rest (batch, seq-1).
    """
    return {"samples": len(responses), "reward": scores.mean().item(),
            "accuracy": sum(grade.correct for grade in grades) / len(grades),
            "kl": ((logprobs - ref_logprobs) * mask).sum(-1).mean().item(),
            "response_tokens": sum(map(len, responses)) / len(responses),
            "eos_rate": sum(eos in response for response in responses) / len(responses),
            "entropy": -logprobs[mask].mean().item(),
            **grader_metrics([(grade.parts, grade.failed) for grade in grades])}


def update_metrics(losses, grad_norms, log_ratios, clip_eps):
    """Means over a step's updates, and over the tokens that they learned from.

    Args: losses, one per update; grad_norms, likewise; log_ratios (tokens,), log pi - log pi_old.
    """
    approx_kl = (log_ratios.exp() - 1 - log_ratios).mean()  # KL(pi_old || pi), k3, nats per token
    return {"updates": len(losses), "loss": torch.stack(losses).mean().item(),
            "grad_norm": torch.stack(grad_norms).mean().item(), "approx_kl": approx_kl.item(),
            "clip_fraction": ((log_ratios.exp() - 1).abs() > clip_eps).float().mean().item()}


def grader_metrics(found):
    """The mean of each part of a grader's score, and how often it failed. found: [(parts, failed)];
    failed is None without a grader."""
    if found[0][1] is None:
        return {}
    return {"grader_errors": sum(failed for _, failed in found) / len(found)} | {
        f"score_{name}": sum(parts[name] for parts, _ in found) / len(found)
        for name in found[0][0]}


# --- KL to another model ---


@torch.no_grad()
def response_kl(model, reference, tokenizer, responses, batch_size=64):
    """KL(model || reference) on each response, a (count,) tensor in nats.

    The exact KL between the two next-token distributions, summed over the response's tokens. By the
    chain rule its mean over the model's own samples at T = 1 is the KL of whole responses. It is
    never negative, and less noisy than the mean of log pi - log pi_ref.
    """
    prompts = encode_prompts(tokenizer, [r["prompt"] for r in responses])
    examples = [(prompt, r["ids"]) for prompt, r in zip(prompts, responses)]
    order = sorted(range(len(examples)), key=[-len(r) for _, r in examples].__getitem__)
    kl = torch.zeros(len(examples))
    vocab, numbers = model.get_output_embeddings().out_features, 2**28  # 1 GB a tensor
    while order:
        longest = len(examples[order[0]][1])
        size = max(1, min(batch_size, numbers // (vocab * longest)))
        rows, order = order[:size], order[size:]
        ids, attention_mask, mask = pad([examples[i] for i in rows], model.device)
        logits, ref_logits = (response_logits(lm, ids, attention_mask, mask)
                              for lm in (model, reference))  # (response tokens, vocab)
        per_token = torch.cat([next_token_kl(p, q) for p, q in zip(
            logits.split(256), ref_logits.split(256))])
        kl[rows] = scatter(per_token, mask).sum(-1).cpu()
    return kl


def next_token_kl(logits, ref_logits):
    """KL of two distributions per row, in nats. logits, ref_logits (tokens, vocab) -> (tokens,)."""
    p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


# --- Runs, measured and compared ---


@dataclass
class Config:
    runs: list = flag(None, "folders of finished runs, or models", list)
    task: str = flag(None, "the problems (default: those of the run)", str)
    cot: str = flag(None, "nl or program (default: as in the run)", str, choices=["nl", "program"])
    reward: str = flag(None, "a grader that scores the responses (default: as in the run)", str)
    split: str = flag("test", "which problems", choices=["train", "dev", "test"])
    eval_limit: int = flag(None, "the first N problems only", int, at_least=1)
    samples: int = flag(32, "responses per problem at T = 1; 0: greedy accuracy only", at_least=0)
    rerank: str = flag(None, "a reward model's folder: the best of k samples by it, and votes "
                       "weighted by it", str)
    max_new_tokens: int = flag(None, "the longest response (default: as in the run)", int,
                               at_least=1)
    seed: int = flag(0, "of the samples", at_least=0, at_most=2**32)
    out: str = flag("out/compare", "the folder that is written")
    device: str = flag("auto", "auto takes cuda, else mps, else cpu",
                       choices=["auto", "cpu", "cuda", "mps"])
    dtype: str = flag(None, "of the model (default: as in the run)", str,
                      choices=["float32", "bfloat16"])
    micro_batch_size: int = flag(128, "responses per forward pass, twice as many when sampling",
                                 at_least=1)


def config_for(run, config):
    """The flags to measure a run with: those given, else its own, else the defaults."""
    own = flags_of(run)
    if own.get("task") == "none" and not config.task:
        stop(f"{run} was trained on pairs alone: name a --task to measure it on")
    usual = RunConfig()
    given = {name: getattr(config, name) or own.get(name, getattr(usual, name)) for name in (
        "task", "cot", "max_new_tokens", "dtype", "reward")}
    if is_reward_model(given["reward"]):
        given["reward"] = None  # a reward model's score is not what a comparison is about
    limit = own.get("limit" if config.split == "train" else "eval_limit")
    return replace(config, eval_limit=config.eval_limit or limit, **given)


def load_split(config):
    """The task of one run, with the problems of --split alone."""
    problems = load_problems(config.task, config.split, config.eval_limit,
                             is_grader(config.reward))
    task = Task(config.task, config.cot, choices_of(problems), **{config.split: problems})
    return add_scorer(task, config)


def measure_fully(run, task, config, judge, path):
    """All that is known of one model, as a dict; each response is saved in the file `path`."""
    from plumbing.stats import at_k, mean_and_error, reranked_at_k
    model, tokenizer = load_model(run, config.device, config.dtype)
    problems, n = getattr(task, config.split), config.samples
    prompts = {config.split: task.prompts(problems)}
    check_context_length(model, tokenizer, prompts, config.max_new_tokens)
    if judge:
        check_context_length(judge[0].classifier, judge[1], prompts, config.max_new_tokens + 1)
    greedy, sampled = respond(model, tokenizer, problems, task, **sampling_limits(config)), []
    measured = {"task": task.name, "cot": task.cot, "split": config.split,
                "problems": len(problems), "generations": str(path), "cost": cost_of(run),
                **rates(greedy, task), "correct": [int(r["correct"]) for r in greedy]}
    if n:
        sampled = respond(model, tokenizer, problems, task, n=n, temperature=1.0,
                          seed=config.seed, **sampling_limits(config))
        per_problem = [sampled[start:start + n] for start in range(0, len(sampled), n)]
        measured["pass_at"], measured["maj_at"] = at_k(per_problem, n)
        if judge:
            add_scores(judge, sampled, n, config)
            measured |= reranked_at_k(per_problem, n)
        if warmup := warmup_of(run):
            reference, _ = load_model(warmup, config.device, config.dtype)
            kl = response_kl(model, reference, tokenizer, sampled, config.micro_batch_size)
            measured["kl"], measured["kl_error"] = mean_and_error(kl, n)
    write_lines(path, [
        {"decoding": name, **{key: x for key, x in r.items() if key != "ids"},
         "tokens": len(r["ids"])}
        for name, responses in [("greedy", greedy), ("sampled", sampled)] for r in responses])
    return measured


def add_scores(judge, responses, n, config):
    """Give each of n responses in a row to each problem `learned`, the reward model's score, and
    `weight`, its vote: P(right) if that was learned, else the Bradley-Terry strength, a softmax."""
    from graders import score
    model, tokenizer = judge
    scores = score(model, tokenizer, [r["prompt"] for r in responses],
                   [r["response"] for r in responses], config.micro_batch_size)
    groups = scores.view(-1, n)
    weights = groups.sigmoid() if model.objective == "binary" else groups.softmax(-1)
    for response, learned, weight in zip(responses, scores.tolist(), weights.flatten().tolist()):
        response |= {"learned": learned, "weight": weight}


def warmup_of(run):
    """The model from which KL is measured: what the run started from if that is still there, else
    the `warmup` beside it; None without either."""
    own, beside = flags_of(run).get("warmup"), str(Path(run).parent / "warmup")
    return own if own and Path(own).exists() else beside if is_finished(beside) else None


def cost_of(run):
    """What training took, by the run's own log, without evaluations and without the warm-up."""
    if not is_finished(run):
        return {}
    metrics = read_metrics(run)
    return {name: sum(m.get(name, 0) for m in metrics)
            for name in ("questions", "samples", "tokens", "seconds")} | {
        "peak_memory_mb": read_json(Path(run) / "result.json").get("peak_memory_mb", 0)}


def compare(config):
    """Measure the runs; print and save tables and figures."""
    from plumbing import report, tables
    out = Path(config.out)
    if not config.runs:
        stop("nothing to evaluate. Name runs or models: python eval.py out/warmup out/reft")
    for run in config.runs:
        resolve_model_path(run)  # stops before anything is measured
    for run, other in itertools.combinations(config.runs, 2):
        if Path(run).resolve() == Path(other).resolve():
            stop(f"{run} and {other} are the same run: name it once")
    if config.rerank and not config.samples:
        stop("--rerank chooses among samples: give --samples, too")
    if (out / "config.json").exists():
        stop(f"--out {out} holds a run. Choose another folder for the comparison")
    configs = {run: config_for(run, config) for run in config.runs}
    tasks = {run: load_split(own) for run, own in configs.items()}
    judge = None
    if config.rerank:
        from graders import load_reward_model
        judge = load_reward_model(config.rerank, config.device)
    (out / "generations").mkdir(parents=True, exist_ok=True)
    measured = {}
    for i, run in enumerate(bar := tqdm(config.runs, unit="run")):
        bar.set_description(run)
        measured[run] = measure_fully(run, tasks[run], configs[run], judge,
                                      out / "generations" / f"{i}-{Path(run).name}.jsonl")
    text = tables.comparison_tables(tables.compare_groups(measured)) + (
        "\n\n[]: 95% interval; Wilson's for one run, bootstrap for seeds and differences. ±: "
        "standard deviation over seeds; for the KL, standard error")
    print(f"\n{text}")
    write_json(out / "compare.json", measured)
    write_text(out / "compare.md", f"{text}\n")
    report.draw_comparison(measured, out)
    print(f"saved in {out}")


def main(argv=None):
    run_safely(compare, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
