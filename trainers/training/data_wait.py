"""What share of training goes into getting batches rather than learning from them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback


class DataWait(TrainerCallback):
    """Seconds that the training loop spends on data, next to the seconds of its optimizer steps.

    Data: batches fetched, padded, moved to the device and corrupted. Steps: from there to the optimizer's update.
    Evaluation, saving and logging belong to neither. The clock is the host's and synchronises nothing: on a GPU, whose
    last kernels of a step may still be running, the share is an upper bound.
    """

    def __init__(self) -> None:
        self.data_seconds = 0.0
        self.step_seconds = 0.0
        self._step_began: float | None = None
        self._logged = (0.0, 0.0)

    @contextmanager
    def getting_data(self) -> Iterator[None]:
        """Around everything that makes the batches of one step, which begins when they are there."""
        start = time.perf_counter()
        yield
        self._step_began = time.perf_counter()
        self.data_seconds += self._step_began - start

    def on_step_end(self, *_, **__) -> None:
        """After the optimizer's update."""
        if self._step_began is not None:
            self.step_seconds += time.perf_counter() - self._step_began
            self._step_began = None

    def share(self) -> float:
        """Of all so far, in [0, 1]."""
        return self._share(self.data_seconds, self.step_seconds)

    def share_since_last_call(self) -> float:
        """Of what came after the last call of this, in [0, 1]."""
        data, steps = self._logged
        self._logged = (self.data_seconds, self.step_seconds)
        return self._share(self.data_seconds - data, self.step_seconds - steps)

    @staticmethod
    def _share(data: float, steps: float) -> float:
        return data / (data + steps) if data + steps else 0.0
