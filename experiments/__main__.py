"""python -m experiments: see experiments/__init__.py."""

from functools import partial

import experiments
from experiments import harness
from plumbing.cli import Parser, number, stop


def main(argv=None):
    parser = Parser(description=experiments.__doc__.split("An experiment is")[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"one of {', '.join(harness.NAMES)}; or `check NAME`")
    parser.add_argument("--write", action="store_true",
                        help="fill the tables in README.md and docs/ from experiments/results")
    parser.add_argument("--seed", type=partial(number, int, at_least=0), default=0, help="of check")
    args = parser.parse_args(argv)
    checking = args.names[:1] == ["check"]
    names = args.names[checking:]
    for name in names:
        if name not in harness.NAMES:
            stop(f"there is no experiment {name!r}. Choose from {', '.join(harness.NAMES)}")
    if args.write:
        harness.write()
    elif checking and not names:
        stop("check: name the experiment to check, as in `check main`")
    elif checking:
        for name in names:
            harness.check(name, args.seed, "out/check")
    elif names:
        for name in names:
            seeds = harness.load(name).SEEDS
            harness.make(name, seeds, harness.ROOT)
            harness.save(name, seeds, harness.ROOT)
            print(f"saved: experiments/results/{name}.json. Next: python -m experiments --write")
    else:
        for name in harness.NAMES:
            module = harness.load(name)
            every = harness.minutes(harness.plan(name, module.SEEDS))
            todo = harness.minutes(harness.missing(name, module.SEEDS, harness.ROOT))
            print(f"{name:15} {every:4.0f} minutes, {todo:3.0f} of them to do: "
                  f"{module.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
