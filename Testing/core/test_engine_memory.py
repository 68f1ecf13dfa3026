"""Memory policies, against examples worked out by hand and a second writing of the rules."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from medsam2_core.engine.memory import Query, RecentMemory, SelfSortingMemory, SliceMemory, SortingMode
from medsam2_core.engine.zoom import Region
from support.bright_object import MEMORY_RULES, bright_tracker, discs
from support.model import prompt

REGION = Region(0, 0, 8, 8)
MODULE = SimpleNamespace(**MEMORY_RULES)


def memory(n, vector=(1.0, 0.0), iou=0.9, embedding=None):
    features = torch.tensor(vector, dtype=torch.float32).view(1, -1, 1, 1)
    seen = features if embedding is None else torch.tensor(embedding, dtype=torch.float32).view(1, -1, 1, 1)
    return SliceMemory(n, features, torch.zeros(1, 256), iou, 5.0, REGION, seen)


def query(n, reverse=False, total=100, ordered=True, embedding=(1.0, 0.0)):
    seen = torch.tensor(embedding, dtype=torch.float32).view(1, -1, 1, 1)
    return Query(n, total, reverse, ordered, seen)


def angle(degrees):
    return float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))


def numbers(pairs):
    return [(position, kept.n) for position, kept in pairs]


class TestRecentMemory:
    def filled(self, slices, **rule):
        bank = RecentMemory(**rule).bank(MODULE)
        for n in slices:
            bank.add(memory(n))
        return bank

    def test_forward(self):
        given = {2: memory(2), 30: memory(30)}
        read = self.filled(range(3, 20)).read(query(20), given)
        assert numbers(read.spatial) == [
            (0, 2),
            (0, 30),
            (1, 14),
            (2, 15),
            (3, 16),
            (4, 17),
            (5, 18),
            (6, 19),
        ]
        # Of prompted slices only those passed have a say; distances count backwards from here.
        assert numbers(read.pointers) == [(18, 2)] + [(d, 20 - d) for d in range(1, 16)]

    def test_reverse(self):
        given = {2: memory(2), 30: memory(30)}
        read = self.filled(range(29, 19, -1)).read(query(19, reverse=True), given)
        assert numbers(read.spatial) == [
            (0, 2),
            (0, 30),
            (1, 25),
            (2, 24),
            (3, 23),
            (4, 22),
            (5, 21),
            (6, 20),
        ]
        assert numbers(read.pointers) == [(11, 30)] + [(d, 19 + d) for d in range(1, 11)]

    def test_gaps_are_skipped_and_short_volumes_have_fewer_pointers(self):
        read = self.filled([5, 7]).read(query(8, total=4), {4: memory(4)})
        assert numbers(read.spatial) == [(0, 4), (4, 5), (6, 7)]
        read = self.filled([0, 1, 2]).read(query(3, total=3), {0: memory(0)})
        assert numbers(read.pointers)[1:] == [(1, 2), (2, 1)]

    def test_only_what_can_still_be_read_is_kept(self):
        bank = self.filled(range(50))
        held = list(bank.memories())
        assert [m.n for m in held] == list(range(35, 50))
        assert [m.n for m in held if m.features is not None] == list(range(44, 50))
        assert len(list(self.filled(range(50), keeps_all=True).memories())) == 50

    def test_bounding_memory_changes_no_reading(self):
        bounded, everything = RecentMemory().bank(MODULE), RecentMemory(keeps_all=True).bank(MODULE)
        for n in range(1, 40):
            readings = [bank.read(query(n), {0: memory(0)}) for bank in (bounded, everything)]
            assert numbers(readings[0].spatial) == numbers(readings[1].spatial)
            assert numbers(readings[0].pointers) == numbers(readings[1].pointers)
            for bank in (bounded, everything):
                bank.add(memory(n))

    def test_of_a_hundred_prompted_slices_the_nearest_sixteen_are_read_by_default(self):
        given = {n: memory(n) for n in range(101) if n != 50}
        read = self.filled([]).read(query(50, total=101), given)
        assert sorted(n for _, n in numbers(read.spatial)) == [*range(42, 50), *range(51, 59)]
        stock = self.filled([], nearest_conditioning=None).read(query(50, total=101), given)
        assert len(stock.spatial) == 100

    def test_the_nearest_prompted_slices_alone(self):
        given = {n: memory(n) for n in (0, 10, 18, 22, 90)}
        read = self.filled([19], nearest_conditioning=2).read(query(20), given)
        # A prompted slice that is not chosen still counts as one of the last slices.
        assert numbers(read.spatial) == [(0, 18), (0, 22), (6, 19)]
        assert numbers(read.pointers) == [(2, 18), (1, 19), (10, 10)]


class TestSelfSortingMemory:
    def held(self, bank):
        return [kept.n for kept in bank.memories()]

    def test_paper_only_confident_slices_are_admitted(self):
        bank = SelfSortingMemory(least_iou=0.7).bank(MODULE)
        for n, iou in enumerate((0.9, 0.7, 0.71, 0.2)):
            bank.add(memory(n, iou=iou))
        assert self.held(bank) == [0, 2]

    def test_paper_the_most_dissimilar_are_kept(self):
        """Total dissimilarity D = sum of 1 - cos of the angles between.
        0, 10, 90 and new 79: D(0) = .015 + 1 + .809 = 1.824, D(10) = 1.484, D(90) = 1.845, D(79) = 1.468: the
        new one goes. 0, 10, 90 and new 180: D(0) = 3.015, D(10) = .015 + .826 + 1.985 = 2.826,
        D(90) = 1 + .826 + 1 = 2.826, D(180) = 4.985."""
        bank = SelfSortingMemory(capacity=3).bank(MODULE)
        for n, degrees in enumerate((0, 10, 90, 79)):
            bank.add(memory(n, angle(degrees)))
        assert self.held(bank) == [0, 1, 2]
        bank.remove(1)
        bank.add(memory(4, angle(15)))  # D(15) = .034 + .741 + 1.966 = 2.741, D(90) = 1 + .741 + 1 = 2.741
        bank.add(memory(5, angle(175)))  # D(15) = 2.715, D(90) = 2.654: 90 goes
        assert self.held(bank) == [0, 4, 5]

    def test_reference_swaps_the_twin_of_the_entry_least_like_the_new_one(self):
        """Held 0, 5, 40 degrees; new 90. Least like it: 0 (cos 0). 0's twin is 5 (cos .996 > 0): 5 goes."""
        rule = SelfSortingMemory(SortingMode.REFERENCE, capacity=3)
        bank = rule.bank(MODULE)
        for n, degrees in enumerate((0, 5, 40)):
            bank.add(memory(n, angle(degrees)))
        bank.add(memory(3, angle(90), iou=0.81))
        assert self.held(bank) == [0, 2, 3]

    def test_reference_keeps_a_twin_that_is_much_more_certain(self):
        bank = SelfSortingMemory(SortingMode.REFERENCE, capacity=3).bank(MODULE)
        for n, degrees in enumerate((0, 5, 40)):
            bank.add(memory(n, angle(degrees)))
        bank.add(memory(3, angle(90), iou=0.8))  # not above .9 - .1
        assert self.held(bank) == [0, 1, 2]

    def test_reference_refuses_what_lies_between(self):
        """Held 0 and 90, new 45: nearer to both (cos .707) than they are to each other (cos 0)."""
        bank = SelfSortingMemory(SortingMode.REFERENCE, capacity=2).bank(MODULE)
        for n, degrees in enumerate((0, 90, 45)):
            bank.add(memory(n, angle(degrees)))
        assert self.held(bank) == [0, 1]

    @pytest.mark.parametrize("seed", range(5))
    def test_reference_gives_the_exact_indices_of_the_rule_written_again(self, seed):
        rng = np.random.default_rng(seed)
        bank = SelfSortingMemory(SortingMode.REFERENCE, capacity=16).bank(MODULE)
        entries = []
        for n in range(120):
            vector, iou = rng.normal(size=6).astype(np.float32), float(rng.uniform(0.3, 1))
            bank.add(memory(n, vector, iou))
            if len(entries) < 16:
                entries.append((n, vector, iou))
            else:
                unit = np.stack([v / np.linalg.norm(v) for _, v, _ in entries])
                likeness = unit @ unit.T
                np.fill_diagonal(likeness, -np.inf)
                to_new = unit @ (vector / np.linalg.norm(vector))
                i = to_new.argmin()
                j = likeness[i].argmax()
                if to_new[i] < likeness[i, j] and iou > entries[j][2] - 0.1:
                    entries.pop(j)
                    entries.append((n, vector, iou))
            assert self.held(bank) == [n for n, _, _ in entries]

    def test_the_slices_most_like_the_queried_one_are_read(self):
        bank = SelfSortingMemory(read=2).bank(MODULE)
        for n, degrees in enumerate((0, 30, 60, 90)):
            bank.add(memory(n, embedding=angle(degrees)))
        read = bank.read(query(9, embedding=angle(65)), {5: memory(5)})
        # The nearer of the two in space takes the place of the last slice.
        assert numbers(read.spatial) == [(0, 5), (6, 3), (5, 2)]
        assert numbers(read.pointers) == [(4, 5), (6, 3), (7, 2)]

    @pytest.mark.parametrize("mode", SortingMode)
    def test_prompted_slices_are_always_read(self, mode):
        bank = SelfSortingMemory(mode, capacity=2).bank(MODULE)
        for n in range(20):
            bank.add(memory(n, angle(n * 10)))
        read = bank.read(query(30), {40: memory(40), 41: memory(41)})
        assert [kept.n for _, kept in read.spatial[:2]] == [40, 41] and len(read.spatial) == 4

    def test_unordered_images_have_neither_time_nor_pointers(self):
        bank = SelfSortingMemory().bank(MODULE)
        bank.add(memory(3))
        read = bank.read(query(9, ordered=False), {5: memory(5)})
        assert numbers(read.spatial) == [(None, 5), (None, 3)] and read.pointers == []

    def test_random_reading_repeats_with_its_seed_and_prefers_what_is_alike(self):
        rule = SelfSortingMemory(SortingMode.REFERENCE, seed=7, read=1000)
        draws = []
        for _ in range(2):
            bank = rule.bank(MODULE)
            for n, degrees in enumerate((0, 90)):
                bank.add(memory(n, embedding=angle(degrees)))
            draws.append([kept.n for _, kept in bank.read(query(9), {}).spatial])
        assert draws[0] == draws[1]
        # softmax(1 / 0.1) against softmax(0 / 0.1): 22,000 to 1
        assert draws[0].count(0) > 995
        bank = SelfSortingMemory(seed=7, read=2).bank(MODULE)
        for n in range(5):
            bank.add(memory(n, embedding=angle(10 * n)))
        drawn = [kept.n for _, kept in bank.read(query(9), {}).spatial]
        assert len(set(drawn)) == 2


@pytest.mark.parametrize("mode", SortingMode)
@pytest.mark.parametrize("ordered", [True, False])
def test_volumes_and_unordered_sets_are_tracked_with_a_sorting_bank(mode, ordered):
    images = discs((80, 80), *[(30 + 2 * n, 40, 12) for n in range(8)])
    tracker, heads = bright_tracker(images, memory=SelfSortingMemory(mode, capacity=3), ordered=ordered)
    tracker.prompt("it", 3, prompt(box=[24, 28, 48, 52]))
    results = list(tracker.propagate())
    assert sorted(r.n for r in results) == list(range(8))
    assert all(r.mask_hw.any() for r in results)
    # The last slice read is 0, reached in reverse from 3; or 7, after all others.
    assert len(heads.read.spatial) == (3 if ordered else 4)
    assert (not ordered) is all(region.stock for region in tracker.state("it").regions.values())
