"""Assignments made from this repository, and a grader of students' work.

    python -m course make ppo --to ~/ppo            # a tree to work in, with the handout
    python -m course grade ppo ~/ppo                # points, and of each failure what it looks like
    python -m course pack ppo --to autograder.zip   # the same grader, as Gradescope takes it

A stub is a function of this repository without its body, made anew each time. It is graded by
what it does: by oracles that compute what is expected in another way, in a process that never
sees it, beside the repository's own code in the place of all other functions.
"""
