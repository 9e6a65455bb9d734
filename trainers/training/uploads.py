"""Pushes of a run to the Hub, while it trains and at its end, of what an assembler lays out."""

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils.hub import PushInProgress

logger = logging.getLogger(__name__)
# (folder of a checkpoint, empty folder, repository) -> notes; copies what is published, card included.
UploadAssembler = Callable[[Path, Path, str], list[str]]


class HubUploads(TrainerCallback):
    """Pushes the model after each save, and the checkpoint too where `hub_strategy` says so, in the background.

    Args:
        trainer: whose arguments, repository and process decide.
        assemble: chooses what a push holds.
    """

    def __init__(self, trainer: Trainer, assemble: UploadAssembler | None):
        self.trainer = trainer
        self.assemble = assemble
        self.api = HfApi()
        self.in_progress: PushInProgress | None = None

    def on_save(self, args, state, control, **kwargs) -> None:
        """Push the checkpoint that has just got its name."""
        if not args.push_to_hub or args.hub_strategy == HubStrategy.END or not self.trainer.is_world_process_zero():
            return
        running = self.in_progress
        busy = running is not None and not running.is_done()
        if busy and not args.hub_always_push:
            return
        self.trainer.callback_handler.on_push_begin(args, state, control)
        message = f"Training in progress, step {state.global_step}"
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        jobs: list[Any] = [self.start(checkpoint, message)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            whole = self.api.upload_folder(
                repo_id=self.trainer.hub_model_id,
                folder_path=checkpoint,
                path_in_repo="last-checkpoint" if last else checkpoint.name,
                commit_message=f"{message}, checkpoint",
                run_as_future=True,
                revision=args.hub_revision,
            )
            jobs.append(whole)
        if running is not None and busy:
            running.jobs.extend(jobs)
            return
        self.finish()
        self.in_progress = PushInProgress(jobs)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.finish()

    def start(
        self, source: Path, message: str | None, token: str | None = None, revision: str | None = None
    ) -> Future[CommitInfo]:
        """Lay out the upload set of `source` now, since it may be removed soon, and upload it in the background."""
        if self.assemble is None:
            raise ValueError("push_to_hub needs ConceptTrainer(assemble=...): it chooses what is published")
        scratch = tempfile.TemporaryDirectory(prefix="push-")
        self.assemble(source, Path(scratch.name), self.trainer.hub_model_id)

        def upload() -> CommitInfo:
            with scratch:
                return self.api.upload_folder(
                    repo_id=self.trainer.hub_model_id,
                    folder_path=scratch.name,
                    commit_message=message,
                    token=token,
                    revision=revision or self.trainer.args.hub_revision,
                )

        return self.api.run_as_future(upload)

    def finish(self) -> None:
        """Wait for what is under way, and say what failed of it."""
        if self.in_progress is None:
            return
        self.in_progress.wait_until_done()
        for error in [job.exception() for job in self.in_progress.jobs]:
            if error is not None:
                logger.warning(
                    f"a push during training failed ({type(error).__name__}); the next one brings all of it"
                )
        self.in_progress = None
