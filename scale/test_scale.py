"""The rule on other engines. What calls an engine is skipped where that is not installed:
bash scale/install.sh .venv-scale makes an environment where nothing is skipped."""
import asyncio
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import datasets
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

import reft_ppo
from plumbing.cli import HOME
from scale import make_parquet, openrlhf_reward, trl_grpo, verl_reward
from tests.test_house import FLOOR, imported
from tests.tiny import byte_tokenizer, save_answers, save_tiny
from verifier import format_prompt, reward

SCALE = HOME / "scale"

RESPONSES = [  # response, right answer, cot, choices, score
    ("9 x 2 = 18. The answer is 18.", "18", "nl", "", 1.0),
    ("9 x 2 = 17. The answer is 17.", "18", "nl", "", 0.1),
    ("It is 18.", "18", "nl", "", 0.0),  # not stated as the answer
    ("The answer is $1,234.50.", "1234.5", "nl", "", 1.0),
    ("The answer is 3 or 4.", "4", "nl", "", 0.0),
    ("Half of 144 is 72.\n#### 72", "72", "nl", "", 1.0),
    (r"So it is \boxed{6/8}", "3/4", "nl", "", 1.0),
    ("The answer is nan.", "18", "nl", "", 0.0),
    ("", "18", "nl", "", 0.0),
    ("The answer is 18.\n\nQuestion: 2 + 3?\nAnswer:\nThe answer is 5.", "18", "nl", "", 1.0),
    ("def solution():\n    return 18", "18", "program", "", 1.0),
    ("def solution():\n    return 17", "18", "program", "", 0.1),
    ("def solution():\n    daily = 75 - 28\n    return daily * 4", "188", "program", "", 1.0),
    ("def solution():\n    return 1 / 0", "18", "program", "", 0.0),
    ("def solution():\n    return '$18.00'", "18", "program", "", 1.0),
    ("The answer is 18.", "18", "program", "", 0.0),
    ("The answer is (B).", "b", "nl", "abcde", 1.0),
    ("The answer is c.", "b", "nl", "abcde", 0.0),  # any letter is an answer: no 0.1
    ("The answer is (a) or (b).", "b", "nl", "abcde", 0.0),
    ("The answer is f.", "f", "nl", "abcdef", 1.0),
]
SCORES = [score for *_, score in RESPONSES]


def as_verl_calls_it():
    """The responses, as the keywords that verl calls a reward function by."""
    return [{"data_source": "minreft/gsm8k", "solution_str": response, "ground_truth": answer,
             "extra_info": {"cot": cot, "choices": choices, "num_turns": 2,
                            "rollout_reward_scores": {}}}
            for response, answer, cot, choices, _ in RESPONSES]


# --- The rule, without an engine ---


def test_the_expected_scores_are_the_rules():
    assert len(RESPONSES) == 20 and {*SCORES} == {1.0, 0.1, 0.0}
    assert SCORES == [reward(response, answer, cot, choices or None)
                      for response, answer, cot, choices, _ in RESPONSES]


def test_verl_reward_scores_by_hand():
    assert [verl_reward.compute_score(**call) for call in as_verl_calls_it()] == SCORES
    assert verl_reward.compute_score("x", "The answer is 17.", "18") == 0.1
    assert verl_reward.compute_score("x", "The answer is 17.", "18", {}) == 0.1


def test_verl_reward_keeps_a_wrong_number_out_of_the_accuracy():
    found = [verl_reward.score_and_accuracy(**call) for call in as_verl_calls_it()]
    assert [result["score"] for result in found] == SCORES
    assert [result["acc"] for result in found] == [float(score == 1) for score in SCORES]


