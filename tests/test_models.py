"""Each kind of model through all three scripts; and what saves memory must not change the maths."""
import contextlib
import copy
import itertools
import json
import subprocess
import sys
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpo
import eval as evaluation
import grpo
import reft_ppo
import self_training
import sft
from eval import evaluate
from plumbing import models
from plumbing.cli import HOME
from plumbing.files import read_json, read_metrics
from plumbing.models import checkpoint_layers, load_model, load_to_train, save_model
from plumbing.packing import pad
from plumbing.sampling import encode_prompts, generate_ids
from plumbing.task_files import read_rows
from sft import sft_loss
from tests import bench_gpu
from tests.tiny import BOS, KINDS, byte_tokenizer, save_tiny, tiny_lm
from verifier import format_prompt


def write_task(folder):
    """A task so small that any model learns it: the answer is 3 or 4. And pairs in favour of 3."""
    folder.mkdir()
    questions = ["How many" + "?" * (1 + i % 8) for i in range(16)]
    for split in ["train", "dev", "test"]:
        rows = [{"question": question, "answer": f"{3 + i % 2}", "cot": f"A: {3 + i % 2}"}
                for i, question in enumerate(questions)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": format_prompt(question), "chosen": "A: 3", "rejected": "A: 4"}
             for question in questions]
    (folder / "pairs.txt").write_text("\n".join(map(json.dumps, pairs)))


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Begun before this file's other tests, beside which it runs: tests/pretend.py."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with subprocess.Popen([sys.executable, "-m", "tests.pretend", str(folder)], cwd=HOME, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        yield folder, process
        process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_main_of_every_script_takes_every_kind(kind, tmp_path, monkeypatch):
    """Warm-up, ReFT, DPO; EOS is learned and found, and what is saved loads as it was."""
    ever_better = itertools.count()  # so that the warm-up keeps its last epoch
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **how: evaluate(*args, **how) | {
        "accuracy": next(ever_better) / 100})
    base, task = save_tiny(tmp_path / "base", kind), tmp_path / "task"
    write_task(task)
    shared = [f"--task={task}", "--max-new-tokens=24", "--device=cpu"]
    sft.main([*shared, f"--model={base}", "--epochs=60", "--batch-size=4", "--lr=1e-2",
              f"--out={tmp_path / 'warmup'}"])
    learned = read_json(tmp_path / "warmup", "result.json")
    assert learned["no_answer"] == 0
    assert learned["mean_tokens"] == len("A: 3") + 1 and learned["eos_rate"] == 1

    shared.append(f"--warmup={tmp_path / 'warmup'}")
    used = set()
    for name in ["in_bfloat16", "checkpoint"]:
        monkeypatch.setattr(models, name, lambda *args, name=name, original=getattr(
            models, name), **inputs: used.add(name) or original(*args, **inputs))
    reft_ppo.main([*shared, "--steps=2", "--batch-size=8", "--minibatch-size=4", "--lr=1e-6",
                   "--micro-batch-size=3", "--generate-batch-size=5", "--dtype=bfloat16",
                   "--gradient-checkpointing", f"--out={tmp_path / 'reft'}"])
    first, second = read_metrics(tmp_path / "reft")
    assert used == {"in_bfloat16", "checkpoint"}
    assert first["samples"] == 8 and first["kl"] == 0
    assert first["reward"] > 0 and first["grad_norm"] > 0
    assert abs(second["kl"]) < 0.5 and first["approx_kl"] < 1e-4
    dpo.main([*shared, f"--pairs={task / 'pairs.txt'}", "--epochs=3", "--batch-size=8",
              "--lr=1e-4", f"--out={tmp_path / 'dpo'}"])
    metrics = read_metrics(tmp_path / "dpo")[1:]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2, at the reference
    assert metrics[-1]["margin"] > 0.01

    for name in ["warmup", "reft", "dpo"]:
        assert read_json(tmp_path / name, "result.json")["no_answer"] == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name / "model")
        assert model.dtype == torch.float32 and tokenizer.eos_token_id == 1
        [ids] = encode_prompts(tokenizer, ["Q"])
        bos = {None: [], "<bos>": [258], "<eos>": [1]}[BOS.get(kind)]  # once, where there is one
        assert ids == bos + tokenizer("Q", add_special_tokens=False)["input_ids"]


def test_encode_prompts_takes_off_an_eos_that_the_tokenizer_appends():
    tokenizer = byte_tokenizer()
    plain = encode_prompts(tokenizer, ["ab", "c"])
    tokenizer = byte_tokenizer(bos="<bos>", eos=True)
    assert tokenizer("ab")["input_ids"][-1] == 1
    assert encode_prompts(tokenizer, ["ab", "c"]) == [[258] + ids for ids in plain]


