"""Measure a model; compare finished runs in tables and figures.

    python eval.py out/warmup out/sft out/reft out/dpo        # all of it in out/compare
    python eval.py data/base_model --split dev --samples 0    # any model; greedy accuracy only
    python eval.py --rescore out/compare/generations/0-warmup.jsonl
    python eval.py --frontier                                 # reward against KL, many runs

Each model answers every problem greedily, for its accuracy, and --samples times at T = 1, for
pass@k, maj@k and its KL to the warm-up. Runs that differ in their seed alone share a row.
"""

import json
import math
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

import figures
import runs
from generate import (check_room, encode_prompts, generate,  # noqa: F401 (generate)
                      generate_rows, load_model, pad)
from packing import predict
from verifier import (careful_share, choices_of, extract_answer, format_prompt, load_problems,
                      score)


def respond(model, tokenizer, problems, cot="nl", max_new_tokens=100, n=1, temperature=0.0,
            seed=None, batch_size=256):
    """n responses to each problem, graded: a list of dicts (see `grade`), problem after problem."""
    choices, training = choices_of(problems), model.training
    prompts = [format_prompt(q, cot) for q in problems["question"] for _ in range(n)]
    answers = [answer for answer in problems["answer"] for _ in range(n)]
    model.eval()
    rows = generate_rows(model, tokenizer, prompts, max_new_tokens, temperature, seed, batch_size)
    model.train(training)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [grade({"prompt": prompt, "response": text, "answer": answer, "cot": cot,
                   "choices": choices, "ended": tokenizer.eos_token_id in row, "ids": row})
            for prompt, answer, row, text in zip(prompts, answers, rows, texts)]


def grade(response):
    """A response with what the verifier makes of it: `extracted` and `score`."""
    extracted = extract_answer(response["response"], response["cot"], response["choices"])
    return response | {"extracted": extracted,
                       "score": score(extracted, response["answer"], response["choices"])}


def summarize(responses):
    """A dict: accuracy, eos_rate, no_answer and careful as fractions in [0, 1]; mean_tokens per
    response, EOS included. (`careful` is the embedded task's style, of no meaning elsewhere.)"""
    count = len(responses)
    return {
        "accuracy": sum(r["score"] == 1 for r in responses) / count,
        "mean_tokens": sum(len(r["ids"]) for r in responses) / count,
        "eos_rate": sum(r["ended"] for r in responses) / count,
        "no_answer": sum(r["extracted"] is None for r in responses) / count,
        "careful": careful_share([r["response"] for r in responses], responses[0]["cot"])}


def evaluate(model, tokenizer, problems, cot="nl", max_new_tokens=100, batch_size=256):
    """The greedy responses to `problems`, summarized."""
    return summarize(respond(model, tokenizer, problems, cot, max_new_tokens,
                             batch_size=batch_size))