def elsewhere(code, folder):
    """What a new process prints as JSON that is given the 20 calls, runs in `folder` and knows no
    path to the repository but that of the file."""
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCALE / "verl_reward.py"), str(HOME)], cwd=folder,
        input=json.dumps(as_verl_calls_it()), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BY_PATH = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("custom_module", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert sys.argv[2] not in sys.path
print(json.dumps([module.compute_score(**call) for call in json.load(sys.stdin)]))
"""


def test_verl_reward_finds_the_repository_from_elsewhere(tmp_path):
    assert elsewhere(BY_PATH, tmp_path) == SCORES


@pytest.mark.parametrize("end", ["", "<eos>", "</s>", "<|im_end|>\n<|endoftext|>", "<eos><pad>"])
def test_openrlhf_reward_scores_by_hand(end):
    """A response at a time, as OpenRLHF does: the prompt before it, special tokens after it."""
    for response, answer, cot, _, score in RESPONSES:
        prompt = format_prompt("How many?", cot)
        found = openrlhf_reward.reward_func([prompt + response + end], [prompt], [answer])
        assert found["rewards"].tolist() == found["scores"].tolist() == pytest.approx([score])
        assert found["extra_logs"]["accuracy"].tolist() == [float(score == 1)]


def test_openrlhf_reward_reads_no_answer_in_the_prompt():
    prompt = "<|im_start|>user\nThe answer is 18. Why?<|im_end|>\n<|im_start|>assistant\n"
    for response, score in [("So it was told.<|im_end|>", 0.0), ("The answer is 18.", 1.0)]:
        found = openrlhf_reward.reward_func([prompt + response], [prompt], ["18"])
        assert found["rewards"].tolist() == [score]


def test_openrlhf_reward_scores_a_batch():
    prompts = [format_prompt("How many?", cot) for cot in ["nl", "program"]]
    queries = [prompts[0] + "The answer is 17.", prompts[1] + "def solution():\n    return 18<eos>"]
    found = openrlhf_reward.reward_func(queries, prompts, ["18", "18"])
    torch.testing.assert_close(found["rewards"], torch.tensor([0.1, 1.0]))


# --- The files ---

ROW = {"question": "What is 2 + 3? (a) 4 (b) 5", "cot": "2 + 3 = 5. The answer is b.",
       "answer": "B"}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The embedded task's first problems as programs, and a task with letters up to f: folders."""
    folder = tmp_path_factory.mktemp("parquet")
    make_parquet.main(["--cot=program", "--limit=8", f"--out={folder}/numbers"])
    (folder / "quiz").mkdir()
    for split, letters in [("train", "ABF"), ("dev", "A"), ("test", "B")]:
        (folder / "quiz" / f"{split}.jsonl").write_text("".join(
            json.dumps(ROW | {"answer": letter}) + "\n" for letter in letters))
    make_parquet.main([f"--task={folder}/quiz", "--limit=2", f"--out={folder}/letters"])
    return folder


def test_parquet_columns_round_trip(parquet):
    table = pyarrow.parquet.read_table(parquet / "numbers" / "train.parquet")
    prompt = ("Question: Daily, Gus picks 75 marbles and eats 28. By how many has the pile grown "
              "after 4 days?\nProgram:\n")
    assert len(table) == 8
    assert table.slice(0, 1).to_pylist() == [{
        "data_source": "minreft/word_problems", "prompt": [{"role": "user", "content": prompt}],
        "reward_model": {"style": "rule", "ground_truth": "188"},
        "extra_info": {"cot": "program", "choices": ""}, "text": prompt, "answer": "188"}]


@pytest.mark.parametrize("split, answers", [("train", "ab"), ("dev", "a"), ("test", "b")])
def test_parquet_has_the_choices_of_the_whole_task(parquet, split, answers):
    rows = pyarrow.parquet.read_table(parquet / "letters" / f"{split}.parquet").to_pylist()
    assert [row["answer"] for row in rows] == list(answers)
    for row in rows:
        assert row["extra_info"] == {"cot": "nl", "choices": "abcdef"}
        assert row["text"] == f"Question: {ROW['question']}\nAnswer:\n"
        score = verl_reward.compute_score(
            row["data_source"], f"The answer is {row['answer']}.",
            row["reward_model"]["ground_truth"], row["extra_info"])
        assert score == 1.0


# --- The settings of verl_reft.sh ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model's folder, with a space in its name."""
    return save_tiny(tmp_path_factory.mktemp("a model"))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory, parquet, model):
    """The arguments that the script hands to python, as bash makes them."""
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
    args, found = reft_ppo.Config(), dict(line.split("=", 1) for line in overrides)
    assert len(found) == len(overrides) > 40
    actor = "actor_rollout_ref.actor."
    for key, value in {
            "algorithm.gamma": args.gamma, "algorithm.lam": args.lam,
            "algorithm.kl_ctrl.kl_coef": args.kl_coef, f"{actor}clip_ratio": args.clip_eps,
            f"{actor}clip_ratio_low": args.clip_eps, f"{actor}clip_ratio_high": args.clip_eps,
            "critic.cliprange_value": args.clip_eps, "data.train_batch_size": args.batch_size,
            f"{actor}ppo_mini_batch_size": args.minibatch_size or 128,
            f"{actor}ppo_epochs": args.ppo_epochs, "actor_rollout_ref.rollout.n": 1,
            "actor_rollout_ref.rollout.temperature": 1}.items():
        assert float(found[key]) == value, key
    assert found["reward.custom_reward_function.path"] == str(SCALE / "verl_reward.py")
    assert callable(getattr(verl_reward, found["reward.custom_reward_function.name"]))
    assert not any(key.startswith("custom_reward_function") for key in found)


