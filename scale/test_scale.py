"""The rule on other engines. Tests that call an engine are skipped if it is not installed:
`bash scale/install.sh .venv-scale` makes an environment in which none is skipped."""

import asyncio
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

import reft_ppo
from plumbing.cli import HOME
from plumbing.data import read_rows
from scale import make_parquet, openrlhf_reward, trl_grpo, verl_reward
from tests.tiny import byte_tokenizer, save_answers, save_tiny
from verifier import format_prompt

SCALE = HOME / "scale"

RESPONSES = [  # response, right answer, cot, choices, score by hand
    ("9 x 2 = 18. The answer is 18.", "18", "nl", "", 1.0),
    ("9 x 2 = 17. The answer is 17.", "18", "nl", "", 0.1),
    ("It is 18.", "18", "nl", "", 0.0),  # not stated as the answer
    ("The answer is $1,234.50.", "1234.5", "nl", "", 1.0),
    ("The answer is 3 or 4.", "4", "nl", "", 0.0),
    ("Half of 144 is 72.\n#### 72", "72", "nl", "", 1.0),
    (r"So it is \boxed{6/8}", "3/4", "nl", "", 1.0),
    ("", "18", "nl", "", 0.0),
    ("The answer is 18.\n\nQuestion: 2 + 3?\nAnswer:\nThe answer is 5.", "18", "nl", "", 1.0),
    ("def solution():\n    return 18", "18", "program", "", 1.0),
    ("def solution():\n    return 17", "18", "program", "", 0.1),
    ("def solution():\n    daily = 75 - 28\n    return daily * 4", "188", "program", "", 1.0),
    ("def solution():\n    return 1 / 0", "18", "program", "", 0.0),
    ("The answer is 18.", "18", "program", "", 0.0),
    ("The answer is (B).", "b", "nl", "abcde", 1.0),
    ("The answer is c.", "b", "nl", "abcde", 0.0),  # any letter is an answer: no 0.1
    ("The answer is f.", "f", "nl", "abcdef", 1.0),
]
SCORES = [score for *_, score in RESPONSES]
RIGHT = [float(score == 1) for score in SCORES]
VERL_CALLS = [{"data_source": "minreft/gsm8k", "solution_str": response, "ground_truth": answer,
               "extra_info": {"cot": cot, "choices": choices, "num_turns": 2}}
              for response, answer, cot, choices, _ in RESPONSES]


# --- The reward functions ---


def test_verl_reward_scores_by_hand():
    assert [verl_reward.compute_score(**call) for call in VERL_CALLS] == SCORES
    assert verl_reward.compute_score("x", "The answer is 17.", "18", None) == 0.1


def test_verl_reward_keeps_a_wrong_number_out_of_the_accuracy():
    assert [verl_reward.score_and_accuracy(**call) for call in VERL_CALLS] == [
        {"score": score, "acc": right} for score, right in zip(SCORES, RIGHT)]


