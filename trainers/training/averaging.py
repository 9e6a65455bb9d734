"""Exponential moving average of the weights while training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

TRAINING_WEIGHTS_FILE = "training_weights.safetensors"


class WeightAverage(TrainerCallback):
    """Average of the weights after each step: decay * average + (1 - decay) * weights, from the first step's weights.

    The average is the run's model: it is what is evaluated, saved, pushed and left in the model when training ends.
    The weights being trained belong to the state of a checkpoint, like the optimizer's moments.

    Args:
        decay: in (0, 1); it averages over about 1 / (1 - decay) steps.

    Source: `torch.optim.swa_utils`; of diffusion models, Ho et al. 2020, arXiv:2006.11239.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averaged: AveragedModel | None = None
        self._within = False

    def start(self, model: nn.Module) -> None:
        """Begin again at the next step; the first call must come before the model is prepared for training."""
        if self.averaged is None:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        self.reset(model)
        self.averaged.n_averaged.zero_()  # the first step's weights replace the initial ones

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Let the average so far be the weights of `model`."""
        assert self.averaged is not None
        self.averaged.n_averaged.zero_()
        self.averaged.update_parameters(model)  # the first update copies

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        assert self.averaged is not None
        self.averaged.update_parameters(model)

    @torch.no_grad()
    def on_train_end(self, args, state, control, model, **kwargs) -> None:
        assert self.averaged is not None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.reset(model)  # it has just been loaded, and is an average
            return
        for own, average in zip(model.parameters(), self.averaged.module.parameters(), strict=True):
            own.copy_(average)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` has the average for weights; before training and inside another `applied`, no change."""
        if self.averaged is None or self._within:
            yield
            return
        self._swap(model)
        self._within = True
        try:
            yield
        finally:
            self._within = False
            self._swap(model)

    def save(self, model: nn.Module, folder: str) -> None:
        """Write the weights being trained, of `model`, next to the average that `folder` holds as its model."""
        save_model(model, str(Path(folder) / TRAINING_WEIGHTS_FILE))

    def load(self, model: nn.Module, folder: str) -> None:
        """Resume: the average is what `model` holds now, loaded from `folder`; then load the weights being trained."""
        self.reset(model)
        load_model(model, Path(folder) / TRAINING_WEIGHTS_FILE)

    def _swap(self, model: nn.Module) -> None:
        assert self.averaged is not None
        for own, average in zip(model.parameters(), self.averaged.module.parameters(), strict=True):
            own.data, average.data = average.data, own.data