def test_verl_reft_asks_for_what_it_needs():
    done = subprocess.run(["bash", SCALE / "verl_reft.sh"], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0 and "MODEL" in done.stderr


def test_verl_reft_has_a_template_that_adds_nothing_to_the_prompt(overrides):
    [template] = [line.split("=", 1)[1][1:-1] for line in overrides if "chat_template" in line]
    prompt = format_prompt("Is 3 < 5 & \"so\" {{ on }}?")
    assert byte_tokenizer().apply_chat_template(
        [{"role": "user", "content": prompt}], chat_template=template, tokenize=False,
        add_generation_prompt=True) == prompt


@pytest.mark.parametrize("path", sorted(x for x in SCALE.glob("*.*")
                                               if not x.name.startswith("test_")), ids=lambda path: path.name)
def test_a_file_of_scale_is_short_and_imports_from_below(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 250 and max(map(len, lines)) <= 100
    if path.suffix == ".py":
        assert all(FLOOR.get(name, 0) < FLOOR["scale"] for name in imported(path))


# --- verl ---


@pytest.fixture(scope="module")
def verl():
    verl = pytest.importorskip("verl", reason="verl is not installed")
    pytest.importorskip("hydra", reason="hydra is not installed")
    return verl


def composed(settings):
    """verl's configuration with these overrides: hydra refuses a key that is not in it."""
    from hydra import compose, initialize_config_module
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=settings)


@pytest.fixture(scope="module")
def config(verl, overrides):
    return composed(overrides)


def test_verl_knows_each_key_of_verl_reft(verl, overrides, config):
    from omegaconf import OmegaConf
    missing = object()
    for key, value in (line.split("=", 1) for line in overrides):
        found = OmegaConf.select(config, key, default=missing)
        assert found is not missing, key
        if re.fullmatch("[-0-9.e]+|True|False", value):
            assert float(found) == float({"True": 1, "False": 0}.get(value, value)), key


@pytest.mark.parametrize("key", ["reward.custom_reward_function.paths", "actor.clip_ratio",
                                 "algorithm.kl_coef", "critic.ppo_epoch", "data.seed_of_mine"])
def test_verl_refuses_a_key_that_it_does_not_know(verl, overrides, key):
    from hydra.errors import ConfigCompositionException
    with pytest.raises(ConfigCompositionException):
        composed([*overrides, f"{key}=1"])


def test_verl_knows_each_key_that_the_page_names(config):
    from omegaconf import OmegaConf
    keys = re.findall(r"[` ]((?:actor_rollout_ref|critic|data|reward|trainer)(?:\.\w+)+)[=`]",
                      (HOME / "docs" / "scale.md").read_text() + "trainer.critic_warmup=")
    assert len(keys) >= 5
    for key in keys:
        assert OmegaConf.select(config, key, default="missing") != "missing", key


def test_verl_takes_the_configuration_as_a_whole(config, model):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    assert need_critic(config) and need_reference_policy(config)
    validate_config(config, use_reference_policy=True, use_critic=True)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.model).path == model
    critic = omega_conf_to_dataclass(config.critic)  # these it takes over from the actor
    assert (critic.ppo_epochs, critic.ppo_mini_batch_size, critic.loss_agg_mode) == (
        2, 128, "seq-mean-token-mean")