BY_PATH = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("custom_module", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
score = module.compute_score
"""
BY_VERL = """
import json, sys
from hydra import compose, initialize_config_module
from verl.trainer.ppo.reward import get_custom_reward_fn
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", ["reward.custom_reward_function.path=" + sys.argv[1]])
    ignored = compose("ppo_trainer", ["custom_reward_function.path=" + sys.argv[1]])
assert get_custom_reward_fn(ignored) is None  # a trap: there is no error, and no function
score = get_custom_reward_fn(config)
"""


@pytest.mark.parametrize("load", [BY_PATH, BY_VERL], ids=["path", "verl"])
def test_verl_reward_is_found_from_another_folder(load, tmp_path):
    """In a new process, which has no path to the repository but that of the file."""
    if load is BY_VERL:
        pytest.importorskip("verl")
    code = load + "assert sys.argv[2] not in sys.path\n" \
                  "print(json.dumps([score(**call) for call in json.load(sys.stdin)]))"
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCALE / "verl_reward.py"), str(HOME)], cwd=tmp_path,
        input=json.dumps(VERL_CALLS), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == SCORES


@pytest.mark.parametrize("end", ["", "<eos>", "</s>", "<|im_end|>\n<|endoftext|>", "<eos><pad>"])
def test_openrlhf_reward_reads_past_special_tokens(end):
    """The prompt stands before the response, and special tokens after it."""
    prompts = [format_prompt("How many?", cot) for _, _, cot, _, _ in RESPONSES]
    queries = [prompt + row[0] + end for prompt, row in zip(prompts, RESPONSES)]
    for i, (_, answer, *_) in enumerate(RESPONSES):  # one at a time, as OpenRLHF calls it
        found = openrlhf_reward.reward_func([queries[i]], [prompts[i]], [answer])
        assert found["rewards"].tolist() == found["scores"].tolist() == pytest.approx([SCORES[i]])
        assert found["extra_logs"]["accuracy"].tolist() == [RIGHT[i]]


def test_openrlhf_reward_scores_a_batch_and_not_its_prompts():
    prompts = ["<|im_start|>user\nThe answer is 18. Why?<|im_end|>\n<|im_start|>assistant\n",
               format_prompt("How many?"), format_prompt("How many?", "program")]
    responses = ["It was so.<|im_end|>", "The answer is 17.", "def solution():\n    return 18<eos>"]
    queries = [prompt + response for prompt, response in zip(prompts, responses)]
    found = openrlhf_reward.reward_func(queries, prompts, ["18"] * 3)
    assert found["rewards"].tolist() == pytest.approx([0.0, 0.1, 1.0])


# --- The Parquet files ---

ROW = {"question": "What is 2 + 3? (a) 4 (b) 5", "cot": "2 + 3 = 5. The answer is b."}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Two folders: the embedded task's first problems as programs, and a task with letters to f."""
    folder = tmp_path_factory.mktemp("parquet")
    make_parquet.main(["--cot=program", "--limit=8", f"--out={folder}/numbers"])
    (folder / "quiz").mkdir()
    for split, letters in [("train", "ABF"), ("dev", "A"), ("test", "B")]:
        (folder / "quiz" / f"{split}.jsonl").write_text("".join(
            json.dumps(ROW | {"answer": letter}) + "\n" for letter in letters))
    make_parquet.main([f"--task={folder}/quiz", "--limit=2", f"--out={folder}/letters"])
    return folder


def rows_of(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_make_parquet_writes_the_problems(parquet):
    problems = read_rows(HOME / "data" / "word_problems" / "train.jsonl")[:8]
    prompts = [f"Question: {problem['question']}\nProgram:\n" for problem in problems]
    assert rows_of(parquet / "numbers" / "train.parquet") == [{
        "data_source": "minreft/word_problems", "prompt": [{"role": "user", "content": prompt}],
        "reward_model": {"style": "rule", "ground_truth": problem["answer"]},
        "extra_info": {"cot": "program", "choices": ""}, "text": prompt,
        "answer": problem["answer"]} for prompt, problem in zip(prompts, problems)]


@pytest.mark.parametrize("split, answers", [("train", "ab"), ("dev", "a"), ("test", "b")])
def test_make_parquet_writes_the_choices_of_all_problems(parquet, split, answers):
    rows = rows_of(parquet / "letters" / f"{split}.parquet")
    assert [row["answer"] for row in rows] == list(answers)
    assert all(row["extra_info"] == {"cot": "nl", "choices": "abcdef"} for row in rows)


# --- verl_reft.sh and verl ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model's folder, with a space in its path."""
    return save_tiny(tmp_path_factory.mktemp("a model"))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory, parquet, model):
    """The arguments that the script gives to python, after bash has read them."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (folder / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", SCALE / "verl_reft.sh", "trainer.seed_of_mine=1"], cwd=folder, check=True,
        capture_output=True, text=True, env={
            "PATH": f"{folder}:{os.environ['PATH']}", "MODEL": model, "DATA": f"{parquet}/letters"})
    head, module, *settings, last, end = done.stdout.split("\0")
    assert [head, module, last, end] == ["-m", "verl.trainer.main_ppo", "trainer.seed_of_mine=1",
                                         ""]
    return settings


def test_verl_reft_has_the_values_of_reft_ppo(overrides):
    config, found = reft_ppo.Config(), dict(line.split("=", 1) for line in overrides)
    actor = "actor_rollout_ref.actor."
    for key, value in {
            "algorithm.gamma": config.gamma, "algorithm.lam": config.lam,
            "algorithm.kl_ctrl.kl_coef": config.kl_coef, f"{actor}clip_ratio": config.clip_eps,
            f"{actor}clip_ratio_low": config.clip_eps, f"{actor}clip_ratio_high": config.clip_eps,
            "critic.cliprange_value": config.clip_eps, "data.train_batch_size": config.batch_size,
            f"{actor}ppo_mini_batch_size": config.minibatch_size,
            f"{actor}ppo_epochs": config.ppo_epochs, "actor_rollout_ref.rollout.n": 1,
            "actor_rollout_ref.rollout.temperature": 1}.items():
        assert float(found[key]) == value, key
    assert found["reward.custom_reward_function.path"] == str(SCALE / "verl_reward.py")
    assert callable(getattr(verl_reward, found["reward.custom_reward_function.name"]))


def test_verl_reft_asks_for_the_model():
    done = subprocess.run(["bash", SCALE / "verl_reft.sh"], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0 and "MODEL" in done.stderr


def test_verl_reft_template_adds_nothing_to_the_prompt(overrides):
    [template] = [line.split("=", 1)[1][1:-1] for line in overrides if "chat_template" in line]
    prompt = format_prompt("Is 3 < 5 & \"so\" {{ on }}?")
    assert byte_tokenizer().apply_chat_template(
        [{"role": "user", "content": prompt}], chat_template=template, tokenize=False,
        add_generation_prompt=True) == prompt


def compose_config(settings):
    """verl's configuration with these overrides. hydra refuses a key that it does not know."""
    pytest.importorskip("verl")
    from hydra import compose, initialize_config_module
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=settings)