def evaluation_flags(args):
    """The arguments of `respond` and `evaluate` that are a run's flags."""
    return dict(cot=args.cot, max_new_tokens=args.max_new_tokens,
                batch_size=args.generate_batch_size)


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
    vocab, numbers = model.get_output_embeddings().out_features, 2**26  # 256 MB a tensor
    while order:
        longest = len(examples[order[0]][1])
        size = max(1, min(batch_size, numbers // (vocab * longest)))
        rows, order = order[:size], order[size:]
        ids, attention_mask, mask = pad([examples[i] for i in rows], model.device)
        p, q = (predict(lm, ids, attention_mask, mask)[0].log_softmax(-1)
                for lm in (model, reference))  # (response tokens, vocab)
        of_tokens = (p.exp() * (p - q)).sum(-1)
        kl[rows] = torch.zeros(mask.shape, device=ids.device).masked_scatter(
            mask, of_tokens).sum(-1).cpu()
    return kl


def mean_and_error(values, n):
    """The mean of n values for each problem, and its standard error: that of the problems' means,
    since the samples of one problem are alike."""
    of_problems = torch.as_tensor(values, dtype=torch.double).view(-1, n).mean(-1)
    return of_problems.mean().item(), (of_problems.std() / len(of_problems) ** 0.5).item()


def reward_and_kl(model, reference, tokenizer, problems, n, seed=0, **how):
    """A point of the reward-KL frontier, of n samples at T = 1 to each dev problem: dev_reward
    (mean score), dev_kl (nats a response) and their standard errors. how: evaluation_flags."""
    responses = respond(model, tokenizer, problems, n=n, temperature=1.0, seed=seed, **how)
    kl, kl_error = mean_and_error(response_kl(model, reference, tokenizer, responses), n)
    mean, error = mean_and_error([r["score"] for r in responses], n)
    return {"dev_reward": mean, "dev_reward_error": error, "dev_kl": kl, "dev_kl_error": kl_error}


# --- Statistics ---


def percent(fraction, count):
    """A fraction of `count` with its 95% interval (Wilson's): "49.6% [45.2, 54.0]"."""
    z = 1.96
    middle = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(
        fraction * (1 - fraction) / count + z * z / (4 * count * count))
    return f"{fraction:.1%} {interval(max(0.0, middle - half), min(1.0, middle + half))}"


def interval(low, high):
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def bootstrap(first, second, draws=10_000, seed=0):
    """The 95% interval of mean(second) - mean(first), by the paired bootstrap.

    Problems are drawn again, the same for both sides, since an easy problem is easy for both; so
    are the runs, each side's apart. (Of few runs the spread comes out small: by a factor of
    sqrt(2/3) for three.)
    Args: first (runs, problems), second (runs of its own, problems): each problem's accuracy.
    Returns: (low, high).
    """
    generator = torch.Generator().manual_seed(seed)

    def mean(accuracies, problems):
        of_runs = accuracies[:, problems].mean(-1)  # (runs, draws)
        drawn = torch.randint(len(of_runs), of_runs.shape, generator=generator)
        return of_runs.gather(0, drawn).mean(0)

    differences = []
    for _ in range(0, draws, 500):
        problems = torch.randint(first.shape[1], (500, first.shape[1]), generator=generator)
        differences.append(mean(second, problems) - mean(first, problems))
    low, high = torch.cat(differences).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def pass_at_k(n, correct, k):
    """The probability that k of n samples, `correct` of which are right, hold a right one: the
    unbiased estimator of Chen et al. (arXiv 2107.03374), 1 - C(n - correct, k) / C(n, k)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers):
    """The answer given most often; of several, the one given first; None where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.get, default=None)


def maj_at_k(answers, correct, k):
    """How often the majority of k samples is right: the mean over the n // k lots of k samples.

    Args: answers, n extracted answers to one problem (None where there is none) in the order of
        sampling; correct, n bools.
    """
    right = {answer for answer, yes in zip(answers, correct) if yes}
    lots = [answers[at:at + k] for at in range(0, len(answers) - k + 1, k)]
    return sum(majority(lot) in right for lot in lots) / len(lots)


# --- Runs, measured and compared ---


def flags_of(folder):
    """The flags that a finished run was made with; {} for a mere model."""
    return runs.flags_in(folder) if runs.is_run(folder) else {}


def accuracy_table(measured, count, careful):
    """The table that a run ends with. measured: {name: what `evaluate` returned on `count`
    problems}; careful: whether the share of careful solutions means anything."""
    columns = {"mean_tokens": ("tokens", ".1f"), "eos_rate": ("ended", ".1%")}
    if careful:
        columns["careful"] = ("careful", ".1%")
    rows = [[name, percent(m["accuracy"], count), *(
        format(m[key], form) for key, (_, form) in columns.items() if key in m)]
        for name, m in measured.items()]
    header = ["", "test accuracy [95%]", *(title for title, _ in columns.values())]
    return runs.table(header[:len(rows[0])], rows)


def by_seed(folders):
    """[(name, folders)]: together where the name is the same and all flags but the seed's are. A
    model that a run starts from may lie in a folder of each seed's own, of the same name."""
    groups = {}
    for folder in folders:
        rest = flags_of(folder) or {"model": folder}
        rest |= {name: Path(rest[name] or "").name for name in ["model", "warmup"] if name in rest}
        rest = {name: x for name, x in runs.settings(rest).items() if name != "seed"}
        groups.setdefault((Path(folder).name, str(rest)), []).append(folder)
    names = Counter(name for name, _ in groups)
    return [(name if names[name] == 1 else group[0], group) for (name, _), group in groups.items()]


def warmup_of(folder):
    """The model that KL is measured from: what the run started from, where that is still there, or
    else the `warmup` beside it; None without either."""
    own, beside = flags_of(folder).get("warmup"), Path(folder).parent / "warmup"
    return own if own and Path(own).exists() else str(beside) if runs.is_run(beside) else None


def cost_of(folder):
    """What training took, from the run's own log; evaluations, and the warm-up, are not in it."""
    if not runs.is_run(folder):
        return {}
    metrics = runs.read_metrics(folder)
    return {name: sum(m.get(name, 0) for m in metrics)
            for name in ["questions", "samples", "tokens", "seconds"]} | {
        "peak_memory_mb": runs.read_json(folder, "result.json").get("peak_memory_mb", 0)}


def measure(model, tokenizer, problems, flags, args, warmup, generations):
    """All that is to be known of one model, as a dict; each response is saved in `generations`.

    flags: cot, max_new_tokens and dtype, the run's own unless args has them. warmup: the model that
    KL is measured from, or None.
    """
    samples, how = args.samples, dict(cot=flags["cot"], max_new_tokens=flags["max_new_tokens"],
                                      batch_size=args.generate_batch_size)
    greedy, sampled = respond(model, tokenizer, problems, **how), []
    measured = summarize(greedy) | {"correct": [int(r["score"] == 1) for r in greedy]}
    if samples:
        sampled = respond(model, tokenizer, problems, **how, n=samples, temperature=1.0,
                          seed=args.seed)
        of_problems = [sampled[at:at + samples] for at in range(0, len(sampled), samples)]
        measured["pass_at"], measured["maj_at"] = at_k(of_problems, samples)
        if warmup is not None:
            reference, _ = load_model(warmup, args.device, flags["dtype"])
            kl = response_kl(model, reference, tokenizer, sampled, args.micro_batch_size)
            measured["kl"], measured["kl_error"] = mean_and_error(kl, samples)
    runs.write_lines(generations.parent, generations.name, [
        {"decoding": name, **{key: x for key, x in r.items() if key != "ids"},
         "tokens": len(r["ids"])}
        for name, responses in [("greedy", greedy), ("sampled", sampled)] for r in responses])
    return measured


def at_k(of_problems, n):
    """{k: mean pass@k} and {k: mean maj@k} of n responses a problem, k = 1, 4, 16, ... and n."""
    correct = [[r["score"] == 1 for r in responses] for responses in of_problems]
    answers = [[r["extracted"] for r in responses] for responses in of_problems]
    ks = sorted({4**i for i in range(n.bit_length()) if 4**i < n} | {n})
    return ({k: statistics.mean(pass_at_k(n, sum(c), k) for c in correct) for k in ks},
            {k: statistics.mean(map(maj_at_k, answers, correct, [k] * len(correct))) for k in ks})


def correct_of(group):
    """(runs, problems): 1 where a run's greedy response is right."""
    return torch.tensor([m["correct"] for m in group]).float()


def accuracy_cell(group):
    correct = correct_of(group)
    if len(group) == 1:
        return percent(group[0]["accuracy"], correct.shape[1])
    spread = 100 * statistics.stdev(m["accuracy"] for m in group)
    return (f"{statistics.mean(m['accuracy'] for m in group):.1%} "
            f"{interval(*bootstrap(0 * correct, correct))} ± {spread:.1f}")


def difference_cell(first, group):
    """The points that a group of runs gained over the first; "" on other problems than its."""
    if any(group[0][key] != first[0][key] for key in ["task", "split", "problems"]):
        return ""
    a, b = correct_of(first), correct_of(group)
    return f"{100 * (b.mean() - a.mean()).item():+.1f} {interval(*bootstrap(a, b))}"


def tables(measured):
    """The comparison as Markdown: accuracy, samples and cost, a row for each group of runs."""
    groups = [(f"{name}, {len(group)} seeds" if len(group) > 1 else group[0],
               [measured[folder] for folder in group]) for name, group in by_seed(measured)]
    first_name, first = groups[0]
    at = [(key, k) for k in first[0].get("pass_at", {}) for key in ["maj", "pass"]
          if (key, k) != ("maj", 1)]  # of one sample the two are the same
    accuracy, samples, cost = [], [], []
    for name, group in groups:
        def mean(form, *keys):
            found = [m for m in group if keys[0] in m]
            for key in keys:
                found = [m[key] for m in found]
            return format(statistics.mean(found), form) if found else ""

        accuracy.append([
            name, accuracy_cell(group), "" if group is first else difference_cell(first, group),
            mean(".1f", "mean_tokens"), mean(".1%", "eos_rate"), mean(".1%", "no_answer"),
            mean(".1%", "careful") if group[0]["task"] == "word_problems" else ""])
        samples.append([name, *(mean(".1%", f"{key}_at", k) for key, k in at),
                        " ± ".join(filter(None, [mean(".2f", "kl"), mean(".2f", "kl_error")]))])
        cost.append([name, *(mean(",.0f", "cost", key) if group[0]["cost"] else "" for key in [
            "questions", "samples", "tokens", "seconds", "peak_memory_mb"])])
    parts = [(["run", f"{first[0]['split']} accuracy [95%]", f"minus {first_name}", "tokens",
               "ended", "no answer", "careful"], accuracy)]
    if at:
        parts.append((["samples at T = 1", *(f"{key}@{k}" for key, k in at),
                       "KL to warm-up, nats"], samples))
    if any(any(row[1:]) for row in cost):
        parts.append((["cost, without the warm-up's", "questions", "sampled", "tokens trained",
                       "seconds", "MB"], cost))
    return "\n\n".join(runs.table(header, rows) for header, rows in parts)


def compare(args):
    """Measure the runs named; print and save tables and figures."""
    folders = args.runs + [args.model] * bool(args.model)
    if not folders:
        runs.stop("nothing to evaluate; name runs or models: python eval.py out/warmup out/reft")
    for folder in folders:  # what is wrong is said before anything is measured
        flags_of(folder), cost_of(folder)
        if folder.startswith(("./", "../", "/", "out/")) and not Path(folder).exists():
            runs.stop(f"there is no folder {folder}; name finished runs or models")
    measured = {}
    for i, folder in enumerate(bar := tqdm(folders, unit="run")):
        bar.set_description(folder)
        own = flags_of(folder)
        flags = {name: getattr(args, name) or own.get(name, usual) for name, usual in [
            ("task", "word_problems"), ("cot", "nl"), ("limit", None), ("max_new_tokens", 100),
            ("dtype", "float32")]}
        if flags["task"] == "none":
            runs.stop(f"{folder} was trained on pairs alone: name a --task to measure it on")
        problems = load_problems(flags["task"], args.split, flags["limit"])
        model, tokenizer = load_model(folder, args.device, flags["dtype"])
        check_room(model, tokenizer, {args.split: problems}, flags["cot"], flags["max_new_tokens"])
        generations = Path(args.out) / "generations" / f"{i}-{Path(folder).name}.jsonl"
        runs.make_folder(generations.parent)
        measured[folder] = {
            **flags, "split": args.split, "problems": len(problems), "cost": cost_of(folder),
            "generations": str(generations),
            **measure(model, tokenizer, problems, flags, args, warmup_of(folder), generations)}
    text = tables(measured)
    notes = ("[]: 95% interval, of one run Wilson's, of seeds and of differences by bootstrap; ±: "
             "standard deviation of the seeds, of the KL the standard error of one of them")
    print(f"\n{text}\n\n{notes}")
    runs.write_json(args.out, "compare.json", measured)
    runs.write_text(args.out, "compare.md", f"{text}\n\n{notes}\n")
    groups = by_seed(folders)
    if any(runs.is_run(folder) for folder in folders):
        figures.draw_curves([(name, group) for name, group in groups if runs.is_run(group[0])],
                            Path(args.out) / "curves.png")
    if args.samples:
        figures.draw_samples([(name, [measured[folder] for folder in group])
                              for name, group in groups], Path(args.out) / "samples.png")
    print(f"saved in {args.out}")


def rescore(args):
    """Score saved generations again, and say what changed."""
    file = args.rescore
    try:
        with open(file, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        again = [grade(row) for row in rows]
        saved = [row["score"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        runs.stop(f"--rescore {file}: not generations that eval.py saved ({error!r}); name a file "
                  "in the folder `generations` of a comparison")
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        picked = [i for i, row in enumerate(rows) if row["decoding"] == decoding]
        print(f"{decoding}: {len(picked):,} responses, accuracy "
              f"{sum(saved[i] == 1 for i in picked) / len(picked):.1%} as saved, "
              f"{sum(again[i]['score'] == 1 for i in picked) / len(picked):.1%} as scored now")
    changed = [i for i, row in enumerate(again) if row["score"] != saved[i]]
    print(f"{len(changed)} of {len(rows):,} scores changed")
    for i in changed[:5]:
        print(f"line {i + 1}: {saved[i]} -> {again[i]['score']}, right answer {rows[i]['answer']}, "
              f"read as {again[i]['extracted']}, from ...{rows[i]['response'][-60:]!r}")


# --- The frontier: reward against KL, as in figure 2 of the DPO paper ---

FRONTIER = [  # name, script, minutes a run, the flag that is varied, its values, other flags
    ("reft", "reft_ppo.py", 2.1, "kl_coef", [0.0, 0.02, 0.05, 0.2, 0.5], {"eval_every": 10}),
    ("dpo", "dpo.py", 0.8, "beta", [0.1, 0.3, 1.0, 3.0], {}),
]


def frontier(args):
    """Make the runs of FRONTIER that are not there yet, each in a folder of its own, and draw them
    all. Reward and KL are measured on dev at each of a run's evaluations. Other seeds go into other
    folders, and into the same figure."""
    shared = runs.shared_defaults()
    given = {name: x for name, x in vars(args).items() if name in shared and x is not None}
    jobs = []
    for name, script, minutes, flag, values, more in FRONTIER:
        for value in values:
            folder = Path(args.out) / str(args.seed) / f"{name}-{value:g}"
            flags = shared | given | more | {flag: value, "eval_samples": 4}
            jobs.append((folder, script, flags, minutes))
    todo = [(folder, script, flags, minutes) for folder, script, flags, minutes in jobs
            if not runs.settings(flags).items() <= flags_of(folder).items()]
    print(f"frontier: {len(jobs)} runs in {args.out}, {len(todo)} of them still to make: about "
          f"{sum(job[-1] for job in todo):.0f} minutes on two CPU cores. Interrupt it at will: the "
          "same command goes on from the last finished run.", flush=True)
    for i, (folder, script, flags, _) in enumerate(todo, 1):
        argv = runs.as_argv(flags)
        print(f"\nrun {i} of {len(todo)}: python {script} {' '.join(argv)}", flush=True)
        try:
            subprocess.run([sys.executable, runs.HOME / script, *argv, f"--out={folder}",
                            *["--resume"] * runs.is_begun(folder)], check=True)
        except subprocess.CalledProcessError as error:
            runs.stop(f"{script} ended with code {error.returncode}; its own words stand above")
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here")
            raise SystemExit(130)
    series = {}  # of every seed that was run with these flags
    for folder, _, flags, _ in jobs:
        name, price = folder.name.split("-", 1)
        for other in sorted(Path(args.out).glob(f"*/{folder.name}")):
            if (runs.settings(flags) | {"seed": 0}).items() <= (
                    flags_of(other) | {"seed": 0}).items():
                series.setdefault(name, {}).setdefault(float(price), []).extend(
                    m for m in runs.read_metrics(other) if "dev_kl" in m)
    figures.draw_frontier(series, Path(args.out) / "frontier.png")
    print(f"saved: {args.out}/frontier.png")


def main(argv=None):
    parser = runs.make_parser(__doc__, out="out/compare", trains=False)
    parser.add_argument("runs", nargs="*", help="folders of finished runs, or models")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--samples", type=runs.number(int, 0), default=32,
                        help="responses to each problem at T = 1 (0: none, greedy accuracy only)")
    parser.add_argument("--rescore", metavar="FILE", help="score saved generations again")
    parser.add_argument("--frontier", action="store_true",
                        help="train ReFT and DPO at several prices of KL and draw reward against "
                        "KL; interrupted, it goes on where it was")
    # A run is measured on the task it was trained on, unless the flags say otherwise.
    parser.set_defaults(model=None, task=None, cot=None, max_new_tokens=None, dtype=None, out=None)
    args = parser.parse_args(argv)
    args.out = args.out or ("out/frontier" if args.frontier else "out/compare")
    if (Path(args.out) / "config.json").exists():
        runs.stop(f"--out {args.out} holds a run; choose another folder for what is measured")
    runs.guarded(rescore if args.rescore else frontier if args.frontier else compare, args)


if __name__ == "__main__":
    main()
