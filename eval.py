"""Load a model, generate, measure; compare finished runs in a table and a figure.

    python eval.py out/warmup out/sft out/reft        # table on the terminal, out/compare.png
    python eval.py data/base_model --task gsm8k       # any model on any task

Departs from the papers: nothing is sampled here, accuracy is that of the greedy response.
"""

import json
import math
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import runs
from verifier import careful_share, choices_of, extract_answer, format_prompt, is_correct, load_problems

transformers.utils.logging.disable_progress_bar()  # saving 1 MB needs no bar of its own


def load_model(path, device=None, dtype=None):
    """A causal LM in eval mode and its tokenizer, from a run's folder, a Hugging Face folder or a hub name.

    Args:
        dtype: "float32" (the default), "bfloat16", ...
    Raises: SystemExit (code 2) where there is no such model, or one without an EOS token.
    """
    path = str(path)
    if (Path(path) / "model").is_dir():
        path = str(Path(path) / "model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype or "float32"), use_safetensors=True)
    except (OSError, ValueError) as error:
        runs.stop(f"--model {path}: no model could be loaded ({str(error).splitlines()[0]}); "
                  "give a folder with config.json, model.safetensors and tokenizer, or a hub name")
    if tokenizer.eos_token_id is None:
        runs.stop(f"--model {path}: its tokenizer has no EOS token, so no response could end")
    return model.to(runs.pick_device(device or "auto")).eval(), tokenizer


@torch.no_grad()
def generate_ids(model, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None):
    """Sample one response per prompt with a key-value cache; finished rows leave the batch.

    Args:
        prompts: list of lists of token ids. Padded on the left; the padding is never attended to.
        temperature: 0 is greedy; otherwise no top-k and no top-p, so samples follow the model exactly.
        generator: a torch.Generator on the model's device.
    Returns: a list of lists of token ids. A response that ended holds its EOS, one cut off holds none.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses = torch.full((len(prompts), max_new_tokens), eos_id, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)  # the responses still being written
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
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
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


def generate_rows(model, tokenizer, prompts, max_new_tokens, temperature=0.0, seed=None, batch_size=256):
    """`generate_ids` for texts, in batches of prompts of similar length. Returns ids, in the prompts' order."""
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


def generate(model, tokenizer, prompts, max_new_tokens, temperature=0.0, n=1, seed=None, batch_size=256):
    """n responses to each prompt, as text without special tokens: list[list[str]]."""
    rows = generate_rows(model, tokenizer, [p for p in prompts for _ in range(n)], max_new_tokens,
                         temperature, seed, batch_size)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [texts[i * n:(i + 1) * n] for i in range(len(prompts))]


def evaluate(model, tokenizer, problems, cot="nl", choices=None, max_new_tokens=100, batch_size=256):
    """Greedy responses to `problems`, measured.

    Returns a dict: accuracy, eos_rate, answered and careful as fractions in [0, 1]; mean_tokens per
    response, EOS included. (`careful` is the embedded task's style, of no meaning elsewhere.)
    """
    training = model.training
    model.eval()
    rows = generate_rows(model, tokenizer, [format_prompt(q, cot) for q in problems["question"]],
                         max_new_tokens, batch_size=batch_size)
    model.train(training)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    count = len(texts)
    return {
        "accuracy": sum(is_correct(t, a, cot, choices) for t, a in zip(texts, problems["answer"])) / count,
        "mean_tokens": sum(map(len, rows)) / count,
        "eos_rate": sum(tokenizer.eos_token_id in row for row in rows) / count,
        "answered": sum(extract_answer(t, cot, choices) is not None for t in texts) / count,
        "careful": careful_share(texts, cot)}


def interval(accuracy: float, count: int) -> float:
    """Half the width of the 95% interval of a fraction (normal approximation)."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / count)


def draw_curves(folders, path):
    """Accuracy, response length and share of careful solutions over steps; other runs as level lines.

    The runs with a `reward` in their metrics (ReFT) are drawn step by step, each in a colour of its own.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    curves, levels = [], []
    for folder in folders:
        metrics = runs.read_metrics(folder)
        (curves if "reward" in metrics[-1] else levels).append((Path(folder), metrics))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for n, (folder, metrics) in enumerate(curves):
        steps = [m["step"] for m in metrics]
        dev = [(m["step"], m["dev_accuracy"]) for m in metrics if "dev_accuracy" in m]
        axes[0].plot(steps, [m["accuracy"] for m in metrics], color=f"C{n}", alpha=0.35, lw=1)
        axes[0].plot(*zip(*dev), color=f"C{n}", marker="o", ms=3, label=f"{folder.name} (dev)")
        axes[1].plot(steps, [m["response_tokens"] for m in metrics], color=f"C{n}")
        if "careful" in metrics[-1]:
            axes[2].plot(steps, [m["careful"] for m in metrics], color=f"C{n}")
    for n, (folder, metrics) in enumerate(levels):
        result = json.loads((folder / "result.json").read_text())
        style = {"color": "0.3", "ls": ["--", ":", "-."][n % 3], "lw": 1}
        axes[0].axhline(result["dev_accuracy"], label=f"{folder.name} (dev)", **style)
        axes[1].axhline(result["mean_tokens"], **style)
        axes[2].axhline(result["careful"], **style)
    for ax, title in zip(axes, ["accuracy", "tokens in a response", "share of careful solutions"]):
        ax.set(title=title, xlabel="PPO step")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv=None):
    parser = runs.make_parser(__doc__, out="out")
    parser.add_argument("runs", nargs="+", help="folders of finished runs, or models")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--max-new-tokens", type=runs.number(int, 1), default=100)
    parser.add_argument("--batch-size", type=runs.number(int, 1), default=256)
    args = parser.parse_args(argv)
