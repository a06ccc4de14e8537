"""What the graded functions are called with: numbers as JSON, and small stand-ins for a language
model, a tokenizer, a task, an optimizer step, of which an oracle can compute everything by hand."""

import linecache
import random
import types

import torch
from torch import nn

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
    if "$task" in x:  # what encode_solutions reads of a task
        return types.SimpleNamespace(**x["$task"], prompts=lambda problems: problems["question"])
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
        "types": [str(x.dtype) for x in (ids, mask)],
        "shapes": [list(x.shape) for x in (ids, mask)]}


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
    grades = task.grade(args["responses"], {"answer": args["answers"]})
    return [[grade.correct, grade.score] for grade in grades]


def run_lines(module, lines, names):
    names = vars(module) | names
    linecache.cache["train"] = len(lines), None, lines.splitlines(keepends=True), "train"
    exec(compile(lines, "train", "exec"), names)
    return names


def updates(module, lines, args):
    """The update loop with plain gradient descent: the gradient with which each step is taken, the
    weights after all, and what the loop leaves behind. The rows of the tokens and the value's
    weight learn, the rest is frozen."""
    torch.manual_seed(args["seed"])
    policy = decoded(args["policy"], module)
    policy.requires_grad_(False)
    weights = [policy.lm.tokens.requires_grad_(), policy.value_head.weight.requires_grad_()]
    optimizer = torch.optim.SGD(weights, lr=args["lr"])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    gradients = []

    def record(*_):
        gradients.append([encoded(policy.lm.tokens.grad),
                          encoded(policy.value_head.weight.grad[0])])
    optimizer.register_step_pre_hook(record)
    names = run_lines(module, lines, {
        "policy": policy, "lm": policy.lm, "optimizer": optimizer, "schedule": schedule,
        "config": types.SimpleNamespace(**args["flags"]), "MAX_GRAD_NORM": args["max_grad_norm"],
        **decoded(args["rollout"], module)})
    for name in ["losses", "grad_norms", "log_ratios", "lr"]:
        if name not in names:
            raise NameError(f"it leaves no {name} behind")
    left = [p.grad.abs().max().item() for p in weights if p.grad is not None]
    return {"gradients": gradients, "grad_norms": encoded(torch.stack(names["grad_norms"])),
            "log_ratios": sorted(encoded(torch.cat(names["log_ratios"]))), "lr": names["lr"],
            "losses": encoded(torch.stack(names["losses"])), "weights": encoded(policy.lm.tokens),
            "gradient left": max(left, default=0.0)}


def models(module, lines, args):
    """Whether the reference stays where it is, and whether either has its dropout on, after the
    policy's weights have moved."""
    names = run_lines(module, lines, {"lm": decoded(args["lm"], module)})
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

    def next_questions(count, size, samples=1):
        return [i for i in args["take"] for _ in range(samples)]

    def generate_ids(lm, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None,
                     batch_size=None):
        asked.append({"prompts": [list(p) for p in prompts], "temperature": temperature})
        return [[5, 1] for _ in prompts]
    run_lines(module, lines, {
        "run": types.SimpleNamespace(next_questions=next_questions), "generator": None,
        "lm": types.SimpleNamespace(device=torch.device("cpu")), "prompts": args["prompts"],
        "eos": 1, "generate_ids": generate_ids, "config": types.SimpleNamespace(
            batch_size=len(args["take"]), samples_per_question=args["samples"], max_new_tokens=9,
            micro_batch_size=9)})
    return asked
