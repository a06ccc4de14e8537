"""GRPO by TRL (1.16) with the rule as its reward: on many GPUs by accelerate, FSDP or DeepSpeed.

    python sft.py --epochs 5 --out out/warmup
    python -m scale.trl_grpo --model out/warmup/model               # the embedded task
    accelerate launch -m scale.trl_grpo --task gsm8k --model Qwen/Qwen2.5-0.5B --lr 3e-6

TRL has no PPO any more: the mean score of a question's samples stands in for the value.
Differs from grpo.py:
- there is no warm-up: --model is the model to start from, a run's model/ folder or a hub name
- dev chooses nothing: the last model is the model; measure it with eval.py
- the learning rate falls linearly, and each batch of samples is used for one update
"""
import plumbing  # noqa: F401 (before torch)

from functools import partial
from pathlib import Path

from plumbing.cli import HOME, Parser, not_empty, number, stop
from verifier import format_prompt, load_problems, reward_func


def train(args):
    import torch
    try:
        import trl  # takes seconds, which --help need not wait for
    except ImportError:
        stop("TRL is not installed: pip install trl==1.16.0")
    problems = load_problems(args.task, "train", args.limit)
    problems = problems.map(lambda row: {"prompt": format_prompt(row["question"], args.cot)})
    cpu = args.device == "cpu" or not torch.cuda.is_available()
    trainer = trl.GRPOTrainer(
        model=args.model, reward_funcs=reward_func, train_dataset=problems,
        args=trl.GRPOConfig(
            output_dir=args.out, max_steps=args.steps, learning_rate=args.lr, seed=args.seed,
            per_device_train_batch_size=args.batch_size, max_completion_length=args.max_new_tokens,
            num_generations=args.samples_per_question,
            loss_type="grpo",  # a mean per response, then over the batch
            beta=args.kl_coef, epsilon=0.2, temperature=1.0, top_p=1.0, top_k=0,
            gradient_checkpointing=args.gradient_checkpointing, use_cpu=cpu, bf16=not cpu,
            logging_steps=1, save_strategy="no", report_to="none"))
    trainer.train()
    trainer.save_state()  # trainer_state.json: the metrics of each step
    trainer.save_model(str(Path(args.out) / "model"))


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=not_empty, default=str(HOME / "data" / "base_model"),
                        help="a Hugging Face folder or hub name, warmed up already")
    parser.add_argument("--task", type=not_empty, default="word_problems",
                        help="as in the other scripts: a name, a file or a folder")
    parser.add_argument("--cot", default="nl", choices=["nl", "program"],
                        help="solutions in words or as programs")
    parser.add_argument("--limit", type=partial(number, int, at_least=1), default=None,
                        help="train on only the first so many problems")
    parser.add_argument("--steps", type=partial(number, int, at_least=1), default=50,
                        help="updates")
    parser.add_argument("--batch-size", type=partial(number, int, at_least=2), default=64,
                        help="responses an update, on each device")
    parser.add_argument("--samples-per-question", type=partial(number, int, at_least=2), default=4,
                        help="the size of a group; it divides the batch")
    parser.add_argument("--max-new-tokens", type=partial(number, int, at_least=1), default=100,
                        help="the longest response")
    parser.add_argument("--lr", type=partial(number, float, above=0), default=5e-4,
                        help="learning rate")
    parser.add_argument("--kl-coef", type=partial(number, float, at_least=0), default=0.04,
                        help="weight of the KL to the first model, in the loss; with 0 no copy of "
                        "it is kept")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="less memory for a third more time")
    parser.add_argument("--seed", type=partial(number, int, at_least=0, at_most=2**32), default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"],
                        help="auto takes the GPUs there are")
    parser.add_argument("--out", type=not_empty, default="out/trl_grpo",
                        help="the folder this writes")
    args = parser.parse_args(argv)
    if args.batch_size % args.samples_per_question:
        parser.error(f"--batch-size {args.batch_size} is no multiple of --samples-per-question "
                     f"{args.samples_per_question}: choose one that is")
    train(args)


if __name__ == "__main__":
    main()
