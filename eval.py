"""Load a model, generate, measure; compare finished runs in a table and a figure.

    python eval.py out/warmup out/sft out/reft        # a table, and curves.png, in out/compare
    python eval.py data/base_model --task word_problems --split dev

Accuracy is that of the greedy response to each problem. Runs that differ in their seed alone are
averaged. Longer responses than those a run was trained on are not waited for.
"""

import math
import statistics
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import runs
from verifier import (careful_share, choices_of, extract_answer, format_prompt, load_problems,
                      same_answer)

transformers.utils.logging.disable_progress_bar()  # saving 1 MB needs no bar of its own


def load_model(path, device=None, dtype=None):
    """A causal LM in eval mode and its tokenizer.

    Args:
        path: a run's folder, a Hugging Face folder or a hub name.
        dtype: "float32" (the default), "bfloat16" or a torch.dtype.
    Raises: SystemExit (code 2) where there is no such model, or one without an EOS token.
    """
    path = str(path)
    if (Path(path) / "model").is_dir():
        path = str(Path(path) / "model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or "float32", use_safetensors=True)
    except Exception as error:  # each part of the loader raises its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        runs.stop(f"{path}: no model could be loaded ({reason}); give a run's folder, a hub name, "
                  "or a folder with config.json, model.safetensors and a tokenizer")
    if tokenizer.eos_token_id is None:
        runs.stop(f"{path}: its tokenizer has no EOS token, so no response could end")
    return model.to(runs.pick_device(device or "auto")).eval(), tokenizer


@torch.no_grad()
def generate_ids(model, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None):
    """Sample one response per prompt with a key-value cache; finished rows leave the batch.

    Args:
        prompts: list of lists of token ids. Padded on the left; the padding is never attended to.
        temperature: 0 is greedy; otherwise no top-k and no top-p: samples follow the model exactly.
        generator: a torch.Generator on the model's device.
    Returns: a list of lists of token ids. A response that ended holds its EOS, one cut off none.
    """
    device, longest = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses = torch.full((len(prompts), max_new_tokens), eos_id, device=device)
    rows = torch.arange(len(prompts), device=device)  # the responses still being written
    alive = torch.ones_like(rows, dtype=torch.bool)
    cache = None
    for t in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logits = out.logits[:, -1].float()  # (rows, vocab)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            p = (logits / temperature).softmax(-1)
            token = torch.multinomial(p, 1, generator=generator)[:, 0]
        responses[rows[alive], t] = token[alive]
        alive &= token != eos_id
        if not alive.any():
            break
        if alive.float().mean() < 0.8:  # dropping rows copies the cache, so not for each one
            rows, token, mask, positions = rows[alive], token[alive], mask[alive], positions[alive]
            cache.batch_select_indices(alive.nonzero()[:, 0])
            alive = alive[alive]
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return [row[:row.index(eos_id) + 1] if eos_id in row else row for row in responses.tolist()]


def generate_rows(model, tokenizer, prompts, max_new_tokens, temperature=0.0, seed=None,
                  batch_size=256):
    """`generate_ids` of texts, batched by length. Returns a list of ids, in the prompts' order."""
    generator = None
    if temperature > 0:
        generator = torch.Generator(model.device)
        generator.manual_seed(seed) if seed is not None else generator.seed()
    encoded = tokenizer(list(prompts))["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    responses = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        ids = generate_ids(model, [encoded[i] for i in batch], tokenizer.eos_token_id,
                           max_new_tokens, temperature, generator)
        for i, row in zip(batch, ids):
            responses[i] = row
    return responses


