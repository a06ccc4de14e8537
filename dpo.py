"""DPO: preference pairs instead of a reward, and the other losses that its paper compares it with.

    python dpo.py                                   # the embedded task, minutes on a laptop's CPU
    python dpo.py --loss ipo --beta 0.3             # the same pairs, another loss
    python dpo.py --pairs pairs.jsonl               # your own pairs: prompt, chosen, rejected
    python dpo.py --task none --pairs Anthropic/hh-rlhf --model gpt2 --lr 1e-6

Papers: DPO (Rafailov et al., arXiv 2305.18290v3), IPO (2310.12036), label smoothing ("conservative
DPO", Mitchell 2023), the SFT term (2404.19733).
Differs from the paper:
- the pairs are the warm-up model's own samples, right against wrong by the rule that rewards ReFT
- the best evaluation on dev chooses the model; test is measured once, after that
- AdamW in place of RMSprop; the learning rate rises over a tenth of the steps and falls to 0
- beta is 1, not 0.1: a rule's labels never contradict each other, so only beta holds margins back
"""

import copy
import os.path
import random
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import runs
from eval import accuracy_table, evaluate, evaluation_flags, respond, reward_and_kl
from figures import draw_preferences
from generate import check_room, context_of, encode_prompts, load_to_train, pad
from packing import predict
from resume import Run, checkpoints
from sft import add_warmup_flags, claim, warm_up
from verifier import load_splits

# --- The losses. log pi(y|x) is a sum over the response's tokens; w is chosen, l is rejected ---


def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0):
    """-log sigmoid(r_w - r_l) with the implicit rewards r = beta log(pi(y|x) / pi_ref(y|x)): the
    paper's equation 7, and what is left of RLHF's objective when its optimum
    pi*(y|x) ~ pi_ref(y|x) exp(r / beta) is solved for r and put into the Bradley-Terry model.

    label_smoothing: the probability that a pair's labels are swapped.
    Args: all logps (batch,), in nats. Returns: losses, chosen_rewards, rejected_rewards, all
        (batch,); the rewards are detached.
    """
    chosen_rewards = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    losses = (-(1 - label_smoothing) * F.logsigmoid(margins)
              - label_smoothing * F.logsigmoid(-margins))
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def ipo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta):
    """(h - 1 / (2 beta))^2 with h = log(pi(y_w) / pi_ref(y_w)) - log(pi(y_l) / pi_ref(y_l)), so
    that a pair is pulled to a margin and not beyond (equation 17 of the IPO paper); (batch,)."""
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return (h - 1 / (2 * beta)) ** 2


def preferred_ft_loss(policy_chosen_logps):
    """-log pi(y_w|x): supervised fine-tuning on the chosen responses; (batch,)."""
    return -policy_chosen_logps


def unlikelihood_loss(policy_chosen_logps, policy_rejected_logps, alpha):
    """-log pi(y_w|x) + alpha log pi(y_l|x); (batch,). Nothing bounds the second term from below,
    and the paper found its outputs meaningless on all tasks but its simplest (appendix C)."""
    return -policy_chosen_logps + alpha * policy_rejected_logps


def response_logps(model, examples):
    """log pi(response|prompt) in nats, summed over the response's tokens, EOS included.

    Args: examples, a list of (prompt ids, response ids). Returns: (batch,).
    """
    ids, attention_mask, mask = pad(examples, model.device)
    logits, _ = predict(model, ids, attention_mask, mask)  # (response tokens, vocab)
    logprobs = -F.cross_entropy(logits, ids[:, 1:][mask], reduction="none")
    return torch.zeros(mask.shape, device=ids.device).masked_scatter(mask, logprobs).sum(-1)


def pair_logps(model, pairs):
    """log pi of the chosen and of the rejected responses, both (batch,), in one forward pass."""
    examples = [(p["prompt"], p["chosen"]) for p in pairs]
    examples += [(p["prompt"], p["rejected"]) for p in pairs]
    return response_logps(model, examples).chunk(2)


# --- The pairs ---