@pytest.fixture(scope="module")
def config(overrides):
    return compose_config(overrides)


def test_verl_knows_each_key_of_verl_reft(overrides, config):
    from omegaconf import OmegaConf
    for key, value in (line.split("=", 1) for line in overrides):
        found = OmegaConf.select(config, key, default="missing")
        assert found != "missing", key
        if re.fullmatch("[-0-9.e]+|True|False", value):
            assert float(found) == float({"True": 1, "False": 0}.get(value, value)), key
    with pytest.raises(Exception, match="clip_ratios"):
        compose_config([*overrides, "actor_rollout_ref.actor.clip_ratios=1"])


def test_verl_knows_each_key_that_the_page_names(config):
    from omegaconf import OmegaConf
    page = (HOME / "docs" / "scale.md").read_text() + "trainer.critic_warmup="
    keys = re.findall(r"[` ]((?:actor_rollout_ref|critic|data|reward|trainer)(?:\.\w+)+)[=`]", page)
    assert len(keys) >= 5
    for key in keys:
        assert OmegaConf.select(config, key, default="missing") != "missing", key


def test_verl_validates_the_configuration(config, model):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    assert need_critic(config) and need_reference_policy(config)
    validate_config(config, use_reference_policy=True, use_critic=True)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.model).path == model
    critic = omega_conf_to_dataclass(config.critic)  # it takes these values from the actor
    assert (critic.ppo_epochs, critic.ppo_mini_batch_size, critic.loss_agg_mode) == (
        2, 128, "seq-mean-token-mean")


def test_verl_stops_if_it_does_not_find_our_reward(config, parquet):
    """If it knew the name of the data, it would score by a rule of its own."""
    from verl.utils.reward_score import default_compute_score
    [row, *_] = rows_of(parquet / "letters" / "dev.parquet")
    with pytest.raises(NotImplementedError):
        default_compute_score(row["data_source"], "The answer is a.", "a", row["extra_info"])


def test_verl_reward_manager_scores_by_hand(config):
    """From token ids, with the EOS, to a score and the accuracy."""
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager
    tokenizer = byte_tokenizer()

    async def score_all():
        manager, found = load_reward_manager(config, tokenizer), []
        for call in VERL_CALLS:
            ids = torch.tensor([tokenizer(call["solution_str"] + "<eos>")["input_ids"]])
            columns = {"data_source": call["data_source"], "extra_info": call["extra_info"],
                       "reward_model": {"ground_truth": call["ground_truth"]}}
            found.append(await manager.run_single(DataProto.from_dict(
                {"responses": ids, "attention_mask": torch.ones_like(ids)},
                {name: numpy.array([x], dtype=object) for name, x in columns.items()})))
        return found

    found = asyncio.run(score_all())
    assert [result["reward_score"] for result in found] == SCORES
    assert [result["reward_extra_info"]["acc"] for result in found] == RIGHT


def test_verl_prompt_has_our_tokens(config):
    """From the Parquet file, by verl's data set and the script's template, to token ids."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.dataset.rl_dataset import RLHFDataset
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
    tokenizer = omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
    rows = RLHFDataset(config.data.train_files, tokenizer, config.data)
    builder = create_continuous_token_builder(tokenizer, hf_model_type="llama")
    assert len(rows) == 2 and builder.build_initial_tokens(rows[0]["raw_prompt"]) == tokenizer(
        f"Question: {ROW['question']}\nAnswer:\n")["input_ids"]


def test_verl_losses_are_those_of_reft_ppo(config):
    """With the script's values, and ratios and values that have moved far."""
    from verl.trainer.ppo import core_algos
    from verl.utils.config import omega_conf_to_dataclass
    actor, algorithm, critic = config.actor_rollout_ref.actor, config.algorithm, config.critic
    torch.manual_seed(0)
    mask = torch.arange(12) < torch.tensor([12, 3, 1, 7, 12])[:, None]
    old, new, ref, old_values, values = torch.randn(5, *mask.shape)
    new, values, scores = old + 2 * new, old_values + values, torch.tensor([1, 0.1, 0, 1, 0.1])

    is_last = mask & ~torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    kl = core_algos.kl_penalty(old, ref, algorithm.kl_penalty) * mask
    rewards = scores[:, None] * is_last - algorithm.kl_ctrl.kl_coef * kl
    torch.testing.assert_close(rewards, reft_ppo.token_rewards(scores, old, ref, mask, 0.05))

    theirs, returns = core_algos.compute_gae_advantage_return(
        rewards, old_values, mask.float(), algorithm.gamma, algorithm.lam)
    advantages, ours = reft_ppo.compute_gae(rewards, old_values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns[mask], ours[mask])
    count, white = mask.sum(), reft_ppo.whiten(advantages, mask)  # theirs: the unbiased variance
    torch.testing.assert_close(theirs[mask], white[mask] * ((count - 1) / count).sqrt())

    loss, metrics = core_algos.compute_policy_loss_vanilla(
        old, new, white, mask.float(), actor.loss_agg_mode, omega_conf_to_dataclass(actor))
    torch.testing.assert_close(loss, reft_ppo.policy_loss(new, old, white, mask, 0.2))
    assert metrics["actor/pg_clipfrac_lower"] == 0  # no second clip
    loss, _ = core_algos.compute_value_loss(values, ours, old_values, mask.float(),
                                            critic.cliprange_value, critic.loss_agg_mode)
    torch.testing.assert_close(loss, reft_ppo.value_loss(values, old_values, ours, mask, 0.2))


