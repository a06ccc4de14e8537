"""What the graded functions are called with: numbers as JSON, and small stand-ins for a language
model, a tokenizer, a task, an optimizer step, of which an oracle can compute everything by hand."""

import linecache
import random
import types

import torch
from torch import nn

from plumbing.rollouts import Rollout, update_metrics


class Bag(nn.Module):
    """A language model without order: its logits are the sum of a row for each token so far, and of
    one for the position. Its hidden state is the same sum of other rows."""

    def __init__(self, tokens, positions, hidden):
        super().__init__()
        self.tokens = nn.Parameter(torch.tensor(tokens, dtype=torch.double))  # (vocab, vocab)
        self.positions = nn.Parameter(torch.tensor(positions, dtype=torch.double))
        self.hidden = nn.Parameter(torch.tensor(hidden, dtype=torch.double))  # (vocab, size)
        self.config = types.SimpleNamespace(_attn_implementation="eager")
        self.device = torch.device("cpu")
        self.eval()

    def get_output_embeddings(self):
        return types.SimpleNamespace(in_features=self.hidden.shape[1])

    def forward(self, input_ids, attention_mask, position_ids=None, **_):
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        seen = attention_mask[..., None].double()
        logits = (self.tokens[input_ids] * seen).cumsum(1) + self.positions[position_ids]
        return types.SimpleNamespace(
            logits=logits, hidden_states=[(self.hidden[input_ids] * seen).cumsum(1)])


class Letters:
    """A tokenizer: a letter a token, a = 10; a BOS, 8, before each text; EOS is 1."""
    eos_token_id, bos_token_id, pad_token_id = 1, 8, 0

    def __call__(self, texts, add_special_tokens=True):
        if isinstance(texts, str):
            return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
        return {"input_ids": [[8] * add_special_tokens + [ord(x) - ord("a") + 10 for x in text]
                              for text in texts]}


def decoded(x, module):
    """What an oracle wrote as JSON: {"$tensor": rows, "dtype": ...}, {"$bag": ...}, ..."""
    if isinstance(x, list):
        return [decoded(y, module) for y in x]
    if not isinstance(x, dict):
        return x
    if "$tensor" in x:
        return torch.tensor(x["$tensor"], dtype=getattr(torch, x["dtype"]))
    if "$bag" in x:
        return Bag(**x["$bag"])
    if "$letters" in x:
        return Letters()
    if "$task" in x:  # of sft.encode
        return types.SimpleNamespace(**x["$task"], prompts=lambda problems: problems["question"])
    if "$rollout" in x:
        return Rollout(**{name: decoded(y, module) for name, y in x["$rollout"].items()})
    if "$policy" in x:
        policy = module.PolicyWithValue(Bag(**x["$policy"]["lm"]))
        policy.value_head.weight.data = torch.tensor([x["$policy"]["weight"]])
        policy.value_head.bias.data = torch.tensor([x["$policy"]["bias"]])
        return policy
    return {name: decoded(y, module) for name, y in x.items()}


def encoded(x):
    """A function's value as JSON; of a tensor the numbers, nested as its shape is."""
    if isinstance(x, torch.Tensor):
        return x.detach().tolist()
    if isinstance(x, dict):
        return {str(name): encoded(y) for name, y in x.items()}
    if isinstance(x, list | tuple):
        return [encoded(y) for y in x]
    x = x.item() if type(x).__module__ == "numpy" and hasattr(x, "item") else x
    return x if isinstance(x, bool | int | float | str | None) else f"a {type(x).__name__}"


# --- How a part is called: each takes its module, it, and the arguments, and returns JSON ---


def called(function, inputs):
    """The value. Tensors that go in stay as they are; and where some do, tensors come out."""
    before = {name: x.clone() for name, x in inputs.items() if isinstance(x, torch.Tensor)}
    value = function(**inputs)
    for name, x in before.items():
        if not torch.equal(x, inputs[name]):
            raise ValueError(f"it changes its argument {name} in place")
    for x in value if isinstance(value, tuple) and before else [value] * bool(before):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"it returns a {type(x).__name__} where a tensor is expected")
    return value


def call(module, function, args):
    return encoded(called(function, decoded(args, module)))


def call_with_gradient(module, function, args):
    """The value, and d sum(value, or of its first if there are several) / d those named in `of`;
    of a model, d / d the rows of its tokens."""
    args = dict(args)
    names, inputs = args.pop("of"), decoded(args, module)
    sources = [x.lm.tokens if hasattr(x := inputs[name], "lm") else getattr(x, "tokens", x)
               for name in names]
    for source in sources:
        source.requires_grad_()
    value = called(function, inputs)
    first = value[0] if isinstance(value, tuple) else value
    gradients = torch.autograd.grad(first.sum(), sources, allow_unused=True)
    return {"value": encoded(value), "gradients": {
        name: encoded(torch.zeros_like(source) if gradient is None else gradient)
        for name, source, gradient in zip(names, sources, gradients)}}


