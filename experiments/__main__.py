"""python -m experiments: see experiments/__init__.py."""

import experiments
from experiments import harness
from plumbing.cli import Parser, number, stop


def main(argv=None):
    parser = Parser(description=experiments.__doc__.split("An experiment is")[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"one of {', '.join(harness.NAMES)}; or `check NAME`")
    parser.add_argument("--write", action="store_true",
                        help="fill the tables in README.md and docs/ from experiments/results")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of check")
    args = parser.parse_args(argv)
    checking, names = args.names[:1] == ["check"], args.names[args.names[:1] == ["check"]:]
    for name in names:
        if name not in harness.NAMES:
            stop(f"there is no experiment {name!r}: choose from {', '.join(harness.NAMES)}")
    if args.write:
        harness.write()
    elif checking:
        if not names:
            stop("check: name the experiment to check, as in `check main`")
        for name in names:
            harness.check(name, args.seed, "out/check")
    elif names:
        for name in names:
            module = harness.load(name)
            harness.make(name, module.SEEDS, harness.ROOT)
            harness.save(name, module.SEEDS, harness.ROOT)
            print(f"saved: experiments/results/{name}.json; python -m experiments --write fills "
                  "the tables")
    else:
        for name in harness.NAMES:
            module = harness.load(name)
            every = [stage for seed in module.SEEDS for stage in module.plan(seed)]
            todo = harness.missing(name, module.SEEDS, harness.ROOT)
            print(f"{name:15} {harness.minutes(every):4.0f} minutes, "
                  f"{harness.minutes(todo):3.0f} of them to do: "
                  f"{module.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
