"""Self-training: sample solutions, keep those that the rule finds right, imitate them.

    python self_training.py                                            # offline: once, then SFT
    python self_training.py --rounds 3 --samples 8 --out out/rounds    # each from the one before
    python self_training.py --mode online --out out/online             # a sample each, every step

Papers: ReFT (arXiv 2401.08967v3), section 4, which is measured against the first and the last; in
rounds it is expert iteration: STaR (2203.14465), ReST (2308.08998).
Differs from the paper:
- the best evaluation on dev chooses the model; test is measured once, after that
- 24 samples to a question and not 100, about as many as ReFT draws here
- a round has as many steps whatever was kept, so that its cost is known before
"""

import plumbing.threads  # noqa: F401 (before torch)

from pathlib import Path

import torch
from tqdm import tqdm

from eval import dev_metrics, eval_kwargs, evaluate, respond
from graders import load_task
from plumbing import files
from plumbing.advice import after_self_training
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import command, make_parser, number, stop, warn
from plumbing.figures import draw_self_training
from plumbing.models import load_model, load_to_train
from plumbing.packing import pad
from plumbing.run import Run
from plumbing.sampling import check_room
from plumbing.schedule import adamw, lr_factor
from plumbing.task_files import read_rows
from sft import add_warmup_flags, encode, micro_batches, not_finite, sft_loss, warm_up


# --- What is kept of the samples ---


def right_samples(samples, most, known=None, above=None):
    """Of the graded samples of one question (see eval.respond) the right ones, or those that score
    more than `above`, each once and in the order of sampling, at most so many. Left out are those
    that were cut off, and the one whose tokens are `known`: the annotated solution is imitated
    anyhow."""
    found = {tuple(s["ids"]): s for s in reversed(samples) if s["ended"] and (
        s["correct"] if above is None else s["score"] > above)}
    found.pop(tuple(known or ()), None)
    return [s for s in samples if found.get(tuple(s["ids"])) is s][:most]


def sample_and_keep(model, tokenizer, task, asked, args, n, most, seed, known=None):
    """n responses at T = 1 to each of the questions `asked`; what is kept of the right ones.

    Returns: a list of samples for each question; and metrics of these, where sample_accuracy,
    solved (questions with a right sample) and the task's own, of what is kept, are fractions.
    """
    samples = respond(model, tokenizer, task.train.select(asked), task, n=n, temperature=1.0,
                      seed=seed, **eval_kwargs(args))
    of_question = [samples[start:start + n] for start in range(0, len(samples), n)]
    kept = [right_samples(own, most, known[i] if known else None, args.keep_above)
            for i, own in zip(asked, of_question)]
    right = [sum(s["correct"] for s in own) for own in of_question]
    return kept, {"samples": len(samples), "sample_accuracy": sum(right) / len(samples),
                  "solved": sum(map(bool, right)) / len(asked), "kept": sum(map(len, kept)),
                  **task.own_metrics([s["response"] for own in kept for s in own])}


def inner_epochs(right, solutions, size, epochs):
    """Groups for each update: (right samples, annotated solutions) of `size` questions, all of
    which come once an epoch, each time in another order. right: a list for each question."""
    for _ in range(epochs):
        for rows in torch.randperm(len(solutions)).split(size):
            yield ([x for i in rows.tolist() for x in right[i]],
                   [solutions[i] for i in rows.tolist()])


# --- The algorithm ---


