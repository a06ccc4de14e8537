"""A GPU for those who have none: python -m tests.pretend FOLDER

Runs every program on the CPU, and on a device that is the CPU under another name and refuses what
CUDA would: tensors of both in one operation, a tensor of its own where NumPy is asked, a generator
of the CPU's. The runs are in FOLDER/cpu and FOLDER/auto.
"""

import importlib
import sys
from pathlib import Path

import plumbing.threads  # noqa: F401 (before torch)

import torch
import transformers
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (_DummyBackendModule,
                                              _setup_privateuseone_for_python_backend)

from plumbing import models
from tests.test_models import write_task
from tests.tiny import save_answers

RUNS = {  # name: script and flags
    "sft": "sft --epochs=2 --batch-size=16 --model={model}",
    "reft": "reft_ppo --steps=2 --batch-size=16 --minibatch-size=8 --micro-batch-size=3 "
            "--eval-samples=2 --eval-every=1 --save-every=1",
    "separate": "reft_ppo --steps=1 --batch-size=8 --value=separate --gradient-checkpointing",
    "dpo": "dpo --samples=64 --eval-samples=2",
    "grpo": "grpo --steps=2 --batch-size=8",
    "offline": "self_training --model={model} --samples=32 --steps=2",
    "online": "self_training --mode=online --steps=2 --batch-size=24",
    "reward_model": "reward_model --ranked=4 --samples=64",
    "binary": "reward_model --objective=binary --samples=64 --gradient-checkpointing",
    "rlhf": "reft_ppo --reward={runs}/reward_model --steps=2 --batch-size=8",
    "compare": "eval {runs}/sft {runs}/reft --rerank={runs}/reward_model --samples=4",
    "explain": "explain {runs}/reft --question=3"}


class Pretended(torch.Tensor):
    """A tensor that is said to be elsewhere. What it holds is a CPU tensor, `held`."""

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="pretend:0")
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return apply(operation, args, kwargs or {})

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = type(self)(self.held.detach().clone())
            memo[id(self)] = (torch.nn.Parameter(copied, self.requires_grad)
                              if isinstance(self, torch.nn.Parameter) else copied)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):  # to be saved
        return self.held.detach().__reduce_ex__(protocol)

    def tolist(self):
        return self.held.tolist()


def apply(operation, args, kwargs):
    """The operation, on what the tensors hold. Numbers, tensors without a dimension, may be of the
    CPU, as CUDA takes them."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    own = [x for x in tensors if isinstance(x, Pretended)]
    copies = [torch.ops.aten._to_copy, torch.ops.aten.copy_]  # from one to the other
    if own and operation.overloadpacket not in copies and any(
            x.dim() and not isinstance(x, Pretended) for x in tensors):
        raise RuntimeError(f"{operation}: tensors of two devices")
    here = bool(own)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == "pretend"
        kwargs = kwargs | {"device": "cpu"}
    with _disable_current_modes():
        out = operation(*tree_map(held, args), **tree_map(held, kwargs))
    if operation.overloadpacket is torch.ops.aten.copy_:
        return args[0]
    if not here:
        return out
    known = {id(x.held): x for x in own}  # in place, the tensor itself comes back
    return tree_map(lambda x: x if not isinstance(x, torch.Tensor) else
                    known[id(x)] if id(x) in known else Pretended(x), out)


def held(x):
    return x.held if isinstance(x, Pretended) else x


class Everywhere(TorchDispatchMode):
    """Also where no tensor is given, as in torch.zeros(2, device=...)."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return apply(operation, args, kwargs or {})


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.of = torch.device(device).type
        return generator


def pretend():
    """Make the device known, and "auto" choose it. PyTorch's own ways around the dispatcher, and
    what asks for a tensor's memory, are led back to it."""
    _setup_privateuseone_for_python_backend("pretend", Backend())
    _device._device_constructors()  # a cache, which is to hold PyTorch's own torch.tensor
    tensor, rand, to = torch.tensor, torch.rand, transformers.PreTrainedModel.to
    save = transformers.PreTrainedModel.save_pretrained

    def new_tensor(*args, device=None, **kwargs):
        if device is None or torch.device(device).type != "pretend":
            return tensor(*args, device=device, **kwargs)
        return tensor(*args, **kwargs).to(device)

    def new_rand(*args, generator=None, device="cpu", **kwargs):
        if generator is not None and generator.of != torch.device(device).type:
            raise RuntimeError(f"a generator of {generator.of} for a tensor of {device}")
        return rand(*args, generator=generator, device=device, **kwargs)

    def save_pretrained(model, folder):
        save(model, folder, state_dict=tree_map(held, dict(model.state_dict())))

    def model_to(model, device):
        to(model, device).tie_weights()
        return model
    torch.tensor, torch.rand, torch.Generator = new_tensor, new_rand, Generator
    transformers.PreTrainedModel.to = model_to
    transformers.PreTrainedModel.save_pretrained = save_pretrained
    models.pick_device = lambda name: "pretend" if name == "auto" else name


def main():
    folder = Path(sys.argv[1])
    write_task(folder / "task")
    model = save_answers(folder / "model")
    pretend()
    for device in ["auto", "cpu"]:
        with Everywhere():
            for name, run in RUNS.items():
                script, *flags = run.format(runs=folder / device, model=model).split()
                if script != "explain":
                    flags += [f"--task={folder / 'task'}", f"--out={folder / device / name}",
                              "--max-new-tokens=2"]
                if script not in ("sft", "eval", "explain"):
                    flags.append(f"--warmup={model}")
                importlib.import_module(script).main([*flags, f"--device={device}"])


if __name__ == "__main__":
    main()
