"""python -m course: see course/__init__.py."""

import functools
from pathlib import Path

import course
from course import bugs, grading, making
from course.catalog import assignments, variants
from course.notebook import notebook
from plumbing.cli import HOME, Parser, not_empty, number, stop


def main(argv=None):
    parser = Parser(description=course.__doc__)
    parser.add_argument("what", choices=["make", "grade", "pack", "record", "notebook"],
                        help="record: make the runs anew whose metrics `bugs` shows; notebook: "
                        "docs/first_hour.ipynb, from course/first_hour.py")
    parser.add_argument("assignment", nargs="?", metavar="ASSIGNMENT",
                        help=", ".join(assignments()))
    parser.add_argument("folder", nargs="?", help="of grade: what was handed in")
    parser.add_argument("--to", type=not_empty, help="of make: a new folder; of pack: the .zip")
    parser.add_argument("--only", type=not_empty, metavar="FUNCTION",
                        help="of grade: this one alone")
    parser.add_argument("--seed", type=functools.partial(number, int, at_least=0), default=0,
                        help="draws the shapes and numbers of the checks, and the order of the "
                        "bugs; one that nobody knows makes hidden tests")
    parser.add_argument("--variant", choices=list(variants()),
                        help="another specification of one function, and the checks to it")
    parser.add_argument("--json", type=not_empty, metavar="FILE",
                        help="of grade: write Gradescope's results.json, too")
    args = parser.parse_args(argv)
    try:
        run(args)
    except OSError as error:
        stop(f"{error.filename}: cannot write there ({error.strerror}); choose another place",
             code=1)


def run(args):
    if args.what == "record":
        bugs.record([args.assignment] if args.assignment else [])
        return
    if args.what == "notebook":
        (HOME / "docs" / "first_hour.ipynb").write_text(notebook())
        return
    if args.assignment not in assignments():
        stop(f"{' '.join(filter(None, [args.what, args.assignment]))}: choose an assignment from "
             f"{', '.join(assignments())}")
    if args.variant and variants()[args.variant][0] != args.assignment:
        stop(f"--variant {args.variant}: is of {variants()[args.variant][0]}")
    if args.what == "grade":
        if not args.folder:
            stop(f"grade {args.assignment}: name the folder that was handed in")
        if not Path(args.folder).is_dir():
            stop(f"{args.folder}: is not a folder; give the one that `course make "
                 f"{args.assignment}` made, or the one that holds what was handed in")
        graded = (bugs.grade_all(args.folder, args.seed, args.only) if args.assignment == "bugs"
                  else grading.grade_assignment(args.assignment, args.folder, args.seed, args.only,
                                                args.variant))
        grading.show(graded)
        if args.json:
            grading.save(graded, args.json)
        return
    if not args.to:
        stop(f"{args.what} {args.assignment}: say where, by --to")
    if args.what == "make":
        if args.assignment == "bugs":
            bugs.make(args.to, args.seed)
        else:
            making.make(args.assignment, args.to, args.variant)
        print(f"made: {args.to}; begin with {args.to}/HANDOUT.md")
    else:
        making.pack(args.assignment, args.to, args.seed, args.variant)
        print(f"packed: {args.to}; upload it as Gradescope's autograder")


if __name__ == "__main__":
    main()
