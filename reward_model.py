"""A reward model: a score of responses, learned from comparisons of them or from right and wrong.

    python reward_model.py                           # pairs, as dpo.py makes them: for RLHF
    python reward_model.py --ranked 4                # all pairs of four graded samples
    python reward_model.py --objective binary        # right or wrong: for reranking and voting
    python reward_model.py --pairs pairs.jsonl       # your own pairs: prompt, chosen, rejected

    python reft_ppo.py --reward out/reward_model     # PPO with the learned score: RLHF
    python eval.py out/sft --rerank out/reward_model # the best of n samples, and weighted votes

Papers: Ziegler et al. (1909.08593), InstructGPT (2203.02155; ranked lists), ReFT (2401.08967v3,
section 4; right or wrong).
Differs from the papers:
- the samples are the warm-up model's own, graded by the rule; it starts from that model's weights
- the head starts at zero, so the first scores are equal, and the first loss is log 2
- the best evaluation on dev chooses the model; test is measured once, after that
- one score stands for the two classes of ReFT's: P(right) is its sigmoid
"""

import plumbing.threads  # noqa: F401 (before torch)

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from eval import eval_kwargs, respond
from plumbing import files
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import command, make_parser, number, stop, text
from plumbing.figures import draw_calibration
from plumbing.models import load_model, load_to_train
from plumbing.pairs import hold_out, load_pairs, make_pairs
from plumbing.reward_models import (RewardModel, encode_responses,  # noqa: F401
                                    load_reward_model, score)
from plumbing.run import Run
from plumbing.sampling import check_room, context_of
from plumbing.schedule import adamw, rise_and_fall
from plumbing.stats import calibration, correlation
from plumbing.task_files import read_rows
from sft import add_warmup_flags, warm_up
from verifier import load_task


# --- The losses. A list: a prompt, responses to it, and a grade of each, the greater the better ---


def pairwise_loss(chosen_scores, rejected_scores):
    """-log sigmoid(r_w - r_l), (batch,): the Bradley-Terry model, in which w is preferred to l with
    the probability sigmoid(r_w - r_l). A constant added to all scores changes nothing."""
    return -F.logsigmoid(chosen_scores - rejected_scores)


def ranked_loss(scores, grades):
    """The pairwise losses of all C(K, 2) pairs of one list, times 1 / C(K, 2): a list weighs what a
    pair does, however long it is (InstructGPT, equation 1). A pair of equal grades counts as 0.

    Args: scores, grades (K,). Returns: a scalar.
    """
    better, worse = (grades[:, None] > grades[None, :]).nonzero(as_tuple=True)
    return pairwise_loss(scores[better], scores[worse]).sum() / math.comb(len(scores), 2)


def binary_loss(scores, grades):
    """The cross-entropy of right (grade 1) or wrong, with P(right) = sigmoid(score); the list's
    mean, a scalar. Args: scores, grades (K,)."""
    return F.binary_cross_entropy_with_logits(scores, (grades == 1).float())


LOSSES = {"pairwise": ranked_loss, "binary": binary_loss}  # --objective: of one list; a pair is one


# --- What it learns from, and is measured on ---


def graded_lists(samples, n, size):
    """Lists of at most `size` responses to one question: the unique ones that ended, of n samples
    to each in a row (see eval.respond), with their grades."""
    lists = []
    for start in range(0, len(samples), n):
        own = list({s["response"]: s for s in samples[start:start + n] if s["ended"]}.values())
        lists += [{"prompt": samples[start]["prompt"], "responses": [s["response"] for s in part],
                   "grades": [s["score"] for s in part]}
                  for part in (own[at:at + size] for at in range(0, len(own), size))]
    return lists


def pair_lists(pairs):
    return [{"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"]],
             "grades": [1.0, 0.0]} for pair in pairs]


