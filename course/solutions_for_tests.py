"""Other right solutions of the course's functions, two of each, and those of the variants. They are
written in another way than the repository's, so the checks must not ask for one way."""

SOLUTIONS = {
    "lm.py:pad": ['''
def pad(examples, device):
    left, right = max(len(p) for p, _ in examples), max(len(r) for _, r in examples)
    ids = torch.tensor([[7] * (left - len(p)) + p + r + [7] * (right - len(r))
                        for p, r in examples])
    seen = torch.tensor([[0] * (left - len(p)) + [1] * len(p + r) + [0] * (right - len(r))
                         for p, r in examples])
    mask = torch.tensor([[False] * left + [True] * len(r) + [False] * (right - len(r))
                         for _, r in examples])
    return ids.to(device), seen.to(device), mask[:, 1:].to(device)
''', '''
from torch.nn.utils.rnn import pad_sequence

def pad(examples, device):
    prompts = pad_sequence([torch.tensor(p).flip(0) for p, _ in examples], True, 1).flip(1)
    responses = pad_sequence([torch.tensor(r) for _, r in examples], True, 1)
    columns = torch.arange(prompts.shape[1] + responses.shape[1])
    starts = torch.tensor([[prompts.shape[1] - len(p)] for p, _ in examples])
    ends = torch.tensor([[prompts.shape[1] + len(r)] for _, r in examples])
    seen = (columns >= starts) & (columns < ends)
    mask = seen & (columns >= prompts.shape[1])
    ids = torch.cat([prompts, responses], 1)
    return ids.to(device), seen.long().to(device), mask[:, 1:].to(device)
'''],
    "lm.py:encode_responses": ['''
def encode_responses(tokenizer, responses):
    found = []
    for text in responses:
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        found[-1].append(tokenizer.eos_token_id)
    return found
''', '''
def with_end(ids, eos):
    return [*ids, eos]

def encode_responses(tokenizer, responses):
    ids = tokenizer([text for text in responses], add_special_tokens=False)["input_ids"]
    return [with_end(row, tokenizer.eos_token_id) for row in ids]
'''],
    "sft.py:encode_solutions": ['''
def encode_solutions(tokenizer, problems, task, context=math.inf):
    rows = []
    for prompt, solution in zip(task.prompts(problems), problems[task.column]):
        [start] = encode_prompts(tokenizer, [prompt])
        ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
        rows.append((start, ids + [tokenizer.eos_token_id]))
        if len(start) + len(rows[-1][1]) > context:
            stop("too long")
    return rows
''', '''
def encode_solutions(tokenizer, problems, task, context=float("inf")):
    ends = encode_responses(tokenizer, problems[task.column])
    starts = encode_prompts(tokenizer, task.prompts(problems))
    return [[start, end] for start, end in zip(starts, ends) if len(start + end) <= context]
'''],
    "lm.py:response_logits": ['''
def response_logits(lm, ids, attention_mask, mask, with_hidden=False):
    out = lm(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True,
             position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0))
    rows, columns = mask.nonzero(as_tuple=True)
    logits = out.logits[rows, columns].to(torch.float32)
    if not with_hidden:
        return logits
    return logits, out.hidden_states[-1][rows, columns]
''', '''
def response_logits(lm, ids, attention_mask, mask, with_hidden=False):
    positions = torch.where(attention_mask.bool(), attention_mask.cumsum(-1) - 1, 0)
    out = lm(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
             output_hidden_states=with_hidden)
    mask = F.pad(mask, (0, 1))  # the last position predicts nothing
    found = [x[mask] for x in (out.logits.float(), out.hidden_states[-1])]
    return tuple(found) if with_hidden else found[0]
'''],
    "sft.py:sft_loss": ['''
def sft_loss(model, ids, attention_mask, mask):
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention_mask, position_ids=positions).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(logprobs * mask).sum() / mask.sum()
''', '''
import torch

def sft_loss(model, ids, attention_mask, mask):
    logits = response_logits(model, ids, attention_mask, mask)
    right = logits[torch.arange(len(logits)), ids[:, 1:][mask]]
    return (logits.logsumexp(-1) - right).mean()
'''],
    "dpo.py:response_logps": ['''
from lm import response_logits

def response_logps(model, examples):
    return torch.stack([one(model, *example) for example in examples])

def one(model, prompt, response):
    ids, seen, mask = pad([(prompt, response)], model.device)
    logits = response_logits(model, ids, seen, mask)
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
''', '''
def response_logps(model, examples):
    ids, seen, mask = pad(examples, model.device)
    out = model(input_ids=ids, attention_mask=seen,
                position_ids=(seen.cumsum(-1) - 1).clamp(min=0)).logits[:, :-1]
    found = torch.log_softmax(out.float(), -1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.where(mask, found, 0).sum(1)
'''],
    "lm.py:gather_logprobs": ['''
def gather_logprobs(logits, ids, mask):
    tokens = ids[:, 1:][mask]
    found = torch.zeros(mask.shape, device=logits.device)
    found[mask] = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return found
''', '''
def gather_logprobs(logits, ids, mask):
    rows, columns = mask.nonzero(as_tuple=True)
    chosen = logits[torch.arange(len(rows)), ids[rows, columns + 1]]
    return scatter(chosen - logits.logsumexp(-1), mask)
'''],
    "lm.py:token_logprobs": ['''
def token_logprobs(lm, ids, attention_mask, mask):
    out = lm(input_ids=ids, attention_mask=attention_mask,
             position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0)).logits[:, :-1].float()
    return out.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~mask, 0)
''', '''
def token_logprobs(lm, ids, attention_mask, mask):
    logits = response_logits(lm, ids, attention_mask, mask)
    picked = F.one_hot(ids[:, 1:][mask], logits.shape[1]) * logits.log_softmax(-1)
    return scatter(picked.sum(-1), mask)
'''],
    "reft_ppo.py:PolicyWithValue.forward": ['''
class PolicyWithValue:
    def forward(self, ids, attention_mask, mask):
        logits, hidden = response_logits(self.lm, ids, attention_mask, mask, with_hidden=True)
        tokens = ids[:, 1:][mask]
        grids = [torch.zeros(mask.shape), torch.zeros(mask.shape)]
        grids[0][mask] = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
        grids[1][mask] = (hidden.float() @ self.value_head.weight.T + self.value_head.bias)[:, 0]
        return tuple(grids)
''', '''
class PolicyWithValue:
    def forward(self, ids, attention_mask, mask):
        out = self.lm(input_ids=ids, attention_mask=attention_mask, output_hidden_states=-1,
                      position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0))
        values = self.value_head(out.hidden_states[-1].float())[:, :-1, 0]
        logprobs = out.logits[:, :-1].float().log_softmax(-1)
        logprobs = logprobs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        return logprobs.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
'''],
    "reft_ppo.py:token_rewards": ['''
def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    rewards = torch.zeros_like(logprobs)
    for row in range(len(mask)):
        columns = mask[row].nonzero()[:, 0]
        rewards[row, columns] = -kl_coef * (logprobs[row, columns] - ref_logprobs[row, columns])
        rewards[row, columns[-1]] += scores[row]
    return rewards
''', '''
def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    rewards = torch.where(mask, kl_coef * (ref_logprobs - logprobs), 0)
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards))
'''],
    "reft_ppo.py:compute_gae": ['''
def compute_gae(rewards, values, mask, gamma, lam):
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for i, keep in enumerate(mask):
        columns = keep.nonzero()[:, 0].tolist()
        following, v_next = 0.0, 0.0
        for t in columns[::-1]:
            following = rewards[i, t] + gamma * v_next - values[i, t] + gamma * lam * following
            v_next = values[i, t]
            advantages[i, t], returns[i, t] = following, following + values[i, t]
    return advantages, returns
''', '''
import torch as T

def compute_gae(rewards, values, mask, gamma, lam):
    r, v = rewards * mask, values * mask
    delta = r + gamma * T.cat([v[:, 1:], T.zeros_like(v[:, :1])], 1) - v
    n = T.arange(r.shape[1])
    weights = T.where(n[:, None] >= n, (gamma * lam) ** (n[:, None] - n).clamp(min=0).to(r), 0)
    advantages = (delta * mask) @ weights * mask
    return advantages, advantages + v
'''],
    "reft_ppo.py:whiten": ['''
def whiten(x, mask):
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x - mean) ** 2 * mask).sum() / n
    return (x - mean) * mask / (variance.sqrt() + 1e-8)
''', '''
EPSILON = 1e-12

def whiten(x, mask):
    out = torch.zeros_like(x)
    out[mask] = (x[mask] - x[mask].mean()) / (x[mask].std(correction=0) + EPSILON)
    return out
'''],
    "reft_ppo.py:mean_of_means": ['''
def mean_of_means(x, mask):
    return torch.stack([row[keep].mean() for row, keep in zip(x, mask)]).mean()
''', '''
def mean_of_means(x, mask):
    weights = mask / mask.sum(1, keepdim=True) / len(mask)
    return (torch.where(mask, x, 0) * weights).sum()
'''],
    "reft_ppo.py:policy_loss": ['''
def policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    total = 0.0
    for pi, old, gain, keep in zip(logprobs, old_logprobs, advantages, mask):
        ratio = (pi[keep] - old[keep]).exp()
        bound = torch.where(gain[keep] > 0, 1 + clip_eps, 1 - clip_eps)
        kept = torch.where(gain[keep] > 0, ratio.minimum(bound), ratio.maximum(bound))
        total = total - (kept * gain[keep]).mean()
    return total / len(mask)
''', '''
def policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0))
    worse = torch.maximum(-advantages * ratio,
                          -advantages * torch.clamp(ratio, 1 - clip_eps, 1 + clip_eps))
    return (torch.where(mask, worse, 0).sum(1) / mask.sum(1)).mean()
'''],
    "reft_ppo.py:value_loss": ['''
def value_loss(values, old_values, returns, mask, clip_eps):
    near = torch.minimum(torch.maximum(values, old_values - clip_eps), old_values + clip_eps)
    errors = torch.stack([(values - returns).square(), (near - returns).square()]).amax(0)
    return mean_of_means(errors, mask) / 2
''', '''
def value_loss(values, old_values, returns, mask, clip_eps):
    rows = []
    for v, old, target, keep in zip(values, old_values, returns, mask):
        v, old, target = v[keep], old[keep], target[keep]
        near = old + torch.clamp(v - old, min=-clip_eps, max=clip_eps)
        rows.append(torch.max((v - target).abs(), (near - target).abs()).pow(2).mul(0.5).mean())
    return sum(rows) / len(rows)
'''],
    "reft_ppo.py:train/update loop": ['''
        losses, grad_norms, log_ratios, lr = [], [], [], schedule.get_last_lr()[0]
        for _ in range(config.ppo_epochs):
            order = torch.randperm(len(ids))
            for at in range(0, len(ids), config.minibatch_size):
                minibatch, parts = order[at:at + config.minibatch_size], []
                for rows in minibatch.split(config.micro_batch_size):
                    pi, v = policy(ids[rows], attention_mask[rows], mask[rows])
                    mean = policy_loss(pi, old_logprobs[rows], advantages[rows], mask[rows],
                                       config.clip_eps)
                    mean = mean + config.vf_coef * value_loss(v, old_values[rows], returns[rows],
                                                              mask[rows], config.clip_eps)
                    parts.append(mean * (rows.numel() / minibatch.numel()))
                    log_ratios.append((pi - old_logprobs[rows])[mask[rows]].detach())
                sum(parts).backward()
                losses.append(sum(parts).detach())
                grad_norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(),
                                                                 MAX_GRAD_NORM))
                optimizer.step()
                policy.zero_grad()
''', '''
        lr = schedule.get_last_lr()[0]
        losses, grad_norms, log_ratios = [], [], []
        for minibatch in [part for _ in range(config.ppo_epochs)
                          for part in torch.randperm(len(ids)).split(config.minibatch_size)]:
            optimizer.zero_grad()
            total = torch.zeros(())
            for row in minibatch:  # one at a time, whatever fits
                keep = mask[row:row + 1]
                pi, v = policy(ids[row:row + 1], attention_mask[row:row + 1], keep)
                old = old_logprobs[row:row + 1]
                loss = (policy_loss(pi, old, advantages[row:row + 1], keep, config.clip_eps)
                        + config.vf_coef * value_loss(v, old_values[row:row + 1],
                                                      returns[row:row + 1], keep, config.clip_eps))
                (loss / len(minibatch)).backward()
                total = total + loss.detach() / len(minibatch)
                log_ratios.append((pi - old).detach()[keep])
            learned = [p for p in policy.parameters() if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in learned]).norm()
            for p in learned:
                p.grad *= min(1.0, MAX_GRAD_NORM / (norm.item() + 1e-6))
            optimizer.step()
            losses.append(total)
            grad_norms.append(norm)
        optimizer.zero_grad()
'''],
    "dpo.py:dpo_loss": ['''
def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0):
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    right = F.softplus(rejected - chosen)
    wrong = F.softplus(chosen - rejected)
    return torch.lerp(right, wrong, label_smoothing), chosen.detach(), rejected.detach()
''', '''
def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0):
    h = policy_chosen_logps - policy_rejected_logps - (ref_chosen_logps - ref_rejected_logps)
    p = torch.stack([beta * h, torch.zeros_like(h)]).log_softmax(0)
    with torch.no_grad():
        rewards = [beta * (a - b) for a, b in [(policy_chosen_logps, ref_chosen_logps),
                                               (policy_rejected_logps, ref_rejected_logps)]]
    return -(1 - label_smoothing) * p[0] - label_smoothing * p[1], *rewards
'''],
    "dpo.py:ipo_loss": ['''
def ipo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta):
    ratio = policy_chosen_logps - policy_rejected_logps
    return torch.square(ratio - (ref_chosen_logps - ref_rejected_logps) - 0.5 / beta)
''', '''
def ipo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta):
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    return F.mse_loss(chosen - rejected, torch.full_like(chosen, 1 / (2 * beta)), reduction="none")
'''],
    "plumbing/data.py:make_pairs": ['''
def make_pairs(responses, n, most, by="correct"):
    counts = dict.fromkeys(["questions", "paired", "all_right", "all_wrong", "all_cut_off",
                            "responses", "cut_off", "pairs"], 0)
    pairs = []
    for at in range(0, len(responses), n):
        group = responses[at:at + n]
        counts["questions"] += 1
        counts["responses"] += n
        texts = []
        for r in group:
            if not r["ended"]:
                counts["cut_off"] += 1
            elif (r["response"], r[by]) not in texts:
                texts.append((r["response"], r[by]))
        found = [{"prompt": group[0]["prompt"], "chosen": a, "rejected": b}
                 for a, x in texts for b, y in texts if x > y]
        random.shuffle(found)
        pairs += found[:most]
        if found:
            counts["paired"] += 1
        elif not texts:
            counts["all_cut_off"] += 1
        else:
            first = next(r for r in group if r["ended"])
            counts["all_right" if first["correct"] else "all_wrong"] += 1
    counts["pairs"] = len(pairs)
    return pairs, counts
''', '''
import itertools

def make_pairs(responses, n, most, by="correct"):
    groups = [responses[at:at + n] for at in range(0, len(responses), n)]
    pairs, kinds = [], []
    for group in groups:
        ended = {r["response"]: r for r in group if r["ended"]}.values()
        both = [(a, b) for a, b in itertools.permutations(ended, 2) if a[by] > b[by]]
        kinds.append("paired" if both else "all_cut_off" if not ended else
                     "all_right" if all(r["correct"] for r in ended) else "all_wrong")
        for a, b in random.sample(both, min(len(both), most)):
            pairs.append(dict(prompt=a["prompt"], chosen=a["response"], rejected=b["response"]))
    return pairs, {"questions": len(groups), "responses": len(responses), "pairs": len(pairs),
                   "cut_off": sum(not r["ended"] for r in responses)} | {
        kind: kinds.count(kind) for kind in ["paired", "all_right", "all_wrong", "all_cut_off"]}
'''],
    "grpo.py:group_advantages": ['''
def group_advantages(scores, kind):
    n = scores.shape[1]
    if n < 2 or kind not in ("grpo", "dr-grpo", "rloo"):
        raise ValueError(kind)
    rows = []
    for row in scores:
        if (row == row[0]).all():
            rows.append(torch.zeros_like(row))
        elif kind == "rloo":
            rows.append(torch.stack([x - (row.sum() - x) / (n - 1) for x in row]))
        else:
            rows.append((row - row.mean()) / (row.std() if kind == "grpo" else 1))
    return torch.stack(rows)
''', '''
def group_advantages(scores, kind):
    count = scores.shape[1]
    if count == 1:
        raise ValueError("a group of one")
    moved = scores - scores[:, :1]
    others = torch.ones(count, count).fill_diagonal_(0).to(scores) / (count - 1)
    centred = moved - moved.mean(1, keepdim=True)
    if kind == "rloo":
        return moved - moved @ others
    if kind == "dr-grpo":
        return centred
    if kind == "grpo":
        variance = centred.square().sum(1, keepdim=True) / (count - 1)
        return torch.nan_to_num(centred / variance.sqrt())
    raise ValueError(kind)
'''],
    "grpo.py:k3": ['''
def k3(logprobs, ref_logprobs):
    ratio = torch.exp(ref_logprobs) / torch.exp(logprobs)
    return ratio - 1 - ratio.log()
''', '''
def k3(logprobs, ref_logprobs):
    return torch.expm1(ref_logprobs - logprobs) + logprobs - ref_logprobs
'''],
    "grpo.py:grpo_loss": ['''
def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef, kind,
              length=None):
    if kind not in NAMES:
        raise ValueError(kind)
    losses = []
    for pi, old, ref, keep, gain in zip(logprobs, old_logprobs, ref_logprobs, mask, advantages):
        log_ratio, kl = (pi - old)[keep], k3(pi[keep], ref[keep])
        if kind == "rloo":
            log_ratio = log_ratio.sum()
        ratio = log_ratio.exp()
        clipped = torch.min(ratio * gain, ratio.clip(1 - clip_eps, 1 + clip_eps) * gain)
        total = kl_coef * kl.sum() - clipped.sum()
        losses.append(total / {"rloo": 1, "grpo": keep.sum(), "dr-grpo": length or len(keep)}[kind])
    return torch.stack(losses).mean()
''', '''
def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef, kind,
              length=None):
    over = {"grpo": mask.sum(1), "dr-grpo": torch.full((len(mask),), length or mask.shape[1]),
            "rloo": torch.ones(len(mask))}.get(kind)
    if over is None:
        raise ValueError(f"no kind {kind}")
    def inside(x):
        return torch.where(mask, x, 0)
    gains = advantages.unsqueeze(1)
    moved = inside(logprobs - old_logprobs)
    rho = moved.sum(1, keepdim=True).exp() if kind == "rloo" else moved.exp()
    cost = torch.maximum(-rho * gains, -rho.clamp(1 - clip_eps, 1 + clip_eps) * gains)
    cost = cost.sum(1) if kind == "rloo" else inside(cost).sum(1)
    gap = inside(ref_logprobs - logprobs)
    return ((cost + kl_coef * inside(gap.exp() - gap - 1).sum(1)) / over).mean()
'''],
    "verifier.py:find_answer": ['''
def find_answer(response, choices=None):
    text = strip_prompt_and_next_question(response)
    for match in list(MARKER.finditer(text))[::-1]:
        after = text[match.end():][:SPAN]
        if LIST.match(after):
            continue
        bare = OPENING.sub("", after, count=1)
        if choices is None:
            if any(x.isdigit() for x in CLAUSE_END.split(bare, maxsplit=1)[0]):
                return match.group(), after.strip(), read_number(bare)
        else:
            letter = read_choice(bare, choices)
            if letter is not None:
                return match.group(), after.strip(), letter if letter else None
    return None
''', '''
def statements(response):
    text, found = strip_prompt_and_next_question(response), []
    for match in MARKER.finditer(text):
        found.append((match[0], text[match.end():match.end() + SPAN]))
    return found

def find_answer(response, choices=None):
    best = None
    for marker, after in statements(response):
        bare = OPENING.sub("", after, count=1)
        if choices is not None:
            letter = read_choice(bare, choices)
            best = (marker, after, letter or None) if letter is not None else best
        elif re.search(r"\\d", CLAUSE_END.split(bare, maxsplit=1)[0]) and not LIST.match(after):
            best = (marker, after, read_number(bare))
    return best
'''],
    "verifier.py:extract_answer": ['''
def extract_answer(response, cot="nl", choices=None):
    match cot, choices:
        case "nl", _:
            return (find_answer(response, choices) or (None, None, None))[2]
        case "program", None:
            return run_program(response)
        case "program", letters:
            value = run_solution(response)[0]
            if isinstance(value, str) and value.strip().lower() in list(letters.lower()):
                return value.strip().lower()
            return None
    raise ValueError(cot)
''', '''
def letter_of(value, choices):
    return next((x for x in choices.lower() if isinstance(value, str)
                 and value.strip().lower() == x), None)

def extract_answer(response, cot="nl", choices=None):
    if cot == "nl":
        found = find_answer(response, choices)
        return None if found is None else found[-1]
    if cot != "program":
        raise ValueError("nl or program")
    return run_program(response) if choices is None else letter_of(
        run_solution(response)[0], choices)
'''],
    "verifier.py:same_answer": ['''
def same_answer(extracted, answer, choices=None):
    if choices:
        return extracted is not None and extracted == answer.strip().lower()
    if extracted is None:
        return False
    a, b = Fraction(extracted), Fraction(read_number(answer))
    return abs(a - b) <= (Fraction(1, 100) if "." in extracted + read_number(answer) else 0)
''', '''
from decimal import Decimal

def same_answer(extracted, answer, choices=None):
    if extracted is None:
        return False
    if choices is not None:
        return answer.strip().lower() == extracted
    gold = read_number(answer)
    if gold is None:
        return False
    if "." not in extracted and "." not in gold:
        (p, q), (r, s) = [map(int, (x + "/1").split("/")[:2]) for x in (extracted, gold)]
        return p * s == r * q
    return abs(Fraction(extracted) - Fraction(gold)) <= Fraction(Decimal("0.01"))
'''],
    "verifier.py:score_answer": ['''
def score_answer(extracted, correct, choices=None, partial=0.1):
    if choices is not None or extracted is None:
        partial = 0.0
    return 1.0 if correct else partial
''', '''
def score_answer(extracted, correct, choices=None, partial=0.1):
    return (1.0 if correct else 0.0 if extracted is None else 0.0 if choices else partial)
''']}

