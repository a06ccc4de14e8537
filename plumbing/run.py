"""One training run, from its flags to its result: what a `train` needs that is no algorithm.

    run = Run(args, "SFT")                     # stops where --out must not be written
    run.begin(model, tokenizer, [model, optimizer, schedule], ...)
    for step in run.steps():                   # with --resume, from where the last checkpoint was
        ...
        run.update(model, optimizer)           # clip the gradient, step, zero; or stop: not finite
        run.log(metrics)                       # and measure on dev, where it is time for that
    run.finish(measure, ...)                   # the best model; test, once; figure, result.json

Checkpoints are written after whole steps: every --save-every, at the last one, and at Ctrl-C and
SIGTERM. The best model is written when it is found, beside them.
"""

import random
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from plumbing import files
from plumbing.checkpoints import (best_model, catch_signals, checkpoints, fail, load_checkpoint,
                                  lock, save_checkpoint, set_random_state)
from plumbing.models import peak_memory_mb, save_model
from plumbing.tables import accuracy_table, percent


class Run:
    """Attributes: step, the one under way, 0 before the first; order, numbers of the examples still
    to come (see take) or in this epoch's order (see batch); best, the best evaluation on dev and
    its step; first, the evaluation before the first step, where there was one; facts."""

    def __init__(self, args, name):
        """Stops where a run of these flags may not write its --out. name: the algorithm's."""
        self.args, self.out, self.name, self.start = args, args.out, name, time.time()
        files.claim(args)

    def going_on(self):
        """Whether begin() will take over a checkpoint."""
        return self.args.resume and bool(checkpoints(self.out))

    def begin(self, model, tokenizer, parts, total, effective_batch, eval_every, measure, order=(),
              shows=(), criterion="dev_accuracy", measure_first=False, cost=None, facts=None):
        """Open the folder; or with --resume, take over its last checkpoint.

        Args:
            model, tokenizer: what to measure and save.
            parts: all that has a state: modules, the optimizer, its schedule, torch.Generators.
            effective_batch: the examples that one optimizer step learns from.
            measure: () -> metrics on dev, by the `criterion` among which the best model is chosen.
            shows: metrics to show behind the progress bar.
            measure_first: whether to measure before the first step, too.
            cost: what that model's data have cost, to be logged with it as step 0.
            facts: what else belongs in result.json.
        """
        self.model, self.tokenizer, self.parts = model, tokenizer, parts
        self.total, self.measure = total, measure
        self.eval_every, self.shows, self.criterion = eval_every, shows, criterion
        values = dict(order=list(order), best=None, first={}, facts=facts or {})
        self.step, self.random, self.values, self.saved_at = 0, None, values.keys(), time.time()
        files.make_folder(self.out)
        lock(self.out)
        saved = load_checkpoint(self.out, parts, self.values) if self.args.resume else None
        if saved:
            self.step, self.random, values = saved["step"], saved["random"], saved["values"]
            self.start -= saved["seconds"]
        vars(self).update(values)
        if not saved:
            files.open_run(self.out, vars(self.args), effective_batch)
            self.args.resume = True  # if it has to go on with less memory: see guarded
            if measure_first:
                self.first = self.evaluate()
            if cost:
                files.log_step(self.out, {"step": 0} | cost | self.first)

    def steps(self):
        """The numbers of the steps still to take; saves in between."""
        if self.random:
            set_random_state(self.random)
        caught, let_go = catch_signals()
        with tqdm(desc=f"{self.name} {self.out}", total=self.total, initial=self.step,
                  unit="step") as self.bar:
            for step in range(self.step + 1, self.total + 1):
                self.step, self.began = step, time.time()
                yield step
                self.bar.update()
                if caught or self.time_to_save() or step == self.total:
                    self.saved_at = time.time()
                    save_checkpoint(self.out, step, {
                        "seconds": self.seconds(),
                        "parts": [part.state_dict() if hasattr(part, "state_dict") else
                                  part.get_state() for part in self.parts],
                        "values": {name: getattr(self, name) for name in self.values}},
                        self.args.keep_checkpoints)
                if caught:
                    tqdm.write(f"{self.out}: interrupted, and saved after step {step} of "
                               f"{self.total}; the same command with --resume goes on",
                               file=sys.stderr)
                    raise SystemExit(128 + caught[0])
        let_go()

    def time_to_save(self):
        every = self.args.save_every
        if isinstance(every, str):  # "10m"
            return time.time() - self.saved_at >= 60 * float(every[:-1])
        return self.step % every == 0

    def batch(self, size):
        """The step's epoch, from 1, and its examples: `size` numbers of `order`, all of which come
        once an epoch, each time in another order."""
        epoch, start = divmod(self.step - 1, -(-len(self.order) // size))
        if start == 0:
            random.shuffle(self.order)
        return epoch + 1, self.order[start * size:(start + 1) * size]

    def take(self, count, size):
        """The next `count` of `size` questions, by number: over and over, each pass in an order of
        its own, what is left of which stands in `order`."""
        while len(self.order) < count:
            self.order += random.sample(range(size), size)
        taken, self.order = self.order[:count], self.order[count:]
        return taken

    def update(self, model, optimizer, suspects):
        """Clip the gradient to --max-grad-norm, step, zero. Returns the gradient's norm, before.

        Stops before the weights change where the norm is NaN or infinite, and names the first of
        the suspects() that is: [(what, tensor (batch, ...), the training rows of its batch or None,
        the cause or None)].
        """
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        if not grad_norm.isfinite():
            self.blame([*suspects(), ("the gradient's norm", grad_norm, None, None)])
        optimizer.step()
        optimizer.zero_grad()
        return grad_norm

    def blame(self, suspects):
        what, values, rows, cause = next(s for s in suspects if not s[1].isfinite().all())
        place = tuple((~values.isfinite()).nonzero()[0].tolist())
        row = f" of training row {rows[place[0]] + 1}" if rows is not None else ""
        if cause is None and self.step == 1 and not any(
                isinstance(part, torch.optim.Optimizer) and part.state for part in self.parts):
            cause = "As nothing has been learned yet, the model itself overflows there"
        elif cause is None:
            cause = f"Probably --lr {self.args.lr:g} is too high: try a tenth of it"
        if self.args.dtype != "float32":
            cause += ", or --dtype float32"
        fail(self.out, f"{self.out}, step {self.step}: {what}{row} is {values[place].item()}. "
             f"{cause}. The weights are as they were before this update")

    def evaluate(self):
        """Measure the model on dev, and keep it if it is the best so far."""
        measured = self.measure()
        if self.best is None or measured[self.criterion] > self.best[self.criterion]:
            self.best = {"step": self.step} | measured
            save_model(best_model(self.out, self.step), self.model, self.tokenizer)
        return measured

    def log(self, metrics, samples=None):
        """Write a line of metrics.jsonl: the step, its seconds, metrics, and where it is time, an
        evaluation on dev, with which the texts of samples() are shown."""
        metrics = {"step": self.step, "seconds": time.time() - self.began} | metrics
        if self.step % self.eval_every == 0 or self.step == self.total:
            metrics |= self.evaluate()
            for text in samples() if samples else []:
                tqdm.write(text)
        files.log_step(self.out, metrics)
        best = {"dev": f"{self.best['dev_accuracy']:.1%}"} if self.best else {}
        shown = {name: f"{metrics[name]:.3g}" for name in self.shows if name in metrics}
        self.bar.set_postfix(shown | best, refresh=False)

    def seconds(self):
        """Since the run began, without the time between being stopped and resumed."""
        return time.time() - self.start

    def finish(self, measure, count, start=None, unit="problems", draw=None,
               diagnose=None, proposals=(), **more):
        """Save the best model and measure it on test, once; draw; say what happened; result.json.

        Args: measure, model -> metrics on test; count of test `unit`s; start, () -> the model
            before the first step; draw, result -> curves.png; diagnose, metrics.jsonl -> sentences;
            proposals, what to run next; more, for result.json.
        """
        best = type(self.model).from_pretrained(best_model(self.out, self.best["step"]),
                                                dtype=self.model.dtype)
        self.model.load_state_dict(best.state_dict())
        save_model(Path(self.out) / "model", self.model, self.tokenizer)
        measured = ({"warm-up": measure(start())} if start else {}) | {
            self.name: measure(self.model)}
        after = measured[self.name]
        result = {"test_accuracy": after["accuracy"], "dev_accuracy": self.best["dev_accuracy"],
                  "best_step": self.best["step"]}
        if start:
            result |= {"warmup_test_accuracy": measured["warm-up"]["accuracy"],
                       "warmup_dev_accuracy": self.first["dev_accuracy"]}
        result |= self.facts | more | {
            "seed": self.args.seed, "steps": self.total, "seconds": self.seconds(),
            "peak_memory_mb": peak_memory_mb(self.model.device.type),
            **{name: x for name, x in after.items() if name != "accuracy"}}
        if draw:
            draw(result)
        if start:
            gain = 100 * (after["accuracy"] - measured["warm-up"]["accuracy"])
            print(f"\n{accuracy_table(measured, count)}\n\n{self.name}: {gain:+.1f} points over "
                  f"its warm-up on {count} test {unit}, at step {self.best['step']} of "
                  f"{self.total}, in {self.seconds() / 60:.1f} minutes and "
                  f"{result['peak_memory_mb']:,} MB.")
        else:
            print(f"{self.name}: step {self.best['step']} of {self.total} is the best on dev "
                  f"({self.best['dev_accuracy']:.1%}); on test it has "
                  f"{percent(after['accuracy'], count)}")
        for sentence in diagnose(files.read_metrics(self.out)) if diagnose else []:
            print(f"warning: {sentence}")
        print(f"saved: model, metrics.jsonl, result.json{' and curves.png' * bool(draw)} in "
              f"{self.out}")
        for first, proposal in zip(["next: "] + [" " * 6] * len(proposals), proposals):
            print(first, proposal)
        files.write_json(self.out, "result.json", result)