VERLS_LOADER = """
import json, sys
from hydra import compose, initialize_config_module
from verl.trainer.ppo.reward import get_custom_reward_fn
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", ["reward.custom_reward_function.path=" + sys.argv[1]])
    ignored = compose("ppo_trainer", ["custom_reward_function.path=" + sys.argv[1]])
assert get_custom_reward_fn(ignored) is None  # the trap: no error, and no function
score = get_custom_reward_fn(config)
print(json.dumps([score(**call) for call in json.load(sys.stdin)]))
"""


def test_verl_loads_the_reward_from_elsewhere(verl, tmp_path):
    assert elsewhere(VERLS_LOADER, tmp_path) == SCORES


def test_verl_stops_where_it_does_not_find_our_reward(verl, parquet):
    """Of a name that it knows it would make a score of its own."""
    from verl.utils.reward_score import default_compute_score
    [row, *_] = pyarrow.parquet.read_table(parquet / "letters" / "dev.parquet").to_pylist()
    with pytest.raises(NotImplementedError):
        default_compute_score(row["data_source"], "The answer is a.", "a", row["extra_info"])


def test_verls_reward_manager_scores_by_hand(config):
    """Token ids in, with the EOS; a score and the accuracy out."""
    import numpy as np
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager
    tokenizer = byte_tokenizer()

    async def scored():
        manager = load_reward_manager(config, tokenizer)
        for call in as_verl_calls_it():
            ids = torch.tensor([tokenizer(call["solution_str"] + "<eos>")["input_ids"]])
            columns = {"data_source": call["data_source"], "extra_info": call["extra_info"],
                       "reward_model": {"ground_truth": call["ground_truth"]}}
            yield await manager.run_single(DataProto.from_dict(
                {"responses": ids, "attention_mask": torch.ones_like(ids)},
                {name: np.array([x], dtype=object) for name, x in columns.items()}))

    async def gathered():
        return [result async for result in scored()]
    found = asyncio.run(gathered())
    assert [result["reward_score"] for result in found] == SCORES
    assert [result["reward_extra_info"]["acc"] for result in found] == [
        float(score == 1) for score in SCORES]


def test_verls_prompt_is_ours_to_the_token(config):
    """From the Parquet file by verl's data set and verl's template to the ids that it samples
    from."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.dataset.rl_dataset import RLHFDataset
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
    tokenizer = omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
    rows = RLHFDataset(config.data.train_files, tokenizer, config.data)
    assert len(rows) == 2
    builder = create_continuous_token_builder(tokenizer, hf_model_type="llama")
    assert builder.build_initial_tokens(rows[0]["raw_prompt"]) == tokenizer(
        f"Question: {ROW['question']}\nAnswer:\n")["input_ids"]


def test_verls_losses_are_ours(config):
    """With the script's values: KL in the reward, GAE, clipped losses and their means, where ratios
    and values have moved far."""
    from verl.trainer.ppo import core_algos
    from verl.utils.config import omega_conf_to_dataclass
    actor, algorithm, critic = config.actor_rollout_ref.actor, config.algorithm, config.critic
    torch.manual_seed(0)
    mask = torch.arange(12) < torch.tensor([12, 3, 1, 7, 12])[:, None]
    old, new, reference, values, moved = torch.randn(5, *mask.shape)
    new, scores = old + 2 * new, torch.tensor([1.0, 0.1, 0.0, 1.0, 0.1])

    last = mask & ~torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    kl = core_algos.kl_penalty(old, reference, algorithm.kl_penalty) * mask
    rewards = scores[:, None] * last - algorithm.kl_ctrl.kl_coef * kl
    torch.testing.assert_close(rewards, reft_ppo.token_rewards(scores, old, reference, mask, 0.05))

    advantages, returns = core_algos.compute_gae_advantage_return(
        rewards, values, mask.float(), algorithm.gamma, algorithm.lam)
    raw, ours = reft_ppo.compute_gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns[mask], ours[mask])
    count = mask.sum()  # verl's deviation is the unbiased one
    white = reft_ppo.whiten(raw, mask)
    torch.testing.assert_close(advantages[mask], white[mask] * ((count - 1) / count).sqrt())

    loss, metrics = core_algos.compute_policy_loss_vanilla(
        old, new, white, mask.float(), actor.loss_agg_mode, omega_conf_to_dataclass(actor))
    torch.testing.assert_close(loss, reft_ppo.policy_loss(new, old, white, mask, 0.2))
    assert metrics["actor/pg_clipfrac_lower"] == 0  # no second clip
    loss, _ = core_algos.compute_value_loss(values + moved, ours, values, mask.float(),
                                            critic.cliprange_value, critic.loss_agg_mode)
    torch.testing.assert_close(loss, reft_ppo.value_loss(values + moved, values, ours, mask, 0.2))


# --- OpenRLHF ---


@pytest.fixture(scope="module")
def openrlhf():
    for name in ["openrlhf", "pylatexenc", "aiohttp"]:  # itself, and what it imports
        pytest.importorskip(name, reason=f"{name} is not installed")
    return importlib.import_module("openrlhf.utils.agent")


class Engine:
    """What stands in vLLM's place: it answers with these ids."""

    def __init__(self, ids):
        self.output = type("Output", (), {"token_ids": ids, "finish_reason": "stop"})

    async def generate(self, *args, **kwargs):
        return type("Request", (), {"outputs": [self.output]})


