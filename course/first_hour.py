# %% [markdown]
# # A first hour with ReFT
#
# A model of 0.2M parameters solves word problems. First it imitates solutions (the warm-up). Then
# it samples its own, a rule scores them, and PPO makes the right ones likelier: that is ReFT. You
# will run it, look at what the model writes before and after, read the rule, plot the run, and see
# what each token of a rollout got. No GPU, no account, ten minutes of computing at most.
#
# In a clone of minReFT, run the cells from top to bottom. On a hosted notebook, first make a clone
# in a cell of its own, `!git clone ADDRESS minReFT`.

# %%
import os
import subprocess
import sys
from pathlib import Path

places = [Path("."), Path(".."), Path("minReFT")]
home = next((path for path in places if (path / "reft_ppo.py").exists()), None)
if home is None:
    raise SystemExit("There is no clone of minReFT here: make one with !git clone ADDRESS minReFT")
os.chdir(home)
sys.path.insert(0, os.getcwd())
os.environ["TQDM_DISABLE"] = "1"


def run(command):
    """A command as in a terminal; the end of what it prints."""
    done = subprocess.run(command, shell=True, text=True, capture_output=True)
    print((done.stdout + done.stderr)[-6000:])


# torch is there on hosted notebooks; the rest has to be of the versions that minReFT is tested with
run("grep -v '^torch\\|^pytest' requirements.txt > /tmp/needed.txt")
run("pip install -q -r /tmp/needed.txt")

# %% [markdown]
# ## The task and the rule
#
# A problem has a question, an answer, and for the warm-up a solution to imitate.

# %%
from verifier import explain, load_problems

train = load_problems("word_problems", "train")
for row in train.select(range(3)):
    print(row["question"], "\n   ", row["cot"], "\n")

# %% [markdown]
# The rule reads an answer that is *stated*, compares it with the known one, and scores: 1 for
# right, 0.1 for another number, 0 for none. What would you expect of the third?

# %%
for response in ["47 + 28 = 75. The answer is 75.", "47 + 28 = 65. The answer is 65.",
                 "47 + 28 = 75."]:
    for step, outcome in explain(response, "75"):
        print(f"{step:14}{outcome}")
    print()

# %% [markdown]
# ## Run it
#
# Five epochs of SFT, then forty steps of PPO: each samples a response to 256 questions, scores
# them, and makes four updates. About two minutes.

# %%
run("python reft_ppo.py --steps 40 --eval-every 10 --out out/first_hour/reft --overwrite")

# %% [markdown]
# ## Before and after
#
# The same questions of the test split, which neither model has seen, answered greedily.

# %%
import json

from eval import respond
from lm import load_model
from verifier import Task, choices_of

test = load_problems("word_problems", "test").select(range(4))
task = Task("word_problems", choices=choices_of(test))
for name, folder in [("warm-up", "warmup"), ("ReFT", "reft")]:
    model, tokenizer = load_model(f"out/first_hour/{folder}/model", "cpu")
    for r in respond(model, tokenizer, test, task):
        print(f"{name:8} {'right' if r['correct'] else 'WRONG'}  {r['response']}")

# %% [markdown]
# How do the solutions differ? Where do the warm-up's go wrong? Nobody showed the model which of the
# annotators' two styles to prefer: it found out which one it can carry out.
#
# ## The run
#
# `metrics.jsonl` has a line a step.

# %%
import matplotlib.pyplot as plt

metrics = Path("out/first_hour/reft/metrics.jsonl").read_text()
rows = [json.loads(line) for line in metrics.splitlines()]
figure, axes = plt.subplots(1, 4, figsize=(15, 3))
for ax, key in zip(axes, ["reward", "kl", "response_tokens", "clip_fraction"]):
    ax.plot([row["step"] for row in rows], [row[key] for row in rows])
    ax.set(title=key, xlabel="step")

# %% [markdown]
# Reward rises, and with it the length: careful solutions are longer. KL is the distance from the
# warm-up. What would each curve do if the KL penalty had the wrong sign? (There is an assignment
# about that: `python -m course make bugs --to bugs`.)
#
# ## What does one token get?
#
# A rollout of the third question, token by token: log pi, the KL, the reward, V, the advantage, and
# the ratio after one update.

# %%
run("python explain.py out/first_hour/reft --question 3 --html out/first_hour/ledger.html")

# %%
from IPython.display import HTML

HTML(Path("out/first_hour/ledger.html").read_text())

# %% [markdown]
# ## What next
#
# - Change one thing and run again: `--kl-coef 0.5`, `--lam 0.95`, `--warmup-epochs 1`. What do you
#   expect?
# - Write one of the functions yourself: `python -m course make credit --to credit`, then
#   `python -m course grade credit credit`.
# - Read `reft_ppo.py` from top to bottom, with the paper beside it.