VARIANTS = {
    "token-mean": {"reft_ppo.py:policy_loss": '''
def policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratio = (logprobs - old_logprobs)[mask].exp()
    gains = advantages[mask]
    return -torch.min(ratio * gains, ratio.clamp(1 - clip_eps, 1 + clip_eps) * gains).mean()
''', "reft_ppo.py:value_loss": '''
def value_loss(values, old_values, returns, mask, clip_eps):
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return torch.max((values - returns) ** 2, (clipped - returns) ** 2)[mask].mean() / 2
'''},
    "k3": {"reft_ppo.py:token_rewards": '''
def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    u = (ref_logprobs - logprobs).masked_fill(~mask, 0)
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return -kl_coef * (u.exp() - 1 - u) + scores[:, None] * last
'''},
    "bootstrapped": {"reft_ppo.py:compute_gae": '''
def compute_gae(rewards, values, mask, gamma, lam, last_values=None):
    last_values = torch.zeros(len(rewards)) if last_values is None else last_values
    out = torch.zeros_like(rewards)
    for i, keep in enumerate(mask):
        following, v_next = 0.0, last_values[i]
        for t in keep.nonzero()[:, 0].flip(0):
            following = rewards[i, t] + gamma * v_next - values[i, t] + gamma * lam * following
            out[i, t], v_next = following, values[i, t]
    return out, out + values * mask
'''},
    "length-normalised": {"dpo.py:dpo_loss": '''
def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0, chosen_tokens=1, rejected_tokens=1):
    chosen = beta * (policy_chosen_logps - ref_chosen_logps) / chosen_tokens
    rejected = beta * (policy_rejected_logps - ref_rejected_logps) / rejected_tokens
    h = chosen - rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
    return losses, chosen.detach(), rejected.detach()
'''}}