def test_openrlhfs_executor_gets_its_dictionary(openrlhf, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(HOME))])
    executor = openrlhf.SingleTurnAgentExecutor([str(SCALE / "openrlhf_reward.py")])
    tokenizer = byte_tokenizer()
    sampling = type("Sampling", (), {"max_tokens": 200, "logprobs": None})
    for response, answer, cot, _, score in RESPONSES:
        ids = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
        found = asyncio.run(executor.execute(format_prompt("How many?", cot), answer, sampling,
                                             1000, tokenizer, Engine(ids)))
        assert torch.tensor([found["reward"]]).tolist() == pytest.approx([score])
        assert found["scores"].shape == (1,)
        assert found["extra_logs"]["accuracy"].tolist() == [float(score == 1)]


def test_openrlhf_reads_the_parquet_columns(openrlhf, parquet):
    from openrlhf.datasets.prompts_dataset import preprocess_data
    flags = dict(zip(FLAGS[::2], FLAGS[1::2]))
    rows = datasets.Dataset.from_parquet(str(parquet / "numbers" / "train.parquet"))
    prompt, label = preprocess_data(rows[0], input_key=flags["--data.input_key"],
                                    label_key=flags["--data.label_key"])
    assert prompt.endswith("after 4 days?\nProgram:\n") and label == "188"


FLAGS = shlex.split(re.search(r"train_ppo_ray(.*?)\n\n", openrlhf_reward.__doc__,
                              re.S)[1].replace("\\", " "))


def test_openrlhf_knows_each_flag_of_the_command(openrlhf):
    """By its source: importing the script takes vLLM."""
    source = importlib.util.find_spec("openrlhf.cli.train_ppo_ray").origin
    with open(source) as file:
        known = set(re.findall(r'add_argument\(\s*"(--[\w.]+)"', file.read()))
    assert len(FLAGS) == 36 and set(FLAGS[::2]) <= known


# --- TRL ---


def test_trl_grpo_shows_its_help(capsys):
    with pytest.raises(SystemExit):
        trl_grpo.main(["--help"])
    assert "--samples-per-question" in capsys.readouterr().out


def test_trl_grpo_wants_a_batch_of_whole_groups(capsys):
    with pytest.raises(SystemExit):
        trl_grpo.main(["--batch-size=10", "--samples-per-question=4"])
    assert "--batch-size 10" in capsys.readouterr().err


def test_trl_grpo_trains_two_steps(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="TRL is not installed")
    rule, seen = trl_grpo.reward_func, []

    def reward_func(completions, prompts, **kwargs):
        seen.extend(prompts)
        return rule(completions, prompts=prompts, **kwargs)
    monkeypatch.setattr(trl_grpo, "reward_func", reward_func)
    model = save_answers(tmp_path / "answers")  # whose responses score 0.1 or 1, but for a few
    AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16").save_pretrained(model)
    trl_grpo.main([f"--model={model}", "--steps=2", "--batch-size=8", "--max-new-tokens=8",
                   "--limit=8", "--device=cpu", f"--out={tmp_path}/run"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "reward" in entry]
    assert len(logged) == 2
    assert all(0.05 < entry["rewards/reward_func/mean"] <= 1 for entry in logged)
    assert len(seen) == 16  # two of them the same four times, in each step
    assert {prompt[:10] + prompt[-10:] for prompt in seen} == {"Question: ?\nAnswer:\n"}
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert trained.dtype == torch.float32
