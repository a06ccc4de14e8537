"""Each file here answers one question; the docs show the answers as tables.

    python -m experiments                 # list the experiments, and how long each takes
    python -m experiments main            # make the missing runs, then results/main.json
    python -m experiments check main      # re-run one seed, and compare it with the results
    python -m experiments --write         # fill the tables in README.md and docs/ from results/

An experiment is a module with
    SEEDS                   the seeds of its runs
    JOBS                    its runs; USES: folders of other experiments' runs that it reads, too
    collect(root, seeds)    {"rows": numbers of its runs, "bands": {what: {seed: accuracy}}, ...}
    tables(results)         {name: Markdown}, from what collect returned
    draw(root, seeds)       figures in docs/figures, if it has some
    problems(name)          {split: rows} of a task of its own, if it has some
"""
