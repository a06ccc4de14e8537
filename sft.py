"""Supervised fine-tuning: ReFT's warm-up when stopped early, the baseline when trained to the end.

    python sft.py                       # the baseline: 40 epochs, the best by dev accuracy is kept
    python sft.py --epochs 5 --out out/warmup

Paper: ReFT (arXiv 2401.08967v3), section 3.1: the cross-entropy of a solution, given the question.
Differs from the paper:
- the best epoch is chosen on dev, never on test
- the tiny embedded model takes a larger learning rate and more epochs than a 7B model
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import runs
from eval import evaluate, evaluation_flags, percent
from generate import check_room, encode_prompts, load_to_train, pad
from packing import predict
from resume import Run
from verifier import format_prompt, load_splits


def encode(tokenizer, problems, cot):
    """[(prompt ids, response ids)]: tokenized apart, to meet at the same seam as in sampling.

    The response ends in EOS: a model that is never shown where to stop will not.
    """
    column = {"nl": "cot", "program": "program"}[cot]
    solutions = list(problems[column])
    if "" in solutions:
        runs.stop(f"--cot {cot}: row {solutions.index('') + 1} has no `{column}` to imitate; "
                  "choose the other --cot or another --task")
    prompts = encode_prompts(tokenizer, [format_prompt(q, cot) for q in problems["question"]])
    responses = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    return [(p, r + [tokenizer.eos_token_id]) for p, r in zip(prompts, responses)]


def sft_loss(model, ids, attention_mask, mask):
    """Mean negative log-likelihood over the batch's response tokens, in nats."""
    logits, _ = predict(model, ids, attention_mask, mask)  # (response tokens, vocab)
    return F.cross_entropy(logits, ids[:, 1:][mask])


@torch.no_grad()
def row_losses(model, examples):
    """sft_loss of each example alone, (batch,)."""
    return torch.stack([sft_loss(model, *pad([example], model.device)) for example in examples])


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
    return parser.parse_args(argv)


def train(args):
    start = time.time()
    runs.claim(vars(args))
    runs.set_seed(args.seed)
    problems, dev, test = load_splits(args.task, args.limit)
    model, tokenizer = load_to_train(args.model, args)
    examples = encode(tokenizer, problems, args.cot)
    check_room(model, tokenizer, {"train": problems, "dev": dev, "test": test},
               args.cot, args.max_new_tokens, examples)

    def measure(problems):
        return evaluate(model, tokenizer, problems, **evaluation_flags(args))

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    per_epoch = -(-len(examples) // args.batch_size)
    steps = args.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, round(args.warmup_ratio * steps)))
    run = Run(args, start, [model, optimizer, schedule], effective_batch=args.batch_size,
              order=list(range(len(examples))), best=-1.0, best_epoch=0, best_weights=None)

    model.train()
    bar = tqdm(run.steps(steps), f"SFT {args.out}", steps, initial=run.step, unit="step")
    for step in bar:
        began = time.time()
        epoch, rows = run.batch(step, args.batch_size)
        batch, loss = [examples[i] for i in rows], 0.0
        for at in range(0, len(batch), args.micro_batch_size):
            part = batch[at:at + args.micro_batch_size]
            # Of the batch's response tokens, those of this part: all weigh the same
            share = sum(len(r) for _, r in part) / sum(len(r) for _, r in batch)
            part_loss = sft_loss(model, *pad(part, model.device)) * share
            part_loss.backward()
            loss += part_loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        if not math.isfinite(loss):
            run.stop_unless_finite("the loss", row_losses(model, batch), rows)
        run.stop_unless_finite("the gradient's norm", grad_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        metrics = {"step": step, "epoch": epoch, "questions": len(batch),
                   "tokens": sum(len(p) + len(r) for p, r in batch),
                   "loss": loss, "lr": lr, "grad_norm": grad_norm.item(),
                   "seconds": time.time() - began}
        if step % per_epoch == 0:
            metrics["dev_accuracy"] = measure(dev)["accuracy"]
            if metrics["dev_accuracy"] > run.best:
                run.best, run.best_epoch = metrics["dev_accuracy"], epoch
                run.best_weights = runs.weights_of(model)
            bar.set_postfix(epoch=epoch, loss=f"{loss:.3f}", dev=f"{run.best:.1%}")
        run.log(metrics)

    model.load_state_dict(run.best_weights)
    runs.save_model(args.out, model, tokenizer)
    measured = measure(test)
    result = {"test_accuracy": measured.pop("accuracy"), "dev_accuracy": run.best,
              "best_epoch": run.best_epoch, "seed": args.seed, "steps": steps,
              "seconds": run.seconds(),
              "peak_memory_mb": runs.peak_memory_mb(model.device.type), **measured}
    runs.write_json(args.out, "result.json", result)
    print(f"SFT: epoch {run.best_epoch} of {args.epochs} is the best on dev ({run.best:.1%}); on "
          f"test it has {percent(result['test_accuracy'], len(test))}. Saved in {args.out}/model.")


def main(argv=None):
    runs.guarded(train, parse_args(argv))


# --- The warm-up of reft_ppo.py and dpo.py ---


def add_warmup_flags(parser):
    flags = parser.add_argument_group("warm-up")
    flags.add_argument("--warmup", type=runs.text, default=None,
                       help="a model to start from; without it, sft.py makes one in the folder "
                       "`warmup` beside --out, or it is reused if made with the same settings")
    flags.add_argument("--warmup-epochs", type=runs.number(int, 1), default=5,
                       help="[2; 10 for a 125M model]")
    flags.add_argument("--warmup-lr", type=runs.number(float, above=0), default=2e-3,
                       help="peak learning rate of the warm-up [1e-5]")


def warmup_folder(args) -> str:
    """Where the model lies, or will lie, that a run of these flags starts from."""
    return args.warmup or str(Path(args.out).parent / "warmup")


def claim(args):
    """runs.claim, for a run that has a warm-up: until that is done, it is what --resume resumes."""
    folder = warmup_folder(args)
    if args.warmup is None and Path(args.out) == Path(folder):
        runs.stop(f"--out {args.out}: the warm-up goes there; choose another folder")
    in_warmup = args.warmup is None and runs.is_begun(folder) and not runs.is_begun(args.out)
    runs.claim(vars(args) | {"warmup": folder, "resume": args.resume and not in_warmup})


def warm_up(args) -> str:
    """The model that a run of these flags starts from: --warmup, or else a run of sft.py in the
    folder `warmup` beside --out, trained now unless it is there already."""
    folder = warmup_folder(args)
    if args.warmup is not None:
        return folder
    argv = [*runs.shared_flags(args), f"--epochs={args.warmup_epochs}", f"--lr={args.warmup_lr}",
            f"--out={folder}"]
    flags = vars(parse_args(argv))
    if runs.finished_with(folder, flags):
        print(f"warm-up: reusing {folder}, made with the same settings")
    else:
        if not args.overwrite and runs.is_run(folder):
            other = ", ".join(runs.differences(folder, flags)[:3])
            runs.stop(f"the warm-up beside --out, {folder}, has other settings: {other}. Choose an "
                      "--out in another folder, or add --overwrite, which replaces the warm-up of "
                      "all runs there")
        print(f"warm-up: SFT for {args.warmup_epochs} epochs, in {folder}")
        main(argv + ["--overwrite"] * args.overwrite
             + ["--resume"] * (args.resume and runs.is_begun(folder)))
    return folder


if __name__ == "__main__":
    main()