def lists_of_pairs(args):
    """The pairs of --pairs, as lists of two, but for those whose sides are equal; some held out for
    dev and test."""
    pairs = [p for p in load_pairs(args.pairs)[:args.limit] if p["chosen"] != p["rejected"]]
    return [pair_lists(part) for part in hold_out(pairs)]


def lists_of_a_task(args, run):
    """Lists to train on; and for dev and test all unique samples to their questions. They are the
    warm-up's, graded by the rule, and the same that dpo.py has with this seed."""
    parts = ["train", "dev", "test"]
    if run.going_on():  # on a GPU, sampling again would give others
        return [read_rows(Path(run.out) / "samples" / f"{part}.jsonl") for part in parts]
    lm, tokenizer = load_model(args.warmup, args.device, args.dtype)
    task, n = load_task(args), args.samples
    check_room(lm, tokenizer, task.all_prompts(), args.max_new_tokens)
    train, dev, test = (respond(lm, tokenizer, problems, task, n=n, temperature=1.0,
                                seed=args.seed, **eval_kwargs(args))
                        for problems in (task.train, task.dev, task.test))
    if args.objective == "binary":
        lists = graded_lists(train, n, n)
    elif args.ranked:
        lists = [x for x in graded_lists(train, n, args.ranked) if len(set(x["grades"])) > 1]
    else:
        lists = pair_lists(make_pairs(train, n, args.pairs_per_question)[0])
    return [lists, graded_lists(dev, n, n), graded_lists(test, n, n)]


def encode_lists(tokenizer, parts, max_length):
    """Each list with `examples`, its responses as (prompt ids, response ids). Left out are those
    with one longer than max_length tokens. Stops where nothing is left to learn from or to measure
    on."""
    encoded = []
    for name, lists in zip(["train", "dev", "test"], parts):
        lists = [x | {"examples": encode_responses(tokenizer, [x["prompt"]] * len(x["responses"]),
                                                   x["responses"])} for x in lists]
        kept = [x for x in lists if max(len(p) + len(r) for p, r in x["examples"]) <= max_length]
        if len(kept) < len(lists):
            print(f"{name}: {len(lists) - len(kept):,} of {len(lists):,} comparisons are left out, "
                  f"as a response has more than {max_length} tokens")
        if not any(1 in x["grades"] and min(x["grades"]) < 1 for x in kept):
            stop(f"{name}: no question has both a right response and a wrong one, so there is "
                 "nothing to compare. Try more --samples, more or fewer --warmup-epochs (with an "
                 "--out in another folder), or a larger --max-length")
        encoded.append(kept)
    return encoded


# --- The model on lists, and how good it is ---


def parts_of(lists, size):
    """The lists in parts of at most `size` responses, or of one list."""
    part, count = [], 0
    for x in lists:
        if part and count + len(x["examples"]) > size:
            yield part
            part, count = [], 0
        part.append(x)
        count += len(x["examples"])
    yield part


def scores_of(model, lists):
    """Each response is read once. Returns: the scores of each list, (K,)."""
    return model([example for x in lists for example in x["examples"]]).split(
        [len(x["examples"]) for x in lists])


def margins_of(scores, lists):
    """r_w - r_l of all pairs of a right response (grade 1) and a wrong one to one question."""
    margins = []
    for s, x in zip(scores, lists):
        right = torch.tensor(x["grades"]) == 1
        margins.append((s[right][:, None] - s[~right][None, :]).flatten())
    return torch.cat(margins)


def pair_accuracy(margins):
    """The fraction of the pairs in their right order; equal scores count half."""
    return ((margins > 0).float() + (margins == 0).float() / 2).mean().item()


