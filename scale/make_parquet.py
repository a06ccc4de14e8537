"""Write a task's train, dev and test split as Parquet files, which verl and OpenRLHF read.

    python -m scale.make_parquet                                         # the embedded task
    python -m scale.make_parquet --task gsm8k --cot program --out out/gsm8k/parquet

verl reads the first four columns: data_source, prompt (a list with one message), reward_model
(ground_truth, the answer) and extra_info (what scale/verl_reward.py needs besides). OpenRLHF reads
the last two: text, the prompt as it stands, and answer.
"""
from functools import partial
from pathlib import Path

from plumbing.cli import Parser, not_empty, number
from plumbing.data import SPLITS
from verifier import choices_of, format_prompt, load_problems


def to_row(problem, source, cot, choices):
    """A problem as a row. source: no name that verl knows. With "openai/gsm8k" it would score by a
    rule of its own where it does not find ours; with this it stops."""
    prompt = format_prompt(problem["question"], cot)
    return {"data_source": source,
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "rule", "ground_truth": problem["answer"]},
            "extra_info": {"cot": cot, "choices": choices or ""},
            "text": prompt, "answer": problem["answer"]}


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--task", type=not_empty, default="word_problems",
                        help="as in the other scripts: a name, a file or a folder")
    parser.add_argument("--cot", default="nl", choices=["nl", "program"],
                        help="solutions in words or as programs")
    parser.add_argument("--limit", type=partial(number, int, at_least=1), default=None,
                        help="only the first so many problems of each split")
    parser.add_argument("--out", type=not_empty, default="out/parquet",
                        help="the folder for the files")
    args = parser.parse_args(argv)
    import datasets
    datasets.disable_progress_bars()
    out, source = Path(args.out), f"minreft/{Path(args.task).stem}"
    out.mkdir(parents=True, exist_ok=True)
    choices = choices_of(load_problems(args.task, "train"))  # of all of it, whatever the limit
    for split in SPLITS:
        problems = load_problems(args.task, split, args.limit)
        datasets.Dataset.from_list([to_row(problem, source, args.cot, choices)
                                    for problem in problems]).to_parquet(out / f"{split}.parquet")
        print(f"{out / split}.parquet: {len(problems)} problems")


if __name__ == "__main__":
    main()
