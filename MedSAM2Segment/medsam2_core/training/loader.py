"""Views by the batch, made in the background; each is used a few times, flipped differently."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medsam2_core.errors import TrainingError
from medsam2_core.training.anatomy import random_anatomy
from medsam2_core.training.augmentation import BASE, Augmentation
from medsam2_core.training.stacks import LabelledStack
from medsam2_core.training.views import View, flipped, make_view

_ANATOMIES_AT_ONCE = 24
_VIEWS_BETWEEN_ANATOMIES = 400
_USED_AGAIN_AFTER = 12  # steps
_MOST_TRIES = 2_000


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of source, and how often a view is used.

    Attributes
    ----------
    synthetic
        Random anatomy.
    anatomy
        Label maps, painted.
    volumes
        Real labelled volumes; their share goes to pictures where there are none.
    pictures
        Real labelled 2-D images; in clips half of it goes to volumes.
    """

    synthetic: float = 0.15
    anatomy: float = 0.35
    volumes: float = 0.2
    pictures: float = 0.3
    uses: int = 2

    def shares(self, frames: int, available: Sequence[bool]) -> np.ndarray:
        """(4,) shares in this order, of what is available; random anatomy always is."""
        moved = 0.5 * self.pictures if frames > 1 else 0.0
        shares = np.array([self.synthetic, self.anatomy, self.volumes + moved, self.pictures - moved])
        _, anatomy, volumes, pictures = available
        if not volumes and pictures:
            shares[3] += shares[2]
        if not pictures and volumes:
            shares[2] += shares[3]
        shares = shares * [True, anatomy, volumes, pictures]
        return shares / shares.sum() if shares.any() else np.array([1.0, 0, 0, 0])


@dataclass
class Batch:
    """N views with B objects in all.

    Attributes
    ----------
    images
        (N, T, 3, S, S).
    objects
        (B, T, S, S) bool.
    regions
        (N, T, S, S) uint8.
    image_of
        (B,) which view an object belongs to.
    squares
        (N, T, 3) see :class:`View`.
    """

    images: torch.Tensor
    objects: torch.Tensor
    regions: torch.Tensor
    image_of: torch.Tensor
    squares: torch.Tensor
    rows: list[str]

    @classmethod
    def of(cls, views: list[View]) -> "Batch":
        """Gather views of equal size and length."""
        return cls(
            torch.stack([v.image for v in views]),
            torch.cat([v.objects.transpose(0, 1) for v in views]),
            torch.stack([v.regions for v in views]),
            torch.cat([torch.full((v.objects.shape[1],), n) for n, v in enumerate(views)]),
            torch.stack([v.squares for v in views]),
            [v.row for v in views],
        )


