"""Supervised fine-tuning: ReFT's warm-up when stopped early, the baseline when trained to the end.

    python sft.py                       # the baseline: 40 epochs, the best by dev accuracy is kept
    python sft.py --epochs 5 --out out/warmup

Paper: ReFT (arXiv 2401.08967v3), section 3.1: the cross-entropy of a solution, given the question.
Differs from the paper:
- the best epoch is chosen on dev, never on test
- the tiny embedded model takes a larger learning rate and more epochs than a 7B model
"""

import random
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

import runs
from eval import evaluate, load_model, percent
from verifier import format_prompt, load_problems


def encode(tokenizer, problems, cot):
    """[(prompt ids, response ids)]: tokenized apart, to meet at the same seam as in sampling.

    The response ends in EOS: a model that is never shown where to stop will not.
    """
    column = {"nl": "cot", "program": "program"}[cot]
    solutions = list(problems[column])
    if "" in solutions:
        runs.stop(f"--cot {cot}: problem {solutions.index('')} has no `{column}` to imitate; "
                  "choose the other --cot or another --task")
    prompts = tokenizer([format_prompt(q, cot) for q in problems["question"]])["input_ids"]
    responses = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    return [(p, r + [tokenizer.eos_token_id]) for p, r in zip(prompts, responses)]


def pad(examples, device):
    """Prompts padded on the left, responses on the right.

    Args:
        examples: a list of (prompt ids, response ids).
    Returns: ids and attention_mask (batch, seq), the mask over tokens and not over the padding;
        response mask (batch, seq-1), bool: column t is True where token t+1 is of the response;
        n_response, the columns that the longest response takes.
    """
    n_prompt = max(len(p) for p, _ in examples)
    n_response = max(len(r) for _, r in examples)
    ids = torch.zeros(len(examples), n_prompt + n_response, dtype=torch.long)
    attention_mask, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (p, r) in enumerate(examples):
        ids[row, n_prompt - len(p):n_prompt + len(r)] = torch.tensor(p + r)
        attention_mask[row, n_prompt - len(p):n_prompt + len(r)] = 1
        mask[row, n_prompt:n_prompt + len(r)] = True
    return ids.to(device), attention_mask.to(device), mask[:, 1:].to(device), n_response


def sft_loss(model, ids, attention_mask, mask, n_response):
    """Mean negative log-likelihood over the batch's response tokens, in nats."""
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
                   use_cache=False, logits_to_keep=n_response + 1).logits
    logits = logits[:, :-1].flatten(0, 1).float()  # (batch * n_response, vocab)
    targets = ids.masked_fill(~F.pad(mask, (1, 0)), -100)[:, -n_response:]
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100)


def lr_factor(step, steps, warmup):
    """Linear warm-up over `warmup` steps, then linear decay to 0 at `steps`; step counts from 0."""
    return min((step + 1) / max(warmup, 1), (steps - step) / max(steps - warmup, 1))


def parse_args(argv=None):
    parser = runs.make_parser(__doc__, out="out/sft")
    flags = parser.add_argument_group("training (the paper's values for 7B models in brackets)")
    flags.add_argument("--epochs", type=runs.number(int, 1), default=40,
                       help="passes over the training questions [warm-up 2, baseline 40]")
    flags.add_argument("--batch-size", type=runs.number(int, 1), default=32, help="[48]")
    flags.add_argument("--lr", type=runs.number(float, above=0), default=2e-3, help="peak [1e-5]")
    flags.add_argument("--warmup-ratio", type=runs.number(float, 0, 1), default=0.1,
                       help="the share of steps over which the learning rate rises [0.1]")
    flags.add_argument("--weight-decay", type=runs.number(float, 0), default=0.0, help="of AdamW")
    flags.add_argument("--max-grad-norm", type=runs.number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--max-new-tokens", type=runs.number(int, 1), default=100,
                       help="the longest response in evaluations")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    start = time.time()
    runs.set_seed(args.seed)
    train, dev, test = (load_problems(args.task, s, args.limit) for s in ["train", "dev", "test"])
    model, tokenizer = load_model(args.model, args.device)
    examples = encode(tokenizer, train, args.cot)
    runs.open_run(args.out, vars(args), effective_batch=args.batch_size)

    def measure(problems):
        return evaluate(model, tokenizer, problems, args.cot, args.max_new_tokens)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    per_epoch = -(-len(examples) // args.batch_size)
    steps = args.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, round(args.warmup_ratio * steps)))

    best, best_weights, step = -1.0, None, 0
    bar = tqdm(total=steps, desc=f"SFT {args.out}", unit="step")
    for epoch in range(1, args.epochs + 1):
        random.shuffle(examples)
        model.train()
        for first in range(0, len(examples), args.batch_size):
            began = time.time()
            batch = pad(examples[first:first + args.batch_size], model.device)
            loss = sft_loss(model, *batch)
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            lr = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            metrics = {"step": step, "epoch": epoch, "tokens": int(batch[1].sum()),
                       "loss": loss.item(), "lr": lr, "grad_norm": grad_norm.item(),
                       "seconds": time.time() - began}
            if step % per_epoch == 0:
                metrics["dev_accuracy"] = measure(dev)["accuracy"]
                if metrics["dev_accuracy"] > best:
                    best, best_epoch = metrics["dev_accuracy"], epoch
                    best_weights = runs.weights_of(model)
                bar.set_postfix(epoch=epoch, loss=f"{loss.item():.3f}", dev=f"{best:.1%}")
            runs.log_step(args.out, metrics)
            bar.update()
    bar.close()

    model.load_state_dict(best_weights)
    runs.save_model(args.out, model, tokenizer)
    measured = measure(test)
    result = {"test_accuracy": measured.pop("accuracy"), "dev_accuracy": best,
              "best_epoch": best_epoch, "seed": args.seed, "steps": steps,
              "seconds": time.time() - start,
              "peak_memory_mb": runs.peak_memory_mb(model.device.type), **measured}
    runs.write_json(args.out, "result.json", result)
    print(f"SFT: epoch {best_epoch} of {args.epochs} is the best on dev ({best:.1%}); on test it "
          f"has {percent(result['test_accuracy'], len(test))}. Saved in {args.out}/model.")


def warm_up(argv) -> str:
    """The folder of the run `python sft.py argv`, trained now unless it is there already."""
    args = parse_args(argv)
    if runs.finished_with(args.out, vars(args)):
        print(f"warm-up: reusing {args.out}, made with the same settings")
    else:
        print(f"warm-up: SFT for {args.epochs} epochs, in {args.out}")
        main(argv)
    return args.out


if __name__ == "__main__":
    main()
