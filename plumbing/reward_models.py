"""Score responses by a reward model: a Hugging Face folder, AutoModelForSequenceClassification with
one label, as reward_model.py writes it."""

import torch
from torch import nn

from plumbing.cli import stop
from plumbing.models import load_model
from plumbing.packing import last_hidden, pad
from plumbing.sampling import context_of, encode_prompts


class RewardModel(nn.Module):
    """The score of a response to a prompt: a linear map of the last hidden state of its last token,
    its EOS, up to which the model has read all of it."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier  # AutoModelForSequenceClassification, num_labels=1
        self.objective = getattr(classifier.config, "objective", "pairwise")

    def forward(self, examples):
        """examples: a list of (prompt ids, response ids). Returns: scores (batch,), float32."""
        batch = pad(examples, self.classifier.device)
        hidden = last_hidden(self.classifier.base_model, *batch)  # (batch, size)
        return self.classifier.score(hidden.to(self.classifier.score.weight.dtype))[:, 0].float()


def load_reward_model(folder, device=None, dtype=None):
    """A RewardModel in eval mode, and its tokenizer. folder: a run's, a Hugging Face one or a hub
    name. Raises: SystemExit (code 2) where there is none."""
    classifier, tokenizer = load_model(folder, device, dtype, head="reward model")
    return RewardModel(classifier), tokenizer


def encode_responses(tokenizer, prompts, responses):
    """[(prompt ids, response ids)] of texts: each response ends in EOS."""
    return [(prompt, response + [tokenizer.eos_token_id]) for prompt, response in zip(
        encode_prompts(tokenizer, prompts),
        tokenizer(list(responses), add_special_tokens=False)["input_ids"], strict=True)]


@torch.no_grad()
def score(model, tokenizer, prompts, responses, batch_size=128):
    """The model's scores of responses to prompts, texts: (batch,), on the CPU. A response that was
    cut off is read as if it had ended there."""
    examples = encode_responses(tokenizer, prompts, responses)
    order = sorted(range(len(examples)), key=lambda i: sum(map(len, examples[i])))
    scores = torch.zeros(len(examples))
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        scores[rows] = model([examples[i] for i in rows]).cpu()
    return scores


def vote_weights(scores, objective):
    """The votes of n samples to one question: P(right) = sigmoid(score) where that was learned. Of
    comparisons only differences mean something: softmax, the strengths of Bradley and Terry."""
    return scores.sigmoid() if objective == "binary" else scores.softmax(-1)


def add_scores(source, responses, n, args):
    """Give each of n responses in a row to each problem (see eval.respond) `learned`, the score of
    the reward model in the folder `source`, and `weight`, its vote."""
    model, tokenizer = load_reward_model(source, args.device)
    scores = score(model, tokenizer, [r["prompt"] for r in responses],
                   [r["response"] for r in responses], args.micro_batch_size)
    weights = vote_weights(scores.view(-1, n), model.objective).flatten()
    for response, learned, weight in zip(responses, scores.tolist(), weights.tolist()):
        response |= {"learned": learned, "weight": weight}


def check_context(model, tokenizer, prompts, max_new_tokens):
    """Stop where a response and its EOS would not fit the reward model's context behind the longest
    of the prompts, {split: texts}."""
    every = [prompt for texts in prompts.values() for prompt in texts]
    longest = max(map(len, encode_prompts(tokenizer, every)))
    context = context_of(model.classifier)
    if longest + max_new_tokens + 1 > context:
        stop(f"the reward model: the longest prompt, {longest} tokens, leaves room for "
             f"{max(0, context - longest - 1)} in the model's context of {context}, fewer than "
             f"--max-new-tokens {max_new_tokens}: give at most that, or choose another")