class Views(Dataset):
    """Batches by the number of the step: the same seed and number give the same batch, in every process.

    So a run that was killed goes on with the data it would have had, and several processes divide the views
    of a step among themselves.

    Parameters
    ----------
    passes
        Parts in which a step is computed, one after another; each holds other views.
    process, processes
        Number of this process, and how many there are: each makes its share of the passes.
    """

    def __init__(
        self,
        stacks: Sequence[LabelledStack],
        mixture: Mixture,
        *,
        size: int,
        frames: int,
        batch: int,
        seed: int,
        shapes: Sequence[torch.Tensor] = (),
        augmentation: Augmentation = BASE,
        passes: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        scans = [s for s in stacks if s.image_kji is not None]
        self._rows: tuple[list[list[LabelledStack]], ...] = (
            [],
            _by_row([s for s in stacks if s.image_kji is None]),
            _by_row([s for s in scans if s.labels_kji.shape[0] > 1]),
            _by_row([s for s in scans if s.labels_kji.shape[0] == 1]),
        )
        self._weights = [_weights(rows) for rows in self._rows]
        self._shares = mixture.shares(frames, [True, *map(bool, self._rows[1:])])
        self._uses, self._shapes, self._augmentation = mixture.uses, shapes, augmentation
        self._size, self._frames, self._batch, self._seed = size, frames, batch, seed
        self._passes, self._process, self._processes = passes, process, processes
        self._made: OrderedDict[int, View] = OrderedDict()
        self._anatomies: OrderedDict[int, LabelledStack] = OrderedDict()

    def __getitem__(self, step: int) -> list[Batch]:
        """Return this process's passes of a step."""
        slots = np.array_split(np.arange(self._batch), self._passes)
        return [
            Batch.of([self._view(step, int(slot)) for slot in part])
            for part in slots[self._process :: self._processes]
        ]

    def _view(self, step: int, slot: int) -> View:
        """Return a view; it is used again some steps later, flipped differently."""
        # A worker process makes every n-th step: this period suits n = 1, 2, 3, 4, 6 and 12.
        first = step - _USED_AGAIN_AFTER * (step // _USED_AGAIN_AFTER % self._uses)
        number = first * self._batch + slot
        view = self._made.get(number)
        if view is None:
            view = self._made[number] = self._fresh(number)
            while len(self._made) > (_USED_AGAIN_AFTER * self._batch if self._uses > 1 else 0):
                self._made.popitem(last=False)
        rng = np.random.default_rng([self._seed, step, slot, 1])
        return flipped(view, rng, self._augmentation)

    def _fresh(self, number: int) -> View:
        rng = np.random.default_rng([self._seed, number])
        for _ in range(_MOST_TRIES):
            kind = int(rng.choice(4, p=self._shares))
            if kind == 0:
                stack = self._anatomy(number, rng)
            else:
                row = self._rows[kind][int(rng.choice(len(self._rows[kind]), p=self._weights[kind]))]
                stack = row[int(rng.integers(len(row)))]
            view = make_view(stack, rng, self._size, self._frames, self._shapes, self._augmentation)
            if view is not None:
                return view
        raise TrainingError(
            "no object of the training data can be shown: all are smaller than a few pixels, or fill their "
            "images",
            code="nothing-to-show",
        )

    def _anatomy(self, number: int, rng: np.random.Generator) -> LabelledStack:
        """Return one of the latest random anatomies; there are new ones as training goes on."""
        latest = 3 + min(number // 80, 20) + max(0, number - 1_600) // _VIEWS_BETWEEN_ANATOMIES
        chosen = int(rng.integers(max(0, latest + 1 - _ANATOMIES_AT_ONCE), latest + 1))
        if chosen not in self._anatomies:
            self._anatomies[chosen] = _made_up(np.random.default_rng([self._seed, chosen, 2]))
            while len(self._anatomies) > _ANATOMIES_AT_ONCE:
                self._anatomies.popitem(last=False)
        return self._anatomies[chosen]


def stream(views: Views, first: int = 0, workers: int = 0, distance: int = 1) -> Iterator[list[Batch]]:
    """The passes of every n-th step from a first one on, made by ``workers`` processes (0: in this one)."""
    loader = DataLoader(
        views,
        batch_size=None,
        sampler=itertools.count(first, distance),
        num_workers=workers,
        prefetch_factor=6 if workers else None,
        # Its own numbers, which it draws from everybody's otherwise.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_one_thread if workers else None,
    )
    return iter(loader)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)  # the network needs them


def fixed_views(
    stacks: Sequence[LabelledStack],
    size: int,
    frames: int,
    per_row: int,
    seed: int,
    augmentation: Augmentation = BASE,
    synthetic: bool = True,
) -> dict[str, list[View]]:
    """The same views every time, by row, for validation; with random anatomy as the row "synthetic"."""
    rng = np.random.default_rng(seed)
    rows = {row[0].row: row for row in _by_row(stacks)}
    if synthetic:
        rows["synthetic"] = [_made_up(rng) for _ in range(per_row)]
    views: dict[str, list[View]] = {}
    for name, row in rows.items():
        kept: list[View] = []
        for attempt in range(per_row * 20):
            view = make_view(row[attempt % len(row)], rng, size, frames, augmentation=augmentation)
            if view is not None:
                kept.append(view)
            if len(kept) == per_row:
                break
        views[name] = kept
    return views


def _made_up(rng: np.random.Generator) -> LabelledStack:
    return LabelledStack("synthetic", "", random_anatomy(rng), None, (1.0, 1.0, 1.0), complete=True)


def _weights(rows: list[list[LabelledStack]]) -> np.ndarray:
    """How often each row is drawn: more for more structures, less than in proportion."""
    structures = [max(len(np.flatnonzero(stack.voxel_counts[1:])) for stack in row) for row in rows]
    weights = np.sqrt(np.minimum(structures, 16)) * np.sqrt([min(len(row), 36) for row in rows])
    return weights / max(weights.sum(), 1e-9)


def _by_row(stacks: Sequence[LabelledStack]) -> list[list[LabelledStack]]:
    rows: dict[str, list[LabelledStack]] = {}
    for stack in stacks:
        rows.setdefault(stack.row, []).append(stack)
    return list(rows.values())
