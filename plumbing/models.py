"""Load a model from a folder or the hub, place it, save it."""

import functools
import os
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from plumbing import packing
from plumbing.checkpoints import best_models
from plumbing.cli import stop

transformers.logging.disable_progress_bar()  # saving 1 MB needs no bar of its own
transformers.logging.set_verbosity_error()  # the sentences here say it once
# On CUDA: cuDNN's attention plans anew for each shape, of which packing makes many, and its masked
# backward pass has given NaN (PyTorch's issue 196678)
torch.backends.cuda.enable_cudnn_sdp(False)
# Products of float32 with 10 bits of precision, at five times the rate or more
torch.backends.cuda.matmul.allow_tf32 = True


def place_of(path: str) -> str:
    """A run's model, or what was named, a folder or a hub name; stops where a run has none yet, or
    where a folder is missing."""
    if (Path(path) / "model").is_dir():
        return str(Path(path) / "model")
    if (Path(path) / "metrics.jsonl").exists():
        stop(f"{path} is an unfinished run, and has no model yet; finish it with --resume" +
             "".join(f", or name its best so far, {folder}" for folder in best_models(path)[-1:]))
    if path.startswith(("./", "../", "/", "out/")) and not Path(path).exists():
        stop(f"{path}: there is no such folder; name a finished run, or a model")
    if not Path(path).exists() and not os.environ.get("HF_HUB_OFFLINE"):
        tqdm.write(f"{path} is no folder here: looking for it on the hub", file=sys.stderr)
    return path


def load_model(path, device=None, dtype=None, head="causal LM"):
    """A causal LM in eval mode and its tokenizer.

    Args:
        path: a run's folder, a Hugging Face folder or a hub name.
        dtype: "float32" (the default), "bfloat16" or a torch.dtype.
        head: "reward model" for AutoModelForSequenceClassification with one score in its place;
            "new" for a causal LM's weights under such a head, which is all zeros.
    Raises: SystemExit (code 2) where there is no such model, or one without an EOS token.
    """
    kind, options = ((transformers.AutoModelForCausalLM, {}) if head == "causal LM" else
                     (transformers.AutoModelForSequenceClassification, {"num_labels": 1}))
    path = place_of(str(path))
    try:
        safely = dict(trust_remote_code=False)  # a stranger's folder is data
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **safely)
        model, info = kind.from_pretrained(
            path, dtype=dtype or "float32", use_safetensors=True, output_loading_info=True,
            **safely, **options)
    except Exception as error:  # each part of the loader raises its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        stop(f"{path}: no model could be loaded ({reason}); give a run's folder, a hub name, "
                  "or a folder with config.json, model.safetensors and a tokenizer")
    heads = getattr(model.config, "architectures", None) or []
    if head == "causal LM" and any("SequenceClassification" in name for name in heads):
        stop(f"{path} is a reward model, which writes no text; name a causal LM")
    if head == "new" and hasattr(model, "score"):
        torch.nn.init.zeros_(model.score.weight)
        info["missing_keys"] = set(info["missing_keys"]) - {"score.weight"}
    if info["missing_keys"]:
        stop(f"{path}: its weights lack {min(info['missing_keys'])}, so it is no "
             f"{head.replace('new', 'causal LM')}; choose another" + (
                 ", or make one with reward_model.py" if head == "reward model" else " --model"))
    if not tokenizer("Question: 1 + 1?", add_special_tokens=False)["input_ids"]:
        stop(f"{path}: has no tokenizer that reads text; put tokenizer.json there")
    if tokenizer.eos_token_id is None:
        stop(f"{path}: its tokenizer has no EOS token, so no response could end; name one in "
                  "its tokenizer_config.json")
    embedded, added = model.get_input_embeddings().num_embeddings, tokenizer.added_tokens_decoder
    # Special tokens, but for the EOS, stand in no text: some models do without some of theirs.
    ids = {i for i in tokenizer.get_vocab().values() if i not in added or not added[i].special}
    highest = max(ids | {tokenizer.eos_token_id})
    if highest >= embedded:
        stop(f"{path}: its tokenizer has ids up to {highest}, its model embeds {embedded}; "
                  "take the tokenizer that belongs to the model, or resize the model's embeddings")
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        stop(f"{path}: {broken[0]} holds numbers that are not finite; the file is broken, or "
                  "the run that made it was")
    model = model.to(pick_device(device or "auto")).eval()
    if head == "causal LM":
        packing.enable(model)
    else:
        packing.enable(model.base_model, packing.last_hidden)
    return model, tokenizer


def load_to_train(path, args, head="causal LM"):
    """load_model with a training run's flags. Under --dtype bfloat16 the weights are float32 and
    only the forward pass is bfloat16: of a weight of 0.02, bfloat16 cannot hold steps below 6e-5.
    """
    model, tokenizer = load_model(path, args.device, head=head)
    if args.dtype == "bfloat16":
        model.autocast = True  # see sampling_weights
        part = model if head == "causal LM" else model.base_model
        part.forward = functools.partial(in_bfloat16, part.forward)
    if args.gradient_checkpointing:
        checkpoint_layers(model)
    return model, tokenizer


def in_bfloat16(forward, input_ids, **inputs):
    with torch.autocast(input_ids.device.type, torch.bfloat16):
        return forward(input_ids=input_ids, **inputs)


def checkpoint_layers(model):
    """Gradient checkpointing that works in eval mode, where transformers' own does nothing: PPO and
    DPO need their dropout off."""
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        stop(f"--gradient-checkpointing: {type(model).__name__} has no layers made for it; "
                  "leave it out")
    for layer in layers:
        layer.forward = functools.partial(checkpointed, layer.forward)


def checkpointed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():  # it would save the generators' states for each sampled token
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def pick_device(name: str) -> str:
    """The best device there is for "auto"; stops where the one asked for is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        return next(device for device, found in available.items() if found)
    if not available.get(str(name), True):
        stop(f"--device {name}: PyTorch finds none here; use --device cpu, or leave it out")
    return name


def save_model(folder: Path, model, tokenizer):
    """Written beside, onto the disk, and renamed into place."""
    beside = folder.with_suffix(".tmp")
    for left in [beside, folder]:  # by a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for path in beside.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(0, getattr(error, "strerror", None) or str(error), str(folder))
    os.replace(beside, folder)


def peak_memory_mb(device: str) -> int:
    """The most memory this process has held so far, on the GPU where it used one."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows has no such count
        return -1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
