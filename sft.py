"""Supervised fine-tuning: ReFT's warm-up when stopped early, the baseline when trained to the end.

    python sft.py                       # the baseline: 40 epochs, the best by dev accuracy is kept
    python sft.py --epochs 5 --out out/warmup

Paper: ReFT (arXiv 2401.08967v3), section 3.1: the cross-entropy of a solution, given the question.
Differs from the paper:
- the best epoch is chosen on dev, never on test
- the tiny embedded model takes a larger learning rate and more epochs than a 7B model
"""

import plumbing.threads  # noqa: F401 (before torch)

import gc

import torch
import torch.nn.functional as F

from eval import dev_metrics, eval_kwargs, evaluate
from graders import load_task
from plumbing import files
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import is_reward_model, make_parser, number, shared_flags, stop, text
from plumbing.models import load_to_train, place_of
from plumbing.packing import pad, predict
from plumbing.run import Run
from plumbing.sampling import check_room, encode_prompts
from plumbing.schedule import adamw, rise_and_fall


def encode(tokenizer, problems, task):
    """[(prompt ids, response ids)]: tokenized apart, to meet at the same seam as in sampling.

    The response ends in EOS: a model that is never shown where to stop will not.
    """
    solutions = list(problems[task.column])
    if "" in solutions:
        stop(f"--cot {task.cot}: row {solutions.index('') + 1} has no `{task.column}` to imitate; "
             "choose the other --cot or another --task")
    prompts = encode_prompts(tokenizer, task.prompts(problems))
    responses = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    return [(p, r + [tokenizer.eos_token_id]) for p, r in zip(prompts, responses)]


def sft_loss(model, ids, attention_mask, mask):
    """Mean negative log-likelihood over the batch's response tokens, in nats."""
    logits, _ = predict(model, ids, attention_mask, mask)  # (response tokens, vocab)
    return F.cross_entropy(logits, ids[:, 1:][mask])


def micro_batches(batch, size):
    """(part, share): at most `size` examples at once, and the share of the batch's response tokens
    that is theirs, so that all tokens weigh the same."""
    total = sum(len(response) for _, response in batch)
    for start in range(0, len(batch), size):
        part = batch[start:start + size]
        yield part, sum(len(response) for _, response in part) / total


# --- The algorithm ---


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/sft")
    flags = parser.add_argument_group("training (the paper's values for 7B models in brackets)")
    flags.add_argument("--epochs", type=number(int, 1), default=40,
                       help="passes over the training questions [warm-up 2, baseline 40]")
    flags.add_argument("--batch-size", type=number(int, 1), default=32, help="[48]")
    flags.add_argument("--lr", type=number(float, above=0), default=2e-3, help="peak [1e-5]")
    flags.add_argument("--lr-warmup-ratio", type=number(float, 0, 1), default=0.1,
                       help="the share of steps over which the learning rate rises [0.1]")
    flags.add_argument("--weight-decay", type=number(float, 0), default=0.0, help="of AdamW")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--eval-train", type=number(int, 1), default=None,
                       help="measure on the first so many training questions, too: how many of "
                       "them are known by heart")
    return parser.parse_args(argv)