# --- OpenRLHF ---

COMMAND = re.search(r"train_ppo_ray(.*?)\n\n", openrlhf_reward.__doc__, re.S)[1]
FLAGS = shlex.split(COMMAND.replace("\\", " "))
FLAGS = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True))


class FakeEngine:
    """Stands for vLLM: every request gets these token ids."""

    def __init__(self, ids):
        output = SimpleNamespace(token_ids=ids, finish_reason="stop")
        self.request = SimpleNamespace(outputs=[output])

    async def generate(self, *args, **kwargs):
        return self.request


def test_openrlhf_executor_gets_the_scores(monkeypatch, tmp_path):
    for name in ["openrlhf", "pylatexenc", "aiohttp"]:  # itself, and what it imports
        pytest.importorskip(name)
    agent = importlib.import_module("openrlhf.utils.agent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(HOME))])
    executor = agent.SingleTurnAgentExecutor([str(SCALE / "openrlhf_reward.py")])
    tokenizer, sampling = byte_tokenizer(), SimpleNamespace(max_tokens=200, logprobs=None)
    for (response, answer, cot, _, score), right in zip(RESPONSES, RIGHT):
        ids = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
        found = asyncio.run(executor.execute(format_prompt("How many?", cot), answer, sampling,
                                             1000, tokenizer, FakeEngine(ids)))
        assert float(found["reward"]) == pytest.approx(score)
        assert found["extra_logs"]["accuracy"].tolist() == [right]


def test_openrlhf_reads_the_parquet_columns(parquet):
    preprocess = pytest.importorskip("openrlhf.datasets.prompts_dataset").preprocess_data
    [row, *_] = datasets.Dataset.from_parquet(str(parquet / "numbers" / "train.parquet"))
    prompt, label = preprocess(row, input_key=FLAGS["--data.input_key"],
                               label_key=FLAGS["--data.label_key"])
    assert prompt.endswith("after 4 days?\nProgram:\n") and label == "188"


def test_openrlhf_knows_each_flag_of_the_command():
    """Read from its source, because importing it needs vLLM."""
    pytest.importorskip("openrlhf")
    source = Path(importlib.util.find_spec("openrlhf.cli.train_ppo_ray").origin).read_text()
    assert len(FLAGS) == 18
    assert FLAGS.keys() <= set(re.findall(r'add_argument\(\s*"(--[\w.]+)"', source))


# --- TRL ---


def test_trl_grpo_needs_a_batch_of_whole_groups(capsys):
    with pytest.raises(SystemExit):
        trl_grpo.main(["--batch-size=10", "--samples-per-question=4"])
    assert "--batch-size 10" in capsys.readouterr().err


def test_trl_grpo_trains_two_steps(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    reward_func, seen = trl_grpo.reward_func, []

    def record(completions, prompts, **kwargs):
        seen.extend(prompts)
        return reward_func(completions, prompts=prompts, **kwargs)

    monkeypatch.setattr(trl_grpo, "reward_func", record)
    model = save_answers(tmp_path / "answers")  # most of its responses score 0.1 or 1
    AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16").save_pretrained(model)
    trl_grpo.main([f"--model={model}", "--steps=2", "--batch-size=8", "--max-new-tokens=8",
                   "--limit=8", "--device=cpu", f"--out={tmp_path}/run"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    rewards = [log["rewards/record/mean"] for log in state["log_history"] if "reward" in log]
    assert len(rewards) == 2 and all(0.05 < x <= 1 for x in rewards)
    assert len(seen) == 16 and all(prompt.startswith("Question: ") for prompt in seen)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert trained.dtype == torch.float32
