"""The optimizer, and its learning rate over a run: it rises, and falls to 0."""

import torch


def adamw(model, lr, weight_decay=0.0):
    """AdamW, without weight decay unless asked; on a GPU all of a step in one kernel."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay,
                             fused=parameters[0].device.type == "cuda" or None)


def lr_factor(step, steps, rise, fall_from=0):
    """The lower of two lines: up to 1 over `rise` steps; and from 1 at `fall_from` down to 0 at
    `steps`. step counts from 0."""
    return min((step + 1) / max(rise, 1), (steps - step) / max(steps - fall_from, 1))


def rise_and_fall(optimizer, steps, rise, fall_from=0):
    """The optimizer's schedule: its learning rate times lr_factor."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, rise, fall_from))
