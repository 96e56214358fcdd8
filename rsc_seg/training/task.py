"""What the loop trains: a module called on batches, told when steps begin and end."""

from collections.abc import Iterable

from torch import nn

from rsc_seg.training.checkpoint import trainable_names


class Task(nn.Module):
    """`task(batch) -> {"loss": scalar, other scalars}`; frozen parts stay in eval mode."""

    def trainable_modules(self) -> Iterable[nn.Module]:
        """Modules whose mode follows `train()`; all others stay in eval."""
        return ()

    def begin(self, step: int) -> None:
        """Told before each call in a run: the number of the micro-step, counted over the whole run."""

    def end(self) -> None:
        """Told once after each step of the optimiser."""

    def kept(self) -> list[str]:
        """Names in the state dictionary that a checkpoint must hold beside the parameters that train."""
        return []

    def train(self, mode: bool = True) -> "Task":
        """Training mode for the modules that train, eval for the rest."""
        super().train(False)
        for module in self.trainable_modules():
            module.train(mode)
        self.training = mode
        return self


def _tasks(task: Task) -> list[tuple[str, Task]]:
    """A task and the tasks inside it, by the prefix of their names."""
    return [(f"{name}." if name else "", part) for name, part in task.named_modules() if isinstance(part, Task)]


def begin_step(task: Task, step: int) -> None:
    """Tells a task and all inside it that micro-step `step` begins."""
    for _, part in _tasks(task):
        part.begin(step)


def end_step(task: Task) -> None:
    """Tells a task and all inside it that the optimiser has stepped."""
    for _, part in _tasks(task):
        part.end()


def checkpoint_names(task: Task) -> list[str]:
    """Names of all that a checkpoint must hold: the parameters that train, and what the tasks ask to be kept."""
    return trainable_names(task) + [prefix + name for prefix, part in _tasks(task) for name in part.kept()]