def make_pairs(responses, n, most):
    """Right responses against wrong ones to the same question.

    Args: responses, n graded ones a problem in a row (see eval.respond); most, pairs a question.
    Returns: a list of {prompt, chosen, rejected}, texts; and counts of what became of the questions
        and the responses. Responses that were cut off are left out: a pair's two sides both end.
    """
    pairs, counts = [], {"questions": len(responses) // n, "paired": 0, "all_right": 0,
                         "all_wrong": 0, "all_cut_off": 0, "responses": len(responses),
                         "cut_off": 0}
    for first in range(0, len(responses), n):
        ended = [r for r in responses[first:first + n] if r["ended"]]
        counts["cut_off"] += n - len(ended)
        right = list(dict.fromkeys(r["response"] for r in ended if r["score"] == 1))
        wrong = list(dict.fromkeys(r["response"] for r in ended if r["score"] < 1))
        counts["paired" if right and wrong else "all_right" if right else
               "all_wrong" if wrong else "all_cut_off"] += 1
        both = [(chosen, rejected) for chosen in right for rejected in wrong]
        pairs += [{"prompt": responses[first]["prompt"], "chosen": chosen, "rejected": rejected}
                  for chosen, rejected in random.sample(both, min(most, len(both)))]
    return pairs, counts | {"pairs": len(pairs)}


def load_pairs(source):
    """[{prompt, chosen, rejected}] from a .jsonl or .json file, a folder of them or a hub name."""
    if Path(source).is_file():
        rows = runs.read_rows(source)
    else:
        try:
            rows = runs.load_dataset(source, split="train")
        except Exception as error:  # the hub raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            runs.stop(f"--pairs {source}: cannot be read ({reason}); give a .jsonl file with "
                      "prompt, chosen and rejected in each line, or a data set on the hub")
    pairs = []
    for number, row in enumerate(rows, 1):
        pair = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
        if not {"chosen", "rejected"} <= pair.keys() or not all(
                isinstance(text, str) for text in pair.values()):
            runs.stop(f"row {number} of {source}: needs prompt, chosen and rejected, each a text; "
                      f"its columns are {', '.join(row)}")
        if "prompt" not in pair:
            pair = split_conversation(**pair)
        if not pair["prompt"]:
            runs.stop(f"row {number} of {source}: has no prompt, and its two sides do not begin "
                      "alike, as conversations of Human: and Assistant: would")
        pairs.append(pair)
    return pairs


def split_conversation(chosen, rejected):
    """Two whole conversations, as in Anthropic/hh-rlhf, as {prompt, chosen, rejected}: the prompt
    is what both share, up to and with the last "Assistant:"; "" where they share no such turn."""
    shared, turn, _ = os.path.commonprefix([chosen, rejected]).rpartition("\n\nAssistant:")
    seam = len(shared + turn)
    return {"prompt": chosen[:seam], "chosen": chosen[seam:], "rejected": rejected[seam:]}


def encode(tokenizer, pairs, max_length):
    """The pairs as token ids. A prompt is tokenized once, so that both of its responses begin at
    the same seam; a response ends at its first EOS, or with one put there. Pairs of which a side
    is longer than max_length tokens, or whose sides are equal, are left out."""
    def response(text):
        ids, eos = tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
        return ids[:ids.index(eos) + 1] if eos in ids else ids + [eos]
    prompts = encode_prompts(tokenizer, [pair["prompt"] for pair in pairs])
    encoded = [{"prompt": prompt, "chosen": response(pair["chosen"]),
                "rejected": response(pair["rejected"])} for prompt, pair in zip(prompts, pairs)]
    return [p for p in encoded if p["chosen"] != p["rejected"]
            and len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])) <= max_length]


