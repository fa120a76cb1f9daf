"""Checkpoints of a training run: model, optimizer and how far it is, in one file."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer


def save(file: Path, model: nn.Module, optimizer: Optimizer, progress: Mapping[str, float]) -> None:
    """Replace `file` in one step, so that a run stopped at any time leaves a whole one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **progress}
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def resume(file: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Load model and optimizer in place; returns what `save` was given as progress."""
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    return dict(state)
