"""A call that is killed at a moment of one's choice, and what it leaves."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def killed_at(call: Callable[[], Any], owner: Any, name: str) -> bool:
    """Make `call` in a fork that gets SIGKILL where it first calls `owner.name`; False when it got by."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == signal.SIGKILL
    try:
        setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        call()
    finally:
        os._exit(1)


def visible(folder: Path) -> set[str]:
    """Names in a folder, without those that begin with a dot."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}
