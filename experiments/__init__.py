"""A file for each question that the docs answer with a table, and the results behind the tables.

    python -m experiments                 # what there is, and the minutes that each takes
    python -m experiments main            # make the runs that are missing, and results/main.json
    python -m experiments check main      # make one seed anew, and compare it with the results
    python -m experiments --write         # fill the tables in README.md and docs/ from results/

An experiment is a module with
    SEEDS                   the seeds of its runs
    plan(seed)              its jobs in stages: those of one stage need nothing of each other
    collect(root, seeds)    {"rows": numbers of its runs, "bands": {what: {seed: accuracy}}, ...}
    tables(results)         {name: Markdown}, from what collect returned
    draw(root, seeds)       figures in docs/figures, where it has some
"""