def train(args):
    run = Run(args, "self-training")
    args.warmup = warm_up(args)  # SFT for a few epochs, so that sampling finds right answers at all
    set_seed(args.seed)
    task = load_task(args)
    model, tokenizer = load_to_train(args.warmup, args)
    base = base_of(model, args) if getattr(args, "from") == "base" else None
    annotated = encode(tokenizer, task.train, task)  # (prompt ids, response ids) of each question
    check_room(model, tokenizer, task.all_prompts(), args.max_new_tokens, annotated)
    optimizer = adamw(model, args.lr)
    rise = 0.1 * args.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(  # each round begins anew
        optimizer, lambda step: lr_factor(step % args.steps, args.steps, rise, fall_from=rise))
    run.begin(model, tokenizer, [model, optimizer, schedule], args.rounds * args.steps,
              args.batch_size, args.eval_every,
              measure=lambda: dev_metrics(model, tokenizer, task, args), measure_first=True,
              shows=["loss"], facts={"rounds": []}, criterion=task.criterion)
    pool = annotated
    if args.mode == "offline" and run.step % args.steps:  # resumed within a round
        pool = annotated + read_kept(run, annotated)

    for step in run.steps():
        metrics, lr = {}, schedule.get_last_lr()[0]
        if args.mode == "online":
            # 1. One sample to each question, of the model as it is now; the right ones are kept
            asked = run.take(args.batch_size, len(annotated))
            kept, metrics = sample_and_keep(model, tokenizer, task, asked, args, n=1, most=1,
                                            seed=args.seed * 10**6 + step)
            right = [[(annotated[i][0], s["ids"]) for s in own] for i, own in zip(asked, kept)]
            updates = inner_epochs(right, [annotated[i] for i in asked], args.minibatch_size,
                                   args.inner_epochs)
        else:
            if (step - 1) % args.steps == 0:
                # 1. A round begins: samples to all questions; the right ones join the annotated
                pool, metrics = begin_round(run, model, tokenizer, task, annotated)
                optimizer.state.clear()
                if step == 1 and base:
                    model.load_state_dict(base)
            updates = [[[pool[i] for i in run.take(args.batch_size, len(pool))]]]

        # 2. Imitate: the mean over groups of the cross-entropy of their tokens, and a step
        model.train()
        losses, tokens = [], 0
        for groups in updates:
            losses.append(0.0)
            for group in groups:
                for part, share in micro_batches(group, args.micro_batch_size):
                    loss = sft_loss(model, *pad(part, model.device)) * share / len(groups)
                    loss.backward()
                    losses[-1] += loss.item()
            batch = [example for group in groups for example in group]
            tokens += sum(len(prompt) + len(response) for prompt, response in batch)
            grad_norm = run.update(model, optimizer, lambda: not_finite(model, batch, None))
        schedule.step()
        run.log({"round": (step - 1) // args.steps + 1, "tokens": tokens,
                 "questions": len(asked if args.mode == "online" else batch),
                 "loss": sum(losses) / len(losses), "lr": lr, "grad_norm": grad_norm.item()}
                | metrics)

    # 3. The best model on dev
    finish(run, tokenizer, task)


def base_of(model, args):
    """The weights of --model, which the model that was loaded from --warmup is to take."""
    base, own = load_model(args.model, "cpu")[0].state_dict(), model.state_dict()
    if {name: x.shape for name, x in base.items()} != {name: x.shape for name, x in own.items()}:
        stop(f"--warmup {args.warmup} was not made from --model {args.model}, whose weights have "
             "other shapes: name the --model that it was made from, or add --from warmup")
    return base


def begin_round(run, model, tokenizer, task, annotated):
    """Sample to all questions, and save what is kept. Returns: it and the annotated solutions, as
    token ids; and the metrics of sample_and_keep, which result.json has, too."""
    args = run.args
    kept, metrics = sample_and_keep(
        model, tokenizer, task, range(len(annotated)), args, args.samples, args.keep,
        seed=args.seed * 10**6 + run.step, known=[response for _, response in annotated])
    files.make_folder(Path(run.out) / "samples")
    files.write_lines(run.out, samples_file(run), [
        {"question": question, "kept": [s["response"] for s in own], "ids": [s["ids"] for s in own]}
        for question, own in zip(task.train["question"], kept)])
    run.facts["rounds"].append(metrics)
    run.order = []
    tqdm.write("round {}: {solved:.1%} of the questions have a right sample; {kept:,} unique ones "
               "join the annotated solutions".format(len(run.facts["rounds"]), **metrics))
    return annotated + read_kept(run, annotated), metrics


def samples_file(run):
    return f"samples/round-{-(-run.step // run.args.steps)}.jsonl"