def train(args):
    run = Run(args, "SFT")
    set_seed(args.seed)
    task = load_task(args)
    model, tokenizer = load_to_train(args.model, args)
    examples = encode(tokenizer, task.train, task)
    check_room(model, tokenizer, task.all_prompts(), args.max_new_tokens, examples)
    optimizer = adamw(model, args.lr, args.weight_decay)
    per_epoch = -(-len(examples) // args.batch_size)
    steps = args.epochs * per_epoch
    rise = round(args.lr_warmup_ratio * steps)
    schedule = rise_and_fall(optimizer, steps, rise, fall_from=rise)
    run.begin(model, tokenizer, [model, optimizer, schedule], steps, args.batch_size,
              eval_every=per_epoch, measure=lambda: dev_metrics(
                  model, tokenizer, task, args) | known_by_heart(model, tokenizer, task, args),
              order=range(len(examples)), shows=["epoch", "loss"], criterion=task.criterion)

    model.train()
    for step in run.steps():
        # 1. A batch of questions and their annotated solutions
        epoch, rows = run.batch(args.batch_size)
        batch, loss = [examples[i] for i in rows], 0.0

        # 2. The cross-entropy of the solutions' tokens, and a step
        for part, share in micro_batches(batch, args.micro_batch_size):
            part_loss = sft_loss(model, *pad(part, model.device)) * share
            part_loss.backward()
            loss += part_loss.item()
        lr = schedule.get_last_lr()[0]
        grad_norm = run.update(model, optimizer, lambda: not_finite(model, batch, rows))
        schedule.step()
        run.log({"epoch": epoch, "questions": len(batch),
                 "tokens": sum(len(p) + len(r) for p, r in batch),
                 "loss": loss, "lr": lr, "grad_norm": grad_norm.item()})

    # 3. The best epoch on dev is the model
    run.finish(lambda model: evaluate(model, tokenizer, task.test, task=task,
                                      **eval_kwargs(args)),
               count=len(task.test), best_epoch=run.best["step"] // per_epoch)


def known_by_heart(model, tokenizer, task, args):
    """train_accuracy, greedy, of the first --eval-train training questions."""
    if not args.eval_train:
        return {}
    problems = task.train.select(range(min(args.eval_train, len(task.train))))
    return {"train_accuracy": evaluate(model, tokenizer, problems, task=task,
                                       **eval_kwargs(args))["accuracy"]}


@torch.no_grad()
def not_finite(model, batch, rows):
    """What to look at where a gradient is not finite: see Run.update."""
    losses = [sft_loss(model, *pad([example], model.device)) for example in batch]
    return [("the loss", torch.stack(losses), rows, None)]


def main(argv=None):
    guarded(train, parse_args(argv))


# --- The warm-up of the other algorithms: it is SFT for a few epochs ---


def add_warmup_flags(parser):
    flags = parser.add_argument_group("warm-up")
    flags.add_argument("--warmup", type=text, default=None,
                       help="a model to start from; without it, sft.py makes one in the folder "
                       "`warmup` beside --out, or it is reused if made with the same settings")
    flags.add_argument("--warmup-epochs", type=number(int, 1), default=5,
                       help="[2; 10 for a 125M model]")
    flags.add_argument("--warmup-lr", type=number(float, above=0), default=2e-3,
                       help="peak learning rate of the warm-up [1e-5]")


def warm_up(args) -> str:
    """The model that a run of these flags starts from: --warmup, or else a run of sft.py in the
    folder `warmup` beside --out, trained now unless it is there already."""
    folder = files.warmup_folder(args)
    if args.warmup is not None:
        return folder
    argv = [*shared_flags(args), f"--epochs={args.warmup_epochs}", f"--lr={args.warmup_lr}",
            f"--out={folder}"]
    flags = vars(parse_args(argv))
    if files.finished_with(folder, flags):
        print(f"warm-up: reusing {folder}, made with the same settings")
    else:
        if not args.overwrite and files.is_run(folder):
            other = ", ".join(files.differences(folder, flags)[:3])
            stop(f"the warm-up beside --out, {folder}, has other settings: {other}. Choose an "
                 "--out with a folder of its own in between, as out/another/reft, or add "
                 "--overwrite, which replaces the warm-up of all runs there")
        if is_reward_model(args.reward):
            place_of(args.reward)  # stops where there is none, now and not in an hour
        print(f"warm-up: SFT for {args.warmup_epochs} epochs, in {folder}")
        main(argv + ["--overwrite"] * args.overwrite
             + ["--resume"] * (args.resume and files.is_begun(folder)))
        gc.collect()  # its model: under autocast a cycle holds it
    return folder


if __name__ == "__main__":
    main()