def hold_out(pairs, most=500):
    """The pairs in three: to train on, and those of a twentieth of the prompts each as dev and
    test, at most so many. The same ones whatever the seed, so that no run learns from pairs that
    another one is tested on."""
    prompts = sorted({pair["prompt"] for pair in pairs})
    if len(prompts) < 3:
        runs.stop("--task none: the pairs have fewer than three prompts, too few to hold any out")
    random.Random(0).shuffle(prompts)
    share = max(1, len(prompts) // 20)
    dev, test = set(prompts[:share]), set(prompts[share:2 * share])
    return ([pair for pair in pairs if pair["prompt"] not in dev | test],
            [pair for pair in pairs if pair["prompt"] in dev][:most],
            [pair for pair in pairs if pair["prompt"] in test][:most])


# --- The algorithm ---


def parse_args(argv=None):
    parser = runs.make_parser(__doc__, out="out/dpo")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("pairs")
    flags.add_argument("--pairs", type=runs.text, default=None,
                       help="a file with prompt, chosen and rejected, or a hub name; without it, "
                       "the warm-up's samples, right against wrong. With --task none, a tenth of "
                       "the pairs stands in for dev and test problems")
    flags.add_argument("--samples", type=runs.number(int, 2), default=16,
                       help="responses sampled to each training question")
    flags.add_argument("--pairs-per-question", type=runs.number(int, 1), default=8, help="at most")
    flags.add_argument("--max-length", type=runs.number(int, 2), default=512,
                       help="tokens of a prompt and a response; longer pairs are left out")
    flags = parser.add_argument_group("DPO (the values of the paper, or of its code, in brackets)")
    flags.add_argument("--loss", default="dpo",
                       choices=["dpo", "ipo", "preferred-ft", "unlikelihood"])
    flags.add_argument("--beta", type=runs.number(float, above=0), default=1.0,
                       help="the price of a nat of KL to the warm-up, of dpo and ipo [0.1]")
    flags.add_argument("--label-smoothing", type=runs.number(float, 0, 0.5), default=0.0,
                       help="of dpo: the share of pairs believed to be labelled wrongly [0]")
    flags.add_argument("--alpha", type=runs.number(float, 0), default=0.1,
                       help="of unlikelihood: the weight of the rejected [0.05 to 1]")
    flags.add_argument("--sft-coef", type=runs.number(float, 0), default=0.0,
                       help="the weight of -log pi(chosen) per token, added to any loss [0]")
    flags.add_argument("--epochs", type=runs.number(int, 1), default=2, help="over the pairs [1]")
    flags.add_argument("--batch-size", type=runs.number(int, 1), default=64,
                       help="pairs an optimizer step [64]")
    flags.add_argument("--lr", type=runs.number(float, above=0), default=2e-4, help="peak [1e-6]")
    flags.add_argument("--max-grad-norm", type=runs.number(float, above=0), default=1.0,
                       help="[10]")
    flags.add_argument("--eval-every", type=runs.number(int, 1), default=20,
                       help="steps between evaluations on dev")
    flags.add_argument("--eval-samples", type=runs.number(int, 0), default=0,
                       help="samples to each dev problem in evaluations, for the reward and the KL "
                       "that eval.py --frontier draws (0: none)")
    return parser.parse_args(argv)


@torch.no_grad()
def with_reference_logps(model, pairs, size):
    """The pairs, each with ref_chosen and ref_rejected: log pi_ref of its responses, in nats."""
    scored = []
    for first in range(0, len(pairs), size):
        part = pairs[first:first + size]
        chosen, rejected = pair_logps(model, part)
        scored += [pair | {"ref_chosen": w, "ref_rejected": l}
                   for pair, w, l in zip(part, chosen.tolist(), rejected.tolist())]
    return scored


@torch.no_grad()
def measure_pairs(model, pairs, size):
    """accuracy, the fraction of the pairs in which the implicit reward of the chosen response is
    the greater one (equal ones, as in the reference itself, count half), and the mean of
    chosen_logp, in nats."""
    logps = torch.cat([torch.stack(pair_logps(model, pairs[at:at + size]), 1)
                       for at in range(0, len(pairs), size)]).cpu()
    moved = logps - torch.tensor([[p["ref_chosen"], p["ref_rejected"]] for p in pairs])
    right = (moved[:, 0] > moved[:, 1]).float() + (moved[:, 0] == moved[:, 1]).float() / 2
    return {"accuracy": right.mean().item(), "chosen_logp": logps[:, 0].mean().item()}


def train(args):
    start = time.time()
    on_pairs_alone = args.task == "none"
    if on_pairs_alone and (args.pairs is None or args.eval_samples):
        runs.stop("--task none has no questions to sample responses to; name a file with --pairs, "
                  "and leave --eval-samples out")
    if on_pairs_alone:
        args.warmup = args.warmup or args.model
    claim(args)
    texts = load_pairs(args.pairs)[:args.limit] if args.pairs else None

    # Warm-up: the same as ReFT's
    args.warmup = warm_up(args)
    runs.set_seed(args.seed)
    # In eval mode, and it stays there: with dropout the policy would not start at its reference.
    policy, tokenizer = load_to_train(args.warmup, args)
    reference = copy.deepcopy(policy).requires_grad_(False) if args.eval_samples else None
    if not on_pairs_alone:
        problems, dev, test = load_splits(args.task, args.limit)
        check_room(policy, tokenizer, {"train": problems, "dev": dev, "test": test}, args.cot,
                   args.max_new_tokens)

    # Pairs: the warm-up's samples, labelled by the rule; or those of a file
    began, metrics = time.time(), {"step": 0, "tokens": 0}
    resuming = args.resume and bool(checkpoints(args.out))
    if texts is None and resuming:
        texts, counts = load_pairs(f"{args.out}/pairs.jsonl"), {}
    elif texts is None:
        responses = respond(policy, tokenizer, problems, n=args.samples, temperature=1.0,
                            seed=args.seed, **evaluation_flags(args))
        texts, counts = make_pairs(responses, args.samples, args.pairs_per_question)
        metrics |= {"questions": len(problems), "samples": len(responses)}
        print("pairs: {pairs:,} from {paired:,} of {questions:,} questions ({all_right:,} had only "
              "right responses, {all_wrong:,} only wrong ones, and {cut_off:,} of {responses:,} "
              "responses were cut off)".format(**counts))
    else:
        counts = {"pairs": len(texts)}
    parts = hold_out(texts) if on_pairs_alone else [texts]
    max_length = min(args.max_length, context_of(policy))
    encoded = [encode(tokenizer, part, max_length) for part in parts]
    left_out = sum(map(len, parts)) - sum(map(len, encoded))
    if left_out:
        print(f"pairs: {left_out:,} are longer than {max_length} tokens, or the same on both "
              "sides, and are left out")
    if not all(encoded):
        runs.stop("there is no pair to learn from, or none to hold out. " + (
            "Try a larger --max-length, or more pairs" if args.pairs else
            "All responses were cut off: try a larger --max-new-tokens"
            if counts.get("cut_off") == counts.get("responses") else
            "No question had a right response and a wrong one: try more --warmup-epochs, with an "
            "--out in another folder"))

    # log pi_ref of every response, once: the reference never changes
    at_once = max(1, args.micro_batch_size // 2)  # a pair is two responses
    pairs, *held_out = (with_reference_logps(policy, part, at_once)
                        for part in encoded)
    if on_pairs_alone:
        dev, test = held_out
    metrics["seconds"] = time.time() - began

    def measure(model, held_out):
        if on_pairs_alone:
            return measure_pairs(model, held_out, at_once)
        return evaluate(model, tokenizer, held_out, **evaluation_flags(args))

    def measure_dev():
        measured = measure(policy, dev)
        point = reward_and_kl(policy, reference, tokenizer, dev, args.eval_samples,
                              **evaluation_flags(args)) if args.eval_samples else {}
        return {f"dev_{name}": measured[name] for name in ["accuracy", "chosen_logp"]
                if name in measured} | point

    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    steps = args.epochs * -(-len(pairs) // args.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a tenth of the steps up, then down to 0
        optimizer, lambda step: min((step + 1) / max(1, 0.1 * steps), 1 - step / steps))
    run = Run(args, start, [policy, optimizer, schedule], args.batch_size,
              order=list(range(len(pairs))), counts=counts, best=None, best_weights=None)
    if sorted(run.order) != list(range(len(pairs))):
        runs.stop(f"--resume: {args.out}/pairs.jsonl has other pairs than the run had; restore it, "
                  "or begin again with --overwrite")
    if run.best is None:
        if args.pairs is None:
            runs.write_lines(args.out, "pairs.jsonl", texts)
        run.best, run.best_weights = metrics | measure_dev(), runs.weights_of(policy)
        run.log(run.best)
    # What chooses the model: SFT on pairs alone need not set the chosen apart from the rejected.
    criterion = ("dev_chosen_logp" if on_pairs_alone and args.loss == "preferred-ft"
                 else "dev_accuracy")

    bar = tqdm(run.steps(steps), f"DPO {args.out}", steps, initial=run.step, unit="step")
    for step in bar:
        began = time.time()
        epoch, batch = run.batch(step, args.batch_size)
        batch = sorted(batch, key=lambda i: max(len(pairs[i]["chosen"]), len(pairs[i]["rejected"])))
        sums = Counter()
        for at in range(0, len(batch), at_once):
            rows = batch[at:at + at_once]
            part = [pairs[i] for i in rows]
            chosen_logps, rejected_logps = pair_logps(policy, part)
            ref_chosen_logps, ref_rejected_logps, chosen_tokens = torch.tensor(
                [[p["ref_chosen"], p["ref_rejected"], len(p["chosen"])] for p in part],
                device=policy.device).T
            logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps

            # The loss; the implicit rewards are logged whichever it is
            losses, chosen_rewards, rejected_rewards = dpo_loss(
                *logps, args.beta, args.label_smoothing)
            if args.loss == "ipo":
                losses = ipo_loss(*logps, args.beta)
            elif args.loss == "preferred-ft":
                losses = preferred_ft_loss(chosen_logps)
            elif args.loss == "unlikelihood":
                losses = unlikelihood_loss(chosen_logps, rejected_logps, args.alpha)
            losses = losses - args.sft_coef * chosen_logps / chosen_tokens
            run.stop_unless_finite("the loss", losses, rows)
            (losses.sum() / len(batch)).backward()  # with the other parts, the batch's mean

            for name, x in [
                    ("loss", losses), ("chosen_reward", chosen_rewards),
                    ("rejected_reward", rejected_rewards),
                    ("margin", chosen_rewards - rejected_rewards),
                    ("accuracy", (chosen_rewards > rejected_rewards).float()),
                    ("chosen_logp", chosen_logps), ("rejected_logp", rejected_logps)]:
                sums[name] += x.detach().sum()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
        run.stop_unless_finite("the gradient's norm", grad_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        metrics = {
            "step": step, "epoch": epoch, "questions": len(batch),
            "tokens": sum(2 * len(pairs[i]["prompt"]) + len(pairs[i]["chosen"])
                          + len(pairs[i]["rejected"]) for i in batch),
            "lr": lr, "grad_norm": grad_norm.item(),
            **{name: x.item() / len(batch) for name, x in sums.items()},
            "seconds": time.time() - began}
        if step % args.eval_every == 0 or step == steps:
            metrics |= measure_dev()
            if metrics[criterion] > run.best[criterion]:
                run.best, run.best_weights = metrics, runs.weights_of(policy)
        run.log(metrics)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", margin=f"{metrics['margin']:.2f}",
                        dev=f"{run.best['dev_accuracy']:.1%}")

    policy.load_state_dict(run.best_weights)
    runs.save_model(args.out, policy, tokenizer)
    after, (warmup, _) = measure(policy, test), load_to_train(args.warmup, args)
    before = measure(warmup, test)
    history = runs.read_metrics(args.out)
    result = {"test_accuracy": after["accuracy"], "dev_accuracy": run.best["dev_accuracy"],
              "best_step": run.best["step"], "warmup_test_accuracy": before["accuracy"],
              "warmup_dev_accuracy": history[0]["dev_accuracy"],
              "seed": args.seed, "steps": steps, "pairs": run.counts, "seconds": run.seconds(),
              "peak_memory_mb": runs.peak_memory_mb(policy.device.type),
              **{name: x for name, x in after.items() if name != "accuracy"}}
    runs.write_json(args.out, "result.json", result)
    draw_preferences(args.out, f"{args.out}/curves.png")
    summarize(args, before, after, result, diagnose(history, criterion), len(test))


def diagnose(metrics, criterion="dev_accuracy"):
    """What went wrong in a run, as sentences with advice; none where nothing did."""
    warmup, *dev = [m[criterion] for m in metrics if criterion in m]
    best, last = max(dev), dev[-1]
    if best <= warmup:
        return ["No evaluation on dev was better than the warm-up, so the saved model is the "
                "warm-up. Try a smaller --lr, a larger --beta, or --sft-coef 1."]
    if criterion == "dev_accuracy" and last < best - 0.1:
        return [f"Accuracy on dev fell from {best:.1%} to {last:.1%} at the end, and the model of "
                f"the peak was saved. Try fewer --epochs, a larger --beta, or --sft-coef 1."]
    return []


def summarize(args, before, after, result, warnings, n_test):
    """What happened, where it lies, what to try next."""
    print("\n" + accuracy_table({"warm-up": before, "DPO": after}, n_test,
                                careful=args.task == "word_problems"))
    gain = 100 * (after["accuracy"] - before["accuracy"])
    print(f"\nDPO ({args.loss}): {gain:+.1f} points over its warm-up on {n_test} test "
          f"{'pairs' if args.task == 'none' else 'problems'}, at step {result['best_step']} of "
          f"{result['steps']}, in {result['seconds'] / 60:.1f} minutes and "
          f"{result['peak_memory_mb']:,} MB.")
    for sentence in warnings:
        print(f"warning: {sentence}")
    print(f"saved: model, metrics.jsonl, result.json and curves.png in {args.out}")
    if args.task != "none":
        beside = Path(args.out).parent
        print(f"next:  {runs.command('sft.py', args, 'sft')}   # the baseline\n"
              f"       {runs.command('reft_ppo.py', args, 'reft')}   # PPO with the rule's reward\n"
              f"       python eval.py {args.warmup} {beside / 'sft'} {args.out} {beside / 'reft'}")


def main(argv=None):
    runs.guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