def generate(model, tokenizer, prompts, max_new_tokens, temperature=0.0, n=1, seed=None,
             batch_size=256):
    """n responses to each prompt, as text without special tokens: list[list[str]]."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    rows = generate_rows(model, tokenizer, repeated, max_new_tokens, temperature, seed, batch_size)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [texts[i * n:(i + 1) * n] for i in range(len(prompts))]


def evaluate(model, tokenizer, problems, cot="nl", max_new_tokens=100, batch_size=256):
    """Greedy responses to `problems`, measured.

    Returns a dict: accuracy, eos_rate, answered and careful as fractions in [0, 1]; mean_tokens per
    response, EOS included. (`careful` is the embedded task's style, of no meaning elsewhere.)
    """
    choices, training = choices_of(problems), model.training
    model.eval()
    rows = generate_rows(model, tokenizer, [format_prompt(q, cot) for q in problems["question"]],
                         max_new_tokens, batch_size=batch_size)
    model.train(training)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    extracted = [extract_answer(text, cot, choices) for text in texts]
    correct = [same_answer(x, a, choices) for x, a in zip(extracted, problems["answer"])]
    count = len(texts)
    return {
        "accuracy": sum(correct) / count,
        "mean_tokens": sum(map(len, rows)) / count,
        "eos_rate": sum(tokenizer.eos_token_id in row for row in rows) / count,
        "answered": sum(x is not None for x in extracted) / count,
        "careful": careful_share(texts, cot)}


def percent(fraction, count):
    """A fraction of `count` with its 95% interval (normal approximation): "49.6% ± 4.4"."""
    return f"{fraction:.1%} ± {196 * math.sqrt(fraction * (1 - fraction) / count):.1f}"


def is_run(folder):
    return (Path(folder) / "result.json").exists()


def by_seed(folders):
    """[(name, folders)]: together where the name is the same and all flags but the seed's are."""
    groups = {}
    for folder in folders:
        flags = runs.read_json(folder, "config.json")["flags"] if is_run(folder) else {"": folder}
        rest = {name: x for name, x in flags.items() if name not in ("seed", "out", "warmup")}
        groups.setdefault((Path(folder).name, str(rest)), []).append(folder)
    return [(name, group) for (name, _), group in groups.items()]


def draw_curves(folders, path):
    """Accuracy, response length and share of careful solutions, saved as a picture at `path`.

    Runs with a `reward` in their metrics (ReFT) are drawn over their steps: thin, the samples they
    train on; with dots, greedy on dev. Others are levels: their accuracy on dev, and the length and
    style of their greedy responses on test.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    groups = by_seed(folders)
    dashes = iter(["--", ":", "-."] * len(groups))
    for n, (name, group) in enumerate(groups):
        histories = [runs.read_metrics(folder) for folder in group]
        if "reward" not in histories[0][-1]:
            results = [runs.read_json(folder, "result.json") for folder in group]
            dash = next(dashes)
            for ax, key in zip(axes, ["dev_accuracy", "mean_tokens", "careful"]):
                level = statistics.mean(result[key] for result in results)
                ax.axhline(level, color="0.3", ls=dash, lw=1.2, label=f"{name}, on dev")
            continue
        for i, metrics in enumerate(histories):
            for ax, key in zip(axes, ["accuracy", "response_tokens", "careful"]):
                points = [(m["step"], m[key]) for m in metrics if key in m]
                if points:
                    ax.plot(*zip(*points), color=f"C{n}", alpha=0.5, lw=1)
            dev = [(m["step"], m["dev_accuracy"]) for m in metrics if "dev_accuracy" in m]
            axes[0].plot(*zip(*dev), f"C{n}o-", ms=3, label=None if i else f"{name}, on dev")
    for ax, title in zip(axes, ["accuracy", "tokens in a response",
                                "share of careful solutions"]):
        ax.set(title=title, xlabel="PPO step")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv=None):
    parser = runs.make_parser(__doc__, out="out/compare")
    parser.add_argument("runs", nargs="*", help="folders of finished runs, or models")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--max-new-tokens", type=runs.number(int, 1), help="the longest response")
    # A run is measured on the task it was trained on, unless the flags say otherwise.
    parser.set_defaults(model=None, task=None, cot=None, max_new_tokens=None)
    args = parser.parse_args(argv)
    folders = args.runs + [args.model] * bool(args.model)
    if not folders:
        runs.stop("nothing to evaluate; name runs or models: python eval.py out/warmup out/reft")
    measured = {}
    for folder in tqdm(folders, desc="evaluate", unit="run"):
        flags = runs.read_json(folder, "config.json")["flags"] if is_run(folder) else {}
        task, cot, limit, max_new_tokens = (
            getattr(args, name) or flags.get(name, usual) for name, usual in [
                ("task", "word_problems"), ("cot", "nl"), ("limit", None), ("max_new_tokens", 100)])
        model, tokenizer = load_model(folder, args.device)
        problems = load_problems(task, args.split, limit)
        runs.make_folder(args.out)  # before the work, not after it
        result = runs.read_json(folder, "result.json") if is_run(folder) else {}
        measured[folder] = {
            "task": task, "cot": cot, "split": args.split, "problems": len(problems),
            **{name: result[name] for name in ["seconds", "peak_memory_mb"] if name in result},
            **evaluate(model, tokenizer, problems, cot, max_new_tokens)}

    def cells(name, group, accuracy):
        def mean(key, form):
            found = [m[key] for m in group if key in m]
            return form.format(statistics.mean(found)) if found else ""
        return [name, accuracy, mean("mean_tokens", "{:.1f}"), mean("eos_rate", "{:.1%}"),
                mean("answered", "{:.1%}"),
                mean("careful", "{:.1%}") if group[0]["task"] == "word_problems" else "",
                mean("seconds", "{:.0f}"), mean("peak_memory_mb", "{:,.0f}")]

    rows = [cells(folder, [m], percent(m["accuracy"], m["problems"]))
            for folder, m in measured.items()]
    for name, group in by_seed(measured):
        if len(group) > 1:
            accuracies = [measured[folder]["accuracy"] for folder in group]
            rows.append(cells(
                f"{name}, mean of {len(group)}", [measured[folder] for folder in group],
                f"{statistics.mean(accuracies):.1%} ± {100 * statistics.stdev(accuracies):.1f}"))
    text = runs.table(["run", f"{args.split} accuracy", "tokens", "ended", "answered", "careful",
                       "seconds", "MB"], rows)
    print(f"{text}\n\n±: of one run, the 95% interval; of a mean, the runs' standard deviation")
    runs.write_json(args.out, "compare.json", measured)
    (Path(args.out) / "compare.md").write_text(text + "\n")
    finished = [folder for folder in folders if is_run(folder)]
    if any("reward" in runs.read_metrics(folder)[-1] for folder in finished):
        draw_curves(finished, Path(args.out) / "curves.png")
    print(f"saved in {args.out}")


if __name__ == "__main__":
    main()
