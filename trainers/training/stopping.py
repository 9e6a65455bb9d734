"""An asked-for stop: after the step in which a SIGTERM comes training ends, with a checkpoint that resumes exactly."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

EXIT_STATUS = 128 + signal.SIGTERM  # what a shell shows of a process that SIGTERM ended


class TrainingStopped(Exception):
    """Training ended after a step, since a SIGTERM asked for it.

    Attributes:
        step: the last one.
        checkpoint: of that step, whole; the same call continues from it.
        exit_status: of a command that ends so.
    """

    exit_status = EXIT_STATUS

    def __init__(self, step: int, checkpoint: Path):
        super().__init__(f"stopped by SIGTERM after step {step}; {checkpoint} is whole, the same command continues")
        self.step = step
        self.checkpoint = checkpoint


class StopOnSignal(TrainerCallback):
    """Saves and stops at the end of a step when any process was asked to.

    A second SIGTERM is no longer caught, and ends the process at once.
    """

    def __init__(self):
        self.asked = False
        """this process got the signal"""
        self.agreed = False
        """every process knows, and stops after this step"""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGTERM asks for a stop; outside the main thread, where signals never arrive, no change."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def ask(*_) -> None:
            self.asked = True
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.agreed and state.epoch.is_integer():
            control.should_save = True  # again, with what is logged and evaluated at the end of an epoch
        elif self.agreed:  # it comes early, and what is due at the end of the epoch is not due now
            control.should_log = control.should_evaluate = control.should_save = False
