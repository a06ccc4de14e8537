"""One training run: its folder, its steps, its checkpoints, its end.

    run = Run(config, "SFT")                        # stops if --out must not be written
    run.restore(model=model, optimizer=optimizer)   # with --resume: the last checkpoint
    for step in run.steps(total):                   # saves after every --save-every steps
        ...
        run.log(metrics)
    run.finish(...)                                 # figure, advice, result.json
"""

import dataclasses
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from plumbing.checkpoints import (checkpoints, load_checkpoint, log_step, read_best, read_json,
                                  read_metrics, save_checkpoint, save_model, write_json)
from plumbing.cli import HOME, as_argv, as_flag, command, stop

# Flags that do not decide what is learned, but for rounding: a resumed run may change them
NOT_SETTINGS = {"out", "resume", "overwrite", "save_every", "device", "micro_batch_size",
                "gradient_checkpointing"}
SOURCES = ["model", "warmup", "task", "pairs", "reward"]  # flags that may name files
WRITTEN = ["model", "model.tmp", "model.old", "checkpoint", "samples", "metrics.jsonl",
           "result.json"]
SHOWN = ["reward", "kl", "response_tokens", "epoch", "loss", "margin"]  # behind the progress bar


class Run:
    """Attributes: step, 0 before the first; best, the dev metrics of the best model and its step;
    first, the dev metrics before the first step; order, the numbers of the examples to come;
    facts, what else result.json gets. The last three are part of a checkpoint."""

    def __init__(self, config, name):
        """Stop if this run must not write --out. name: what people call the algorithm."""
        self.config, self.out, self.name, self.began = config, Path(config.out), name, time.time()
        self.lock = lock_folder(self.out)
        check_output_folder(config)
        self.step, self.best, self.first, self.order, self.facts = 0, None, {}, [], {}
        self.step_seconds, self.bar = 0.0, None

    def is_resumed(self):
        """Whether restore() will load a checkpoint."""
        return self.config.resume and bool(checkpoints(self.out))

    def restore(self, **parts):
        """Open the folder; with --resume, load the last checkpoint. parts: whatever has a state:
        modules, the optimizer, its schedule, torch.Generators."""
        self.parts, saved = parts, load_checkpoint(self.out, parts) if self.is_resumed() else None
        if saved:
            self.step, values = saved
            self.best = read_best(self.out / "model")
            self.first, self.order, self.facts = (values[x] for x in ("first", "order", "facts"))
            self.began -= values["seconds"]
            print(f"resuming {self.out} after step {self.step}")
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_json(self.out / "config.json", describe(self.config))
        (self.out / "metrics.jsonl").touch()

    def steps(self, total):
        """The numbers of the steps still to take; saves checkpoints in between."""
        self.total, signals = total, []

        def ask_to_stop(number, frame):
            if signals:  # the second one stops at once
                raise KeyboardInterrupt
            signals.append(number)
            tqdm.write("stopping after this step; again to stop at once", file=sys.stderr)

        usual = catch_signals(ask_to_stop)
        try:
            with tqdm(desc=f"{self.name} {self.out}", total=total, initial=self.step,
                      unit="step") as self.bar:
                for step in range(self.step + 1, total + 1):
                    self.step, self.step_began = step, time.time()
                    yield step
                    self.bar.update()
                    if signals or step % self.config.save_every == 0 or step == total:
                        save_checkpoint(self.out, step, self.parts, {
                            "seconds": self.seconds(), "first": self.first, "order": self.order,
                            "facts": self.facts})
                    if signals:
                        tqdm.write(f"{self.out}: saved after step {step} of {total}. The same "
                                   "command with --resume continues", file=sys.stderr)
                        raise SystemExit(128 + signals[0])
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def seconds(self):
        """Since the run began, without the time between stop and resume."""
        return time.time() - self.began

    def next_questions(self, count, size, samples=1):
        """The numbers of the next `count` of `size` questions, each `samples` times in a row. Each
        pass over all questions has its own random order."""
        while len(self.order) < count:
            self.order += random.sample(range(size), size)
        taken, self.order = self.order[:count], self.order[count:]
        return [i for i in taken for _ in range(samples)]

    def next_batch(self, batch_size, size):
        """The epoch of this step, from 1, and the numbers of its examples, of `size` in all. Each
        epoch shuffles them, and its last batch may be smaller."""
        epoch, at = divmod(self.step - 1, -(-size // batch_size))
        self.order = self.order or list(range(size))
        if len(self.order) != size:
            stop(f"--resume: {self.out} was begun with {len(self.order)} examples, and there are "
                 f"{size} now. Restore them, or use --overwrite to begin the run again")
        if at == 0:
            random.shuffle(self.order)
        return epoch + 1, self.order[at * batch_size:(at + 1) * batch_size]

    def time_to_evaluate(self, every):
        """Whether to measure on dev in this step. This time is not counted in its seconds."""
        self.step_seconds = time.time() - self.step_began
        return self.step % every == 0 or self.step == self.total

    def keep_best(self, model, tokenizer, dev, metric, value_head=None):
        """Save the model if `metric` is higher than ever; a tie keeps the earlier one. Returns dev,
        the metrics on dev, for the log."""
        if self.step == 0:
            self.first = dev
        if self.best is None or dev[metric] > self.best[metric]:
            self.best = {"step": self.step} | dev
            save_model(self.out / "model", model, tokenizer, self.best, value_head)
        return dev

    def print_samples(self, prompts, texts, grades):
        """The first responses of a step."""
        for prompt, text, grade in zip(prompts, texts, grades):
            tqdm.write(f"\nstep {self.step}: score {grade.score:.1f}\n{prompt}{text}")

    def log(self, metrics):
        """Write a line of metrics.jsonl, and show what matters behind the progress bar."""
        log_step(self.out, {"step": self.step, "seconds": self.step_seconds} | metrics)
        shown = {name: f"{metrics[name]:.3g}" for name in SHOWN if name in metrics}
        best = {"dev": f"{self.best['dev_accuracy']:.1%}"} if self.best else {}
        if self.bar is not None:  # in step 0 there is none
            self.bar.set_postfix(dict(list(shown.items())[:3]) | best, refresh=False)

    def load_best(self, model):
        """Give the model the weights that were the best on dev."""
        best = type(model).from_pretrained(self.out / "model", dtype=model.dtype)
        model.load_state_dict(best.state_dict())

    def finish(self, test, count, warmup=None, unit="problems", compare_with=(), **facts):
        """Say what happened and what to run next; draw; write result.json; remove the checkpoint.

        Args: test and warmup, metrics of the best model and of the warm-up on `count` test `unit`;
            compare_with, scripts to run next; facts, what else result.json gets.
        """
        from plumbing import report
        result = {"test_accuracy": test["accuracy"], "dev_accuracy": self.best["dev_accuracy"],
                  "best_step": self.best["step"]}
        if warmup:
            result |= {"warmup_test_accuracy": warmup["accuracy"],
                       "warmup_dev_accuracy": self.first["dev_accuracy"]}
        result |= self.facts | facts | {
            "seed": self.config.seed, "steps": self.total, "seconds": self.seconds(),
            "peak_memory_mb": peak_memory_mb(),
            **{name: x for name, x in test.items() if name != "accuracy"}}
        report.summarize(self, result, test, warmup, count, unit, compare_with)
        write_json(self.out / "result.json", result)
        shutil.rmtree(self.out / "checkpoint", ignore_errors=True)


def run_safely(train, config):
    """Run train(config). What can go wrong in any run ends in one sentence, not in a traceback."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a model may write anything
    saved = "the same command with --resume continues from the last checkpoint"
    try:
        return train(config)
    except KeyboardInterrupt:
        tqdm.write("interrupted" + f"; {saved}" * bool(checkpoints(config.out)), file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # nobody reads the output any more, as after `| head`
        raise SystemExit(1) from None
    except OSError as error:
        stop(f"{error.filename or config.out}: {error.strerror or error}. Mend that" + (
            f", then {saved}" if checkpoints(config.out) else ""), code=1)
    except (MemoryError, RuntimeError) as error:
        if "non-finite" in str(error):
            stop(f"{config.out}: the gradient of the step after {last_step(config.out)} is not "
                 "finite. The weights are as before that step. Start again with a tenth of --lr "
                 f"{config.lr:g}, or with --dtype float32", code=1)
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        half = max(1, config.micro_batch_size // 2)
        begun = is_begun(config.out) or warmup_is_begun(config)
        again = command(sys.argv[0], as_argv(config, micro_batch_size=half, **(
            {"resume": True, "overwrite": False} if begun else {})))
        stop("out of memory. " + (
            f"Continue with half the micro-batch: {again}" if half < config.micro_batch_size else
            "The micro-batch is 1 already: try --gradient-checkpointing, --dtype bfloat16, a "
            "smaller --max-new-tokens, or a smaller --model"), code=1)


def last_step(out):
    metrics = read_metrics(out) if (Path(out) / "metrics.jsonl").exists() else []
    return metrics[-1]["step"] if metrics else 0


# --- May a run write its folder? ---


def lock_folder(out):
    """Keep other processes from writing `out` as long as the returned file is open."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    file = open(Path(tempfile.gettempdir()) / f"minreft-{os.getuid()}-{name}.lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(f"--out {out}: another process is writing there. Wait for it, or choose another "
             "folder")
    return file


def check_output_folder(config):
    """Stop if another run is in --out, or if there is none to resume. Nothing is written."""
    flags, out = vars(config), Path(config.out)
    resume = config.resume
    if "warmup" in flags:
        warmup = warmup_folder(config)
        if out.resolve() == Path(warmup).resolve():
            stop(f"--out {out}: the warm-up is there. Choose another folder")
        if warmup_is_begun(config) and not is_begun(out):
            resume = False  # until the warm-up is finished, --resume means that one
    for name in SOURCES:
        source = Path(flags.get(name) or HOME).resolve()
        if out.resolve() in (source, *source.parents):
            stop(f"--out {out}: --{name} is there, and would be overwritten. Choose another folder")
    existing = next(path for path in [out.resolve(), *out.resolve().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        stop(f"--out {out}: cannot write there. Choose another folder")
    if config.overwrite:
        return
    if not (out / "config.json").exists():
        found = [name for name in WRITTEN if (out / name).exists()]
        if found:
            stop(f"--out {out} holds {found[0]}, but no config.json that says which run made it. "
                 "Choose another folder, or add --overwrite to replace it")
        if resume:
            stop(f"--resume: there is no run in {out}. Leave --resume out, or name its folder with "
                 "--out")
        return
    other = config_diff(out, config)
    if other:
        stop(f"--out {out} holds a run with other settings: {', '.join(other[:3])}. " + (
            "--resume needs the same settings" if resume else
            "Choose another folder, or add --overwrite to replace that run"))
    if is_finished(out):
        if resume:
            print(f"{out} is finished already")
            raise SystemExit(0)
        stop(f"--out {out} holds a finished run with these settings. Choose another folder, or add "
             "--overwrite to make it again")
    if not resume and checkpoints(out):
        stop(f"--out {out} holds an unfinished run with these settings. Add --resume to continue "
             "it, or --overwrite to begin again")


def is_finished(out) -> bool:
    return (Path(out) / "result.json").exists()


def is_begun(out) -> bool:
    """Whether the folder holds an unfinished run."""
    return (Path(out) / "config.json").exists() and not is_finished(out)


def resolve_model_path(path):
    """The model folder of a finished run, or `path` itself, a folder or a hub name."""
    folder = Path(path)
    if is_begun(folder) and (folder / "metrics.jsonl").exists():
        stop(f"{path} is an unfinished run. Finish it with --resume, or name its best model so "
             f"far, {folder / 'model'}")
    if is_finished(folder):
        return str(folder / "model")
    if path.startswith(("./", "../", "/", "out/")) and not folder.exists():
        stop(f"{path}: there is no such folder. Name a finished run, or a model")
    if not folder.exists() and not os.environ.get("HF_HUB_OFFLINE"):
        tqdm.write(f"{path} is not a folder here: looking for it on the hub", file=sys.stderr)
    return path


def warmup_folder(config) -> str:
    """The model that a run starts from: --warmup, or the run `warmup` beside --out."""
    return config.warmup or str(Path(config.out).parent / "warmup")


def warmup_is_begun(config) -> bool:
    """Whether the warm-up that this run makes is unfinished."""
    return getattr(config, "warmup", "none") is None and is_begun(warmup_folder(config))


def settings(flags: dict) -> dict:
    """The flags that decide what is learned. Paths in this repository may move with it."""
    return {name: value.removeprefix(f"{HOME}/") if isinstance(value, str) else value
            for name, value in flags.items() if name not in NOT_SETTINGS}


def flags_of(path) -> dict:
    """The flags of the finished run in a folder; {} if it holds a mere model."""
    return read_json(Path(path) / "config.json").get("flags", {}) if is_finished(path) else {}


def config_diff(out, config) -> list[str]:
    """How the run in `out` differs from this configuration, in words."""
    old = settings(read_json(Path(out) / "config.json").get("flags", {}))
    new = settings(vars(config) | ({"warmup": warmup_folder(config)} if "warmup" in vars(config)
                                   else {}))
    return [f"{as_flag(name)} is {old.get(name)} there and {new.get(name)} here"
            for name in {**old, **new} if old.get(name) != new.get(name)]


def describe(config) -> dict:
    """What config.json holds."""
    import datasets
    import transformers
    flags = dataclasses.asdict(config)
    if "warmup" in flags:
        flags["warmup"] = warmup_folder(config)
    rollout = flags.get("batch_size", 1) * flags.get("samples_per_question", 1)
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HOME, capture_output=True,
                                text=True).stdout.strip()
    except OSError:
        commit = ""
    return {"flags": flags, "effective_batch": min(rollout, flags.get("minibatch_size", rollout)),
            "git_commit": commit or None, "python": platform.python_version(),
            "torch": torch.__version__, "transformers": transformers.__version__,
            "datasets": datasets.__version__, "threads": torch.get_num_threads()}


def catch_signals(handler) -> dict:
    """Let the signals that ask a program to stop call `handler`. Returns: the usual handlers."""
    usual = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, signal.SIGTERM)  # Windows has no SIGHUP
            if signal.getsignal(number) not in (signal.SIG_IGN, handler):  # nohup ignores SIGHUP
                usual[number] = signal.signal(number, handler)
    return usual


def peak_memory_mb() -> int:
    """The most memory that this process has held so far; on a GPU, the GPU's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows
        return -1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