# --- what saves memory ---


def args_of(*flags):
    return sft.parse_args(["--device=cpu", *flags])


def gradient(model, batch):
    model.zero_grad()
    sft_loss(model, *batch).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


BATCH = [([2, 3, 4], [5, 6, 1]), ([7], [8, 9, 10, 11, 12, 13, 1])]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(kind, tmp_path):
    """In eval mode, in which PPO and DPO train."""
    folder, batch, kept = save_tiny(tmp_path / "m", kind), pad(BATCH, "cpu"), []

    def keep(tensor):
        kept[-1] += tensor.numel()
        return tensor
    gradients = []
    for flags in [[], ["--gradient-checkpointing"]]:
        model, _ = load_to_train(folder, args_of(*flags))
        assert not model.training
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sft_loss(model, *batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < 0.7 * kept[0]


def test_a_warmups_model_makes_room_for_the_next(tmp_path, monkeypatch):
    """Also under autocast, where it is in a cycle."""
    write_task(tmp_path / "task")
    seen, load = [], sft.load_to_train

    def spy(*args):
        model, tokenizer = load(*args)
        seen.append(weakref.ref(model))
        return model, tokenizer
    monkeypatch.setattr(sft, "load_to_train", spy)
    sft.warm_up(reft_ppo.parse_args([
        f"--model={save_tiny(tmp_path / 'm')}", f"--task={tmp_path / 'task'}", "--device=cpu",
        "--dtype=bfloat16", "--max-new-tokens=2", "--warmup-epochs=1",
        f"--out={tmp_path / 'reft'}"]))
    assert [model() for model in seen] == [None]


@pytest.mark.parametrize("script", [reft_ppo, grpo, dpo, self_training])
def test_a_reward_model_that_is_not_there_is_said_before_the_warm_up(script, tmp_path, capsys):
    write_task(tmp_path / "task")
    with pytest.raises(SystemExit):
        script.main([f"--model={save_tiny(tmp_path / 'm')}", f"--task={tmp_path / 'task'}",
                     f"--reward={tmp_path / 'nowhere'}", "--warmup-epochs=1", "--max-new-tokens=2",
                     "--device=cpu", f"--out={tmp_path / 'run'}"])
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "warmup").exists()


def test_gradient_checkpointing_is_off_without_a_gradient(tmp_path, monkeypatch):
    """It would save the state of all random generators, for each layer and each sampled token."""
    model, _ = load_to_train(save_tiny(tmp_path / "m"), args_of("--gradient-checkpointing"))
    calls = []
    monkeypatch.setattr(models, "checkpoint", lambda forward, *args, use_reentrant, **kwargs:
                        calls.append(1) or forward(*args, **kwargs))
    generate_ids(model, [[2, 3, 4]], eos_id=-1, max_new_tokens=3)
    assert not calls
    sft_loss(model, *pad(BATCH, "cpu"))
    assert len(calls) == 2  # layers


def test_gradient_checkpointing_stops_where_the_model_has_no_layers_for_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        checkpoint_layers(torch.nn.Linear(2, 2))
    assert "--gradient-checkpointing" in capsys.readouterr().err


