"""A run's numbers: JSON lines always, TensorBoard and W&B when they are there, a bar or log lines for people."""

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write

_log = logging.getLogger(__name__)
_SHOWN = 5  # unreadable images in the closing line
Writer = Callable[[str, int, dict[str, float]], None]


def _tensorboard(folder: Path) -> Optional[tuple[Writer, Callable[[], None]]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.info("TensorBoard is not installed (pip install 'rsc-seg[log]'): metrics.jsonl only")
        return None
    board = SummaryWriter(str(folder))

    def write(stage: str, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            board.add_scalar(f"{stage}/{key}", value, step)
        board.flush()

    return write, board.close


def _wandb(folder: Path, config: dict[str, Any]) -> Writer:
    try:
        import wandb
    except ImportError as e:
        raise UserError("run.wandb=true: wandb is not installed (pip install wandb).") from e
    session = wandb.init(dir=str(folder), name=folder.name, config=config, resume="allow")
    return lambda stage, step, values: session.log(
        {f"{stage}/{k}": v for k, v in values.items()} | {f"{stage}/step": step}
    )


class RunLog:
    """Writers of one run folder; on ranks other than zero it writes nothing.

    `skipped`: unreadable images of all stages so far that others replaced, by name, with the reason.
    """

    def __init__(self, folder: Path, *, enabled: bool = True, wandb_config: Optional[dict[str, Any]] = None) -> None:
        self.path = folder / "metrics.jsonl"
        self.enabled = enabled
        self.skipped: dict[str, str] = {}
        self.writers: list[Writer] = []
        self._closers: list[Callable[[], None]] = []
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self.writers += [_wandb(folder, wandb_config)] if wandb_config is not None else []
            if board := _tensorboard(folder / "tensorboard"):
                self.writers.append(board[0])
                self._closers.append(board[1])

    def close(self) -> None:
        """Ends the writers that hold files open."""
        for close in self._closers:
            close()
        self.writers, self._closers = [], []

    def tell_skipped(self) -> None:
        """Logs how many unreadable images there were, with the first reasons; nothing when there was none."""
        if self.skipped:
            shown = "; ".join(list(self.skipped.values())[:_SHOWN])
            _log.warning("%d unreadable images were replaced by others: %s", len(self.skipped), shown)

    def rewind(self, stage: str, step: int) -> None:
        """Forgets the lines of `stage` at or after `step`, which a resumed run will write again."""
        if not self.enabled or not self.path.is_file():
            return
        rows = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [row for row in rows if row["stage"] != stage or row["step"] < step]
        atomic_write(self.path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in kept)) and None)

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One row of numbers; UserError when the disk refuses."""
        if not self.enabled:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
            for writer in self.writers:
                writer(stage, step, values)
        except OSError as e:
            raise UserError(
                f"{self.path}: not written ({e.strerror or e}); checkpoints stand. Free some space and use --resume."
            ) from e


class Progress:
    """A bar with ETA on a terminal, log lines with ETA elsewhere."""

    def __init__(self, stage: str, total: int, start: int, *, enabled: bool, every: int) -> None:
        self.stage, self.total, self.start, self.every, self.enabled = stage, total, start, max(1, every), enabled
        self.began = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=start, desc=stage, dynamic_ncols=True)
            if enabled and sys.stderr.isatty()
            else None
        )

    def update(self, step: int, values: dict[str, float]) -> None:
        """After optimiser step `step` (counted from 1)."""
        if not self.enabled:
            return
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(text)
        elif step % self.every == 0 or step == self.total:
            seconds = (time.monotonic() - self.began) / max(1, step - self.start)
            _log.info(
                "%s %d/%d  %s  %.2f s/step  ETA %s",
                self.stage,
                step,
                self.total,
                text,
                seconds,
                clock(seconds * (self.total - step)),
            )

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
