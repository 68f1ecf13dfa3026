"""Views by the batch, made in the background; each is used a few times, flipped differently."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from medsam2_core.training.anatomy import random_anatomy
from medsam2_core.training.sources import LabelledStack
from medsam2_core.training.views import View, flipped, make_view

_ANATOMIES_AT_ONCE = 24
_VIEWS_BETWEEN_ANATOMIES = 60


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


class Views(IterableDataset):
    """An endless stream of batches; the same seed gives the same stream."""

    def __init__(
        self,
        stacks: list[LabelledStack],
        mixture: Mixture,
        *,
        size: int,
        frames: int,
        batch: int,
        seed: int,
        shapes: Sequence[torch.Tensor] = (),
    ) -> None:
        scans = [s for s in stacks if s.image_kji is not None]
        self._rows: tuple[list[list[LabelledStack]], ...] = (
            [],
            _by_row([s for s in stacks if s.image_kji is None]),
            _by_row([s for s in scans if s.labels_kji.shape[0] > 1]),
            _by_row([s for s in scans if s.labels_kji.shape[0] == 1]),
        )
        self._weights = [_weights(rows) for rows in self._rows]
        self._mixture, self._shapes = mixture, shapes
        self._size, self._frames, self._batch, self._seed = size, frames, batch, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:  # in this process the network needs its threads
            torch.set_num_threads(1)
        rng = np.random.default_rng([self._seed, worker.id if worker else 0])
        fresh = self._fresh(rng)
        shelf: list[View] = []
        uses = self._mixture.uses
        while True:
            views = []
            for _ in range(self._batch):
                if len(shelf) < 16 * uses or rng.random() < 1 / uses:
                    view = next(fresh)
                    if len(shelf) < 64 * uses:
                        shelf.append(view)
                    else:
                        shelf[int(rng.integers(len(shelf)))] = view
                else:
                    view = shelf[int(rng.integers(len(shelf)))]
                views.append(flipped(view, rng))
            yield Batch.of(views)

    def _fresh(self, rng: np.random.Generator) -> Iterator[View]:
        anatomies = [_made_up(rng) for _ in range(4)]
        made = 0
        shares = self._mixture.shares(self._frames, [True, *map(bool, self._rows[1:])])
        while True:
            kind = int(rng.choice(4, p=shares))
            if kind == 0:
                stack = anatomies[int(rng.integers(len(anatomies)))]
                made += 1
                grown = len(anatomies) < _ANATOMIES_AT_ONCE
                if made % (12 if grown else _VIEWS_BETWEEN_ANATOMIES) == 0:
                    anatomies = [*anatomies, _made_up(rng)][-_ANATOMIES_AT_ONCE:]
            else:
                row = self._rows[kind][int(rng.choice(len(self._rows[kind]), p=self._weights[kind]))]
                stack = row[int(rng.integers(len(row)))]
            view = make_view(stack, rng, self._size, self._frames, self._shapes)
            if view is not None:
                yield view


def stream(
    stacks: list[LabelledStack],
    mixture: Mixture,
    *,
    size: int,
    frames: int,
    batch: int,
    seed: int,
    workers: int,
    shapes: Sequence[torch.Tensor] = (),
) -> Iterator[Batch]:
    """Batches made by ``workers`` background processes (0: in this one)."""
    views = Views(stacks, mixture, size=size, frames=frames, batch=batch, seed=seed, shapes=shapes)
    loader = DataLoader(
        views,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=6 if workers else None,
        # Its own numbers, which it draws from everybody's otherwise.
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(loader)


def fixed_views(
    stacks: list[LabelledStack], size: int, frames: int, per_row: int, seed: int
) -> dict[str, list[View]]:
    """The same views every time, by row, for validation; with random anatomy as the row "synthetic"."""
    rng = np.random.default_rng(seed)
    rows = {row[0].row: row for row in _by_row(stacks)}
    rows["synthetic"] = [_made_up(rng) for _ in range(per_row)]
    views: dict[str, list[View]] = {}
    for name, row in rows.items():
        kept: list[View] = []
        for attempt in range(per_row * 20):
            view = make_view(row[attempt % len(row)], rng, size, frames)
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


def _by_row(stacks: list[LabelledStack]) -> list[list[LabelledStack]]:
    rows: dict[str, list[LabelledStack]] = {}
    for stack in stacks:
        rows.setdefault(stack.row, []).append(stack)
    return list(rows.values())