def read_kept(run, annotated):
    """What begin_round saved for the round under way, as token ids."""
    rows = read_rows(Path(run.out) / samples_file(run))
    kept = [(prompt, ids) for (prompt, _), row in zip(annotated, rows) for ids in row["ids"]]
    if len(rows) != len(annotated) or len(kept) != run.facts["rounds"][-1]["kept"]:
        stop(f"{run.out}/{samples_file(run)} holds other samples than the run had; restore it, or "
             "begin again with --overwrite")
    return kept


def finish(run, tokenizer, task):
    args, beside = run.args, Path(run.out).parent
    run.finish(
        lambda model: evaluate(model, tokenizer, task.test, task=task, **eval_kwargs(args)),
        count=len(task.test), start=lambda: load_to_train(args.warmup, args)[0],
        draw=lambda result: draw_self_training(
            run.out, f"{run.out}/curves.png", task.own_metrics([]), run.first["dev_accuracy"]),
        diagnose=lambda metrics: after_self_training(metrics, run.first[run.criterion],
                                                     run.criterion),
        proposals=[f"{command('sft.py', args, 'sft')}   # the baseline: no samples",
                   f"{command('reft_ppo.py', args, 'reft')}   # which learns from wrong ones, too",
                   f"python eval.py {args.warmup} {beside / 'sft'} {args.out} {beside / 'reft'}"])


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/self_training")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("self-training (the paper's values in brackets)")
    flags.add_argument("--mode", default="offline", choices=["offline", "online"],
                       help="offline: sample, keep, then imitate; online: all three in each step")
    flags.add_argument("--steps", type=number(int, 1), default=None,
                       help="offline: updates a round; online: steps. Without it 1280, or 100")
    flags.add_argument("--batch-size", type=number(int, 1), default=None,
                       help="offline: solutions an update; online: questions a step. Without it "
                       "32, or 256 [48; 32]")
    flags.add_argument("--lr", type=number(float, above=0), default=None,
                       help="peak learning rate. Without it 2e-3, or online 1e-3 [1e-5; 3e-7]")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--keep-above", type=number(float), default=None,
                       help="keep what scores more than this; without it, what is right")
    flags.add_argument("--eval-every", type=number(int, 1), default=None,
                       help="steps between evaluations on dev. Without it 64, or online 10")
    flags = parser.add_argument_group("offline")
    flags.add_argument("--samples", type=number(int, 1), default=None,
                       help="responses to each training question at T = 1, a round. Without it 24 "
                       "[100]")
    flags.add_argument("--keep", type=number(int, 1), default=None,
                       help="right ones to keep of a question, at most. Without it 10 [10]")
    flags.add_argument("--from", default=None, choices=["base", "warmup"],
                       help="what the first round trains: the model before the warm-up, or after "
                       "it. Without it base [base]; later rounds go on from the round before")
    flags.add_argument("--rounds", type=number(int, 1), default=None,
                       help="each samples from the model of the round before. Without it 1 [1]")
    flags = parser.add_argument_group("online")
    flags.add_argument("--minibatch-size", type=number(int, 1), default=128,
                       help="questions an update")
    flags.add_argument("--inner-epochs", type=number(int, 1), default=2,
                       help="over the questions of a step [2]")
    args = parser.parse_args(argv)
    online = args.mode == "online"
    for name, values in {"steps": (1280, 100), "batch_size": (32, 256), "lr": (2e-3, 1e-3),
                         "eval_every": (64, 10)}.items():
        if getattr(args, name) is None:
            setattr(args, name, values[online])
    if online and (args.rounds or 1) > 1:
        parser.error("--rounds: --mode online samples anew in every step, and has no rounds; leave "
                     "it out")
    for name, value in {"samples": 24, "keep": 10, "from": "base", "rounds": 1}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif online:
            warn(f"--{name} says nothing with --mode online, which samples once to a question in "
                 "every step, from the warm-up on")
    if online:
        setattr(args, "from", "warmup")  # the base model would sample nothing that is right
    return args


def main(argv=None):
    guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()