@torch.no_grad()
def measure(model, lists, size, objective):
    """Of held-out lists: accuracy, of their pairs of a right and a wrong response;
    calibration_error and its bins (see stats.calibration); length_correlation, of the scores with
    the responses' tokens, and the same among the right and among the wrong ones.

    What is calibrated is P(right), where that was learned; else sigmoid(r_1 - r_2), the probability
    that the first of two is the better one, where that is so in every other pair.
    """
    scores = [s.cpu() for part in parts_of(lists, size) for s in scores_of(model, part)]
    margins, scores = margins_of(scores, lists), torch.cat(scores)
    right = torch.tensor([grade == 1 for x in lists for grade in x["grades"]])
    tokens = torch.tensor([len(response) for x in lists for _, response in x["examples"]])
    first = torch.arange(len(margins)) % 2 == 0
    bins, error = (calibration(scores.sigmoid(), right) if objective == "binary" else
                   calibration(torch.where(first, margins, -margins).sigmoid(), first))
    groups = {"": torch.ones_like(right), "_of_right": right, "_of_wrong": ~right}
    return {"accuracy": pair_accuracy(margins), "pairs": len(margins), "calibration_error": error,
            "calibration": bins, **{f"length_correlation{name}": correlation(
                scores[group], tokens[group]) for name, group in groups.items()}}


# --- The algorithm ---


