"""Write a task's train, dev and test split as Parquet files, which verl and OpenRLHF read.

    python -m scale.make_parquet                                         # the embedded task
    python -m scale.make_parquet --task gsm8k --cot program --out out/gsm8k/parquet

verl reads the first four columns: data_source, prompt (a list with one message), reward_model
(ground_truth is the answer) and extra_info (what else scale/verl_reward.py needs). OpenRLHF reads
the last two: text, the prompt as it is, and answer.
"""

from dataclasses import dataclass
from pathlib import Path

from plumbing.cli import flag, parse
from plumbing.data import SPLITS
from verifier import choices_of, format_prompt, load_problems


@dataclass
class Config:
    task: str = flag("word_problems", "a name, a file or a folder, as in the other scripts")
    cot: str = flag("nl", "solutions in words or as programs", choices=["nl", "program"])
    limit: int = flag(None, "only the first N problems of each split", int, at_least=1)
    out: str = flag("out/parquet", "the folder that this writes")


def to_row(problem, source, cot, choices):
    """A problem as a row. source: a name that verl does not know. If it knew the name, and did not
    find our reward, it would score by a rule of its own. Now it stops."""
    prompt = format_prompt(problem["question"], cot)
    return {"data_source": source,
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "rule", "ground_truth": problem["answer"]},
            "extra_info": {"cot": cot, "choices": choices or ""},
            "text": prompt, "answer": problem["answer"]}


def main(argv=None):
    config = parse(Config, argv, __doc__)
    import datasets
    datasets.disable_progress_bars()
    out, source = Path(config.out), f"minreft/{Path(config.task).stem}"
    out.mkdir(parents=True, exist_ok=True)
    choices = choices_of(load_problems(config.task, "train"))  # of all problems, despite --limit
    for split in SPLITS:
        problems = load_problems(config.task, split, config.limit)
        datasets.Dataset.from_list([to_row(problem, source, config.cot, choices)
                                    for problem in problems]).to_parquet(out / f"{split}.parquet")
        print(f"{out / split}.parquet: {len(problems)} problems")


if __name__ == "__main__":
    main()
