"""GRPO by TRL (1.16) with the rule as its reward: on many GPUs by accelerate, FSDP or DeepSpeed.

    python sft.py --epochs 5 --out out/warmup
    python -m scale.trl_grpo --model out/warmup/model               # the embedded task
    accelerate launch -m scale.trl_grpo --task gsm8k --model Qwen/Qwen2.5-0.5B --lr 3e-6

TRL has no PPO any more. In GRPO the mean score of a question's samples replaces the value.
Differs from grpo.py:
- there is no warm-up: --model is the model to start from, a run's model/ folder or a hub name
- dev chooses nothing: the last model is the model. Measure it with eval.py
- the learning rate falls linearly, and each batch of samples is used for one update
"""

import plumbing  # noqa: F401 (before torch)

from dataclasses import dataclass
from pathlib import Path

from plumbing.cli import HOME, flag, parse, stop
from verifier import format_prompt, load_problems, reward_func


@dataclass
class Config:
    model: str = flag(str(HOME / "data" / "base_model"),
                      "a Hugging Face folder or hub name, warmed up already")
    task: str = flag("word_problems", "a name, a file or a folder, as in the other scripts")
    cot: str = flag("nl", "solutions in words or as programs", choices=["nl", "program"])
    limit: int = flag(None, "train on the first N problems only", int, at_least=1)
    steps: int = flag(50, "updates", at_least=1)
    batch_size: int = flag(64, "responses per update, on each device", at_least=2)
    samples_per_question: int = flag(4, "the size of a group; it divides the batch", at_least=2)
    max_new_tokens: int = flag(100, "the longest response, in tokens", at_least=1)
    lr: float = flag(5e-4, "the first learning rate", above=0)
    kl_coef: float = flag(0.04, "the weight of the KL to the first model, in the loss; with 0 no "
                          "copy of that model is kept", at_least=0)
    gradient_checkpointing: bool = flag(False, "less memory, a third more time")
    seed: int = flag(0, "of the samples and of the order of the questions", at_least=0,
                     at_most=2**32)
    device: str = flag("auto", "auto takes the GPUs that are there", choices=["auto", "cpu"])
    out: str = flag("out/trl_grpo", "the folder that this writes")

    def __post_init__(self):
        if self.batch_size % self.samples_per_question:
            stop(f"--batch-size {self.batch_size} is not a multiple of --samples-per-question "
                 f"{self.samples_per_question}. Choose one that is")


def train(config):
    import torch
    try:
        import trl  # takes seconds, which --help need not wait for
    except ImportError:
        stop("TRL is not installed: pip install trl==1.16.0")
    problems = load_problems(config.task, "train", config.limit)
    prompts = [format_prompt(question, config.cot) for question in problems["question"]]
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    trainer = trl.GRPOTrainer(
        model=config.model, reward_funcs=reward_func,
        train_dataset=problems.add_column("prompt", prompts),
        args=trl.GRPOConfig(
            output_dir=config.out, max_steps=config.steps, learning_rate=config.lr,
            seed=config.seed, per_device_train_batch_size=config.batch_size,
            max_completion_length=config.max_new_tokens,
            num_generations=config.samples_per_question,
            loss_type="grpo",  # the mean per response, then over the batch
            beta=config.kl_coef, epsilon=0.2, temperature=1.0, top_p=1.0, top_k=0,
            gradient_checkpointing=config.gradient_checkpointing, use_cpu=cpu, bf16=not cpu,
            logging_steps=1, save_strategy="no", report_to="none"))
    trainer.train()
    trainer.save_state()  # trainer_state.json: the metrics of each step
    trainer.save_model(str(Path(config.out) / "model"))


def main(argv=None):
    train(parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