def test_what_pytorch_may_choose_on_a_gpu():
    """Attention by cuDNN not; float32 products by TF32."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rounds_the_forward_pass_and_not_the_weights(kind, tmp_path):
    folder, batch = save_tiny(tmp_path / "m", kind), pad(BATCH, "cpu")
    exact, _ = load_to_train(folder, args_of())
    rounded, _ = load_to_train(folder, args_of("--dtype=bfloat16"))
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    a, b = gradient(exact, batch), gradient(rounded, batch)
    assert b.dtype == torch.float32 and 1e-4 < ((a - b).norm() / a.norm()).item() < 0.1
    weights = lambda: torch.cat([p.detach().flatten() for p in rounded.parameters()])
    before, steep = weights(), b.abs() > 1e-4
    torch.optim.AdamW(rounded.parameters(), lr=1e-6, weight_decay=0).step()
    moved = weights() - before
    assert (moved[steep].abs() > 5e-7).float().mean() > 0.9
    # in bfloat16 hardly one would have
    kept = (before.bfloat16() + moved.bfloat16()) == before.bfloat16()
    assert kept[steep].float().mean() > 0.9


def test_bfloat16_of_a_copy_is_the_copys_own(tmp_path):
    """ReFT's reference is a copy of the policy, and stays when the policy moves."""
    model, _ = load_to_train(save_tiny(tmp_path / "m"), args_of(
        "--dtype=bfloat16", "--gradient-checkpointing"))
    other, ids = copy.deepcopy(model), torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        before = other(input_ids=ids).logits
        for p in model.parameters():
            p.add_(1.0)
        assert torch.equal(other(input_ids=ids).logits, before)
        assert not torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_under_bfloat16_samples_are_drawn_from_rounded_weights(kind, tmp_path):
    """And from rounded keys and values; those that are learned are as they were, also where
    sampling breaks off, and the next samples are of what they have become."""
    model, _ = load_to_train(save_tiny(tmp_path / "m", kind), args_of("--dtype=bfloat16"))
    seen = []

    def look(module, args, kwargs):
        seen.append([p.detach().clone() for p in module.parameters()])
        cache = kwargs["past_key_values"]
        assert len(seen) in (1, 4, 7) or cache.layers[0].keys.dtype == torch.bfloat16
        if len(seen) == 8:
            raise KeyboardInterrupt
    model.register_forward_pre_hook(look, with_kwargs=True)
    learned = list(model.parameters())
    for p in learned:
        p.grad = torch.full_like(p, 0.1)
    for calls in [3, 6, 8]:
        before = [p.detach().clone() for p in learned]
        places = [p.data_ptr() for p in learned]
        with contextlib.suppress(KeyboardInterrupt):
            generate_ids(model, [[2, 3, 4], [5, 6]], eos_id=-1, max_new_tokens=3)
        assert len(seen) == calls
        assert all(torch.equal(x, y.bfloat16()) for x, y in zip(seen[-1], before, strict=True))
        assert all(torch.equal(p, x) for p, x in zip(learned, before))
        assert [p.data_ptr() for p in learned] == places
        torch.optim.AdamW(learned, lr=0.1).step()


def test_save_model_takes_a_tokenizer_with_a_folder_of_templates(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_model(tmp_path / "m", tiny_lm(vocab_size=300), tokenizer)
    assert any(path.is_dir() for path in (tmp_path / "m").iterdir())
    assert load_model(tmp_path / "m")[1].chat_template == tokenizer.chat_template


def test_load_model_in_bfloat16_holds_bfloat16(tmp_path):
    model, _ = load_model(save_tiny(tmp_path / "m"), "cpu", "bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_sft_main_micro_batches_give_the_batchs_gradient(tmp_path):
    """Responses of unequal length: a mean of means would not."""
    base, task = save_tiny(tmp_path / "base"), tmp_path / "task.jsonl"
    rows = [{"question": f"{i}", "answer": "3", "cot": "So " * (i % 7) + "the answer is 3."}
            for i in range(20)]
    task.write_text("\n".join(map(json.dumps, rows)))
    for size in [16, 5, 1]:
        sft.main([f"--model={base}", f"--task={task}", "--epochs=1", "--batch-size=16",
                  f"--micro-batch-size={size}", "--max-new-tokens=4", "--device=cpu",
                  f"--out={tmp_path / str(size)}"])
    whole, *others = ([{k: m[k] for k in ["loss", "grad_norm", "tokens", "questions"]}
                       for m in read_metrics(tmp_path / str(size))] for size in [16, 5, 1])
    for parts in others:
        assert parts == [pytest.approx(m, rel=1e-4) for m in whole]


def test_bench_gpu_runs_without_datasets(monkeypatch, capsys):
    """A tiny shape on the CPU: all of it but what needs a GPU's memory."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    bench_gpu.main(["--tiny"])
    printed = capsys.readouterr().out
    assert all(f"| {name}" in printed for name in [
        "generate_ids", "the same, static", "SFT", "DPO", "PPO, 8 rollouts: a step"])
    assert "Error" not in printed


def test_every_script_on_a_device_that_refuses_the_cpus_tensors(elsewhere):
    """It logs there what it logs on the CPU, and batches are packed there, too."""
    folder, process = elsewhere
    _, errors = process.communicate()
    assert process.returncode == 0 and "packed" not in errors, errors[-3000:]
    logged = [path.relative_to(folder / "cpu") for path in folder.glob("cpu/*/metrics.jsonl")]
    assert len(logged) == 10
    for path in logged:
        for one, other in zip(read_metrics((folder / "cpu" / path).parent),
                              read_metrics((folder / "auto" / path).parent), strict=True):
            assert one | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, 1e-3, 1e-5), path
    one, other = ([row["response"] for row in read_rows(path)]
                  for path in folder.glob("*/compare/generations/0-sft.jsonl"))
    assert one == other