def pad(module, function, args):
    """What can be read from a layout, whatever stands in its padding."""
    ids, attention_mask, mask = function(args["examples"], torch.device("cpu"))
    return {
        "the tokens attended to": [row[seen.bool()].tolist()
                                   for row, seen in zip(ids, attention_mask)],
        "the tokens under the mask": [row[1:][seen].tolist() for row, seen in zip(ids, mask)],
        "the column of each prompt's last token": [
            int(seen.nonzero()[0]) if seen.any() else None for seen in mask],
        "types": [str(x.dtype) for x in (ids, mask)], "shapes": [list(x.shape) for x in (ids, mask)]}


def read_answer(module, function, args):
    found = function(**args)
    if found is not None and (not isinstance(found, tuple) or len(found) != 3):
        raise TypeError("it returns neither None nor (its marker, what follows, how that is read)")
    return found and encoded(found)[2]


def sorted_pairs(module, function, args):
    random.seed(0)
    pairs, counts = function(**args)
    return {"pairs": sorted([p["prompt"], p["chosen"], p["rejected"]] for p in pairs),
            "counts": counts}


def grade(module, function, args):
    """Task.grade, as [(correct, score)]."""
    task = module.Task(cot="nl", choices=args["choices"])
    return [[g.correct, g.score] for g in task.grade(args["responses"], {"answer": args["answers"]})]


def run_lines(module, lines, names):
    names = vars(module) | names
    linecache.cache["train"] = len(lines), None, lines.splitlines(keepends=True), "train"
    exec(compile(lines, "train", "exec"), names)
    return names


def updates(module, lines, args):
    """The update loop with plain gradient descent: the gradients of each update, and the weights
    after it."""
    torch.manual_seed(args["seed"])
    policy = decoded(args["policy"], module)
    weights = [policy.lm.tokens, policy.value_head.weight]
    optimizer = torch.optim.SGD(weights, lr=args["lr"])
    found = []

    def update(policy, optimizer, suspects):
        found.append([encoded(policy.lm.tokens.grad), encoded(policy.value_head.weight.grad[0])])
        optimizer.step()
        policy.zero_grad()
        return torch.tensor(1.0)

    rollout = decoded(args["rollout"], module)
    names = run_lines(module, lines, {
        "run": types.SimpleNamespace(update=update), "policy": policy, "optimizer": optimizer,
        "rollout": rollout, "scores": torch.zeros(len(rollout.ids)),
        "schedule": types.SimpleNamespace(get_last_lr=lambda: [0.1], step=lambda: None),
        "asked": list(range(len(rollout.ids))), "lm": policy.lm,
        "args": types.SimpleNamespace(**args["flags"])})
    left = [p.grad.abs().max().item() for p in weights if p.grad is not None]
    logged = update_metrics(names["updates"], torch.cat(names["log_ratios"]), 0.2)
    return {"gradients": found, "updates": len(names["updates"]),
            "log ratios": sum(len(x) for x in names["log_ratios"]),
            "weights": encoded(policy.lm.tokens), "gradient left": max(left, default=0.0),
            "loss": logged["loss"], "tokens": logged["tokens"]}


def models(module, lines, args):
    """Whether the reference stays where it is, and whether either has its dropout on, after the
    policy's weights have moved."""
    lm = decoded(args["lm"], module)
    names = run_lines(module, lines, {
        "lm": lm, "args": types.SimpleNamespace(value="shared")})
    with torch.no_grad():
        names["policy"].lm.tokens += 1
    return {"the reference has moved": bool(
                (names["reference"].lm.tokens - names["policy"].lm.tokens).abs().max() < 0.5),
            "dropout is on": names["policy"].lm.training or names["reference"].lm.training,
            "the reference is trained": any(p.requires_grad
                                            for p in names["reference"].parameters())}


def rollout(module, lines, args):
    """What the policy is asked to sample, and how."""
    asked = []

    def generate_ids(lm, prompts, eos, max_new_tokens, temperature=1.0, generator=None,
                     batch_size=256, **_):
        asked.append({"prompts": [list(p) for p in prompts], "temperature": temperature})
        return [[5, 1] for _ in prompts]
    run_lines(module, lines, {
        "run": types.SimpleNamespace(take=lambda size, count: args["take"]), "generator": None,
        "lm": types.SimpleNamespace(device=torch.device("cpu")), "prompts": args["prompts"],
        "samples": args["samples"], "eos": 1, "generate_ids": generate_ids,
        "args": types.SimpleNamespace(batch_size=len(args["take"]), max_new_tokens=9,
                                      generate_batch_size=9)})
    return asked
