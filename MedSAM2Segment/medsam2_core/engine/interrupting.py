"""A question asked between the blocks of a network, so that a long computation can make way for another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

# Containers run their children one by one: the children are asked for.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# In the convolutional trunk and necks these are what takes the time; other leaves are over at once.
_LEAVES = (nn.Conv2d, nn.ConvTranspose2d)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network before which there is time for a question.

    All that have parts themselves, whatever their class, so that every trunk has some; and convolutions.
    """
    for part in module.modules():
        has_parts = next(part.children(), None) is not None and not isinstance(part, _CONTAINERS)
        if part is not module and (has_parts or isinstance(part, _LEAVES)):
            yield part


@contextmanager
def asking(module: nn.Module, ask: Callable[[], None]) -> Iterator[None]:
    """Inside, `ask` is called before each of a module's blocks computes, in the thread that computes.

    What it raises ends the computation there.
    """
    handles = [part.register_forward_pre_hook(lambda _part, _inputs: ask()) for part in blocks(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