def train(args):
    run = Run(args, "reward model")
    args.warmup = warm_up(args)  # the same as ReFT's
    set_seed(args.seed)

    # 1. Comparisons: the warm-up's samples, graded by the rule; or the pairs of a file
    parts = lists_of_pairs(args) if args.pairs else lists_of_a_task(args, run)
    classifier, tokenizer = load_to_train(args.warmup, args, head="new")
    classifier.config.objective = args.objective  # saved with it: how its scores are to be read
    if tokenizer.pad_token_id != tokenizer.eos_token_id:  # by which transformers' own finds the EOS
        classifier.config.pad_token_id = tokenizer.pad_token_id
    model = RewardModel(classifier)  # in eval mode, and it stays there
    lists, dev, test = encode_lists(tokenizer, parts, min(args.max_length, context_of(classifier)))

    optimizer = adamw(model, args.lr)
    steps = args.epochs * -(-len(lists) // args.batch_size)
    schedule = rise_and_fall(optimizer, steps, rise=0.1 * steps)
    size, loss_of = args.micro_batch_size, LOSSES[args.objective]
    run.begin(classifier, tokenizer, [classifier, optimizer, schedule], steps, args.batch_size,
              args.eval_every, order=range(len(lists)), shows=["loss", "accuracy"],
              measure=lambda: on_dev(measure(model, dev, size, args.objective)),
              facts={"comparisons": len(lists), "responses": sum(len(x["grades"]) for x in lists)})
    keep_lists(run, parts, len(lists))

    for step in run.steps():
        # 2. A batch of lists, each of whose responses is read once
        epoch, rows = run.batch(args.batch_size)
        batch, losses, margins, lr = [lists[i] for i in rows], [], [], schedule.get_last_lr()[0]
        for part in parts_of(batch, size):
            scores = scores_of(model, part)

            # 3. The loss of each list's scores, their mean over the batch, and a step
            loss = torch.stack([loss_of(s, torch.tensor(x["grades"], device=s.device))
                                for s, x in zip(scores, part)])
            (loss.sum() / len(batch)).backward()
            losses.append(loss.detach())
            margins.append(margins_of([s.detach().cpu() for s in scores], part))
        losses, margins = torch.cat(losses), torch.cat(margins)
        grad_norm = run.update(model, optimizer, lambda: [("the loss", losses, None, None)])
        schedule.step()
        run.log({"epoch": epoch, "loss": losses.mean().item(), "lr": lr,
                 "grad_norm": grad_norm.item(),
                 "tokens": sum(len(p) + len(r) for x in batch for p, r in x["examples"])}
                | ({"accuracy": pair_accuracy(margins), "margin": margins.mean().item()}
                   if len(margins) else {}))

    # 4. The best model on dev; test, once
    finish(run, test)


def on_dev(found):
    return {"dev_accuracy": found["accuracy"], "dev_calibration_error": found["calibration_error"]}


def keep_lists(run, parts, count):
    """Save the lists, where they were sampled; stop where a resumed run would have others."""
    if not run.args.pairs:
        files.make_folder(Path(run.out) / "samples")
        for name, lists in zip(["train", "dev", "test"], parts):
            files.write_lines(run.out, f"samples/{name}.jsonl", lists)
    if sorted(run.order) != list(range(count)):
        stop(f"--resume: {run.out}/samples has others than the run had; restore them, or begin "
             "again with --overwrite")


def finish(run, test):
    args = run.args
    found = {}

    def on_test(classifier):
        found.update(measure(RewardModel(classifier), test, args.micro_batch_size, args.objective))
        return {name: x for name, x in found.items() if name != "calibration"}

    def draw_and_say(result):
        draw_calibration(found["calibration"], args.objective, run.out, f"{run.out}/curves.png")
        print("held-out pairs in their order: {accuracy:.1%} of {pairs:,}. Calibration error: "
              "{calibration_error:.3f}. Score and length correlate by {length_correlation:+.2f}, "
              "among right responses by {length_correlation_of_right:+.2f}, among wrong ones by "
              "{length_correlation_of_wrong:+.2f}".format(**found))

    beside = Path(run.out).parent
    run.finish(
        on_test, count=len(test), unit="questions", draw=draw_and_say,
        proposals=[] if args.task == "none" else [
            f"{command('reft_ppo.py', args, 'rlhf')} --reward={args.out}   # RLHF",
            f"python eval.py {args.warmup} --rerank={args.out} --out={beside / 'rerank'}"])


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/reward_model")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("comparisons")
    flags.add_argument("--pairs", type=text, default=None,
                       help="a file with prompt, chosen and rejected, or a hub name, a tenth of "
                       "whose prompts are held out; without it, the warm-up's samples")
    flags.add_argument("--samples", type=number(int, 2), default=16,
                       help="responses sampled to each question [binary: 100]")
    flags.add_argument("--pairs-per-question", type=number(int, 1), default=8,
                       help="pairs of a right and a wrong response, at most")
    flags.add_argument("--ranked", type=number(int, 2), default=None, metavar="K",
                       help="learn from all pairs of K graded samples, by the rule's scores; a "
                       "pair weighs 1 / C(K, 2) [4 to 9]")
    flags.add_argument("--max-length", type=number(int, 2), default=512,
                       help="tokens of a prompt and a response; what is longer is left out")
    flags = parser.add_argument_group("the reward model (the papers' values in brackets)")
    flags.add_argument("--objective", default="pairwise", choices=list(LOSSES),
                       help="pairwise: which of two is better; binary: right or wrong")
    flags.add_argument("--epochs", type=number(int, 1), default=None,
                       help="over the comparisons; without it 4, or binary 10 [1; binary: 3]")
    flags.add_argument("--batch-size", type=number(int, 1), default=None,
                       help="an update's pairs; or its questions, with all their samples. Without "
                       "it 64, or 8 [64; binary: 24 samples]")
    flags.add_argument("--lr", type=number(float, above=0), default=1e-3, help="peak [9e-6; 1e-6]")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--eval-every", type=number(int, 1), default=50,
                       help="steps between evaluations on dev")
    args = parser.parse_args(argv)
    if args.objective == "binary" and (args.pairs or args.ranked):
        parser.error("--objective binary learns from the grade of each sample, not from pairs: "
                     f"leave out {'--pairs' if args.pairs else '--ranked'}")
    if args.pairs and args.ranked:
        parser.error("--ranked makes pairs of samples, and --pairs has its own: leave one out")
    if args.task == "none":
        if args.pairs is None:
            parser.error("--task none has no questions to sample responses to; name a file with "
                         "--pairs")
        args.warmup = args.warmup or args.model
    if args.epochs is None:
        args.epochs = 10 if args.objective == "binary" else 4
    if args.batch_size is None:
        args.batch_size = 8 if args.objective == "binary" or args.ranked else 64
    return args


def main(argv=None):
    guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
