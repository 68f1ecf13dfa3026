"""Random sessions: whatever a user does in whatever order, no prompt and no final slice is lost."""

from collections import deque
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.memory import RecentMemory, SelfSortingMemory, SortingMode
from medsam2_core.errors import Cancelled, MedSAM2Error
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet
from medsam2_core.session import Session
from support.errors import raises
from support.model import a_disc
from support.tiny_model import tiny_model

SESSIONS, STEPS = 60, 16
DEPTH, HEIGHT, WIDTH = 7, 44, 40
NAMES = ("liver", "cyst")
A_BOX = Box((1, 1, 2), (9, 9, 2))
POLICIES = (
    RecentMemory(),
    RecentMemory(nearest_conditioning=2),
    SelfSortingMemory(least_iou=0.0, capacity=3),
    SelfSortingMemory(SortingMode.REFERENCE, capacity=2, seed=1),
)


@pytest.fixture(scope="module")
def models():
    return [tiny_model(), tiny_model(score_bias=0.0)]  # the second one loses objects


@pytest.fixture(scope="module")
def volume():
    """A bright disc in noise; slices are numbered, and lie, as their voxels do."""
    voxels = np.random.default_rng(0).integers(0, 90, (DEPTH, HEIGHT, WIDTH)).astype(np.int16)
    for k in range(DEPTH):
        voxels[k][a_disc((HEIGHT, WIDTH), (18 + k, 24 - k), 7)] += 120
    return Volume(voxels, Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), (WIDTH, HEIGHT, DEPTH)))


def test_no_prompt_and_no_final_slice_is_lost_whatever_is_done(models, volume, campaign, record_property):
    record_property("random cases", SESSIONS * campaign)
    for seed in range(SESSIONS * campaign):
        rng = np.random.default_rng(seed)
        cache = FeatureCache(int(rng.choice([0, 20_000, 60_000, 2**24])))
        session = Session.open(
            volume,
            models[rng.integers(2)],
            memory=POLICIES[rng.integers(len(POLICIES))],
            zoom=("auto", "off")[rng.integers(2)],
            cache=cache,
        )
        player = Player(session, rng)
        for step in range(STEPS):
            try:
                player.play()
            except Exception as error:
                raise AssertionError(f"session {seed}, step {step}: {player.log}") from error
            assert cache.nbytes <= cache.byte_limit


def picture(session: Session) -> dict:
    """Everything a user sees of a session."""
    prompts = session.prompts
    return {
        name: (
            prompts.of(name),
            {r.n: (r.mask_hw.tobytes(), r.predicted_iou, r.object_score, r.prompted, r.final)
             for r in session.results(name)},
        )
        for name in session.object_names
    }  # fmt: skip


class Player:
    """Does random things with a session and knows what must hold after each of them."""

    def __init__(self, session: Session, rng: np.random.Generator) -> None:
        self.session, self.rng = session, rng
        self.log: list[str] = []
        self.past: deque[tuple[dict, Callable[[], None] | None, dict]] = deque()

    def play(self) -> None:
        """One step."""
        if self.rng.random() < 0.2:
            self.undo()
            return
        before, count = picture(self.session), len(self.session.undo_steps)
        deed = self.some_deed()
        try:
            deed()
        except MedSAM2Error as error:
            self.log[-1] += f" ({error})"
            assert picture(self.session) == before, "what is refused changes nothing"
            assert len(self.session.undo_steps) == count
            return
        after = picture(self.session)
        if len(self.session.undo_steps) > count:
            assert len(self.session.undo_steps) == count + 1, "one deed is one step"
            self.remember(before, deed, after)
        else:
            assert after == before, "what changes anything can be undone"
        self.check(before, after)

    def remember(self, before: dict, deed: Callable[[], None], after: dict) -> None:
        """A step was done. Undo of the last four also brings back the logits of tracked slices."""
        self.past.append((before, deed, after))
        if len(self.past) > 4:
            before, _, after = self.past[-5]
            self.past[-5] = before, None, after

    def undo(self) -> None:
        """Take a step back, and sometimes do it again: both lead exactly to where one has been."""
        self.log.append("undo")
        if not self.past:
            with raises("nothing-to-undo"):
                self.session.undo()
            return
        before, deed, after = self.past.pop()
        self.session.undo()
        assert picture(self.session) == before, "undo leads exactly back"
        assert len(self.session.undo_steps) == len(self.past)
        if deed is not None and self.rng.random() < 0.5:
            self.log.append("again")
            deed()
            assert picture(self.session) == after, "the same again has the same result"
            self.remember(before, deed, after)

    def check(self, before: dict, after: dict) -> None:
        """What holds after every deed."""
        released = self.log[-1].startswith(("release", "finalise", "remove"))
        for name, (prompts, slices) in after.items():
            prompted = {slice_of(prompt) for prompt in prompts}
            shown = {n for n, (_, _, _, prompted, _) in slices.items() if prompted}
            assert prompted <= shown, "a prompted slice stays prompted"
            assert name in self.session.tracker.object_ids or not slices
            earlier = before.get(name, ([], {}))[1]
            for n, (mask, _, _, _, final) in slices.items():
                if n in earlier and earlier[n][4] and not released:
                    assert final and mask == earlier[n][0], "a final slice never changes"
        if not released:
            for name, (_, slices) in before.items():
                finals = {n for n, seen in slices.items() if seen[4]}
                assert finals <= set(after[name][1]), "a final slice is never lost"
        if self.log[-1].startswith("propagate"):
            for name, (prompts, slices) in before.items():
                assert after[name][0] == prompts
                for n, seen in slices.items():
                    assert not seen[3] or after[name][1][n] == seen, "prompted slices stay as they are"

    def some_deed(self) -> Callable[[], None]:
        """Something to do; it can be done again."""
        kinds = [self.say, self.propagate, self.apply, self.mark, self.take_back, self.blunder]
        return kinds[self.rng.choice(len(kinds), p=[0.34, 0.26, 0.06, 0.16, 0.12, 0.06])]()

    def say(self) -> Callable[[], None]:
        name, prompts = self.a_name(), self.some_prompts(int(self.rng.integers(DEPTH)))
        self.log.append(f"prompt {name} {prompts}")
        only_mask = len(prompts) == 1 and isinstance(prompts[0], MaskPrompt)

        def deed() -> None:
            result = self.session.prompt(name, *prompts)
            given = [p for p in self.session.prompts.of(name) if slice_of(p) == result.n]
            assert result.prompted and not result.final
            if only_mask and len(given) == 1:
                assert np.array_equal(result.mask_hw, full_mask(prompts[0])), "a mask is taken as it is"

        return deed

    def apply(self) -> Callable[[], None]:
        prompts = PromptSet()
        for name in NAMES:
            for n in self.rng.choice(DEPTH, int(self.rng.integers(1, 3)), replace=False):
                for prompt in self.some_prompts(int(n)):
                    prompts.add(name, prompt)
        self.log.append(f"apply {prompts}")
        return lambda: self.session.apply(prompts)

    def propagate(self) -> Callable[[], None]:
        first, last = sorted(self.rng.integers(0, DEPTH, 2).tolist())
        options = {
            "names": [None, None, [self.a_name()]][self.rng.integers(3)],
            "direction": ("both", "both", "forward", "reverse")[self.rng.integers(4)],
            "stop_after_absent": (None, 1, 3)[self.rng.integers(3)],
        }
        options |= {"first": first, "last": last} if self.rng.random() < 0.4 else {}
        end = ("all", "all", "cancel", "leave")[self.rng.integers(4)]
        patience = int(self.rng.integers(0, 9))
        self.log.append(f"propagate {options} {end} {patience}")

        def deed() -> None:
            before = picture(self.session)
            calls = iter(range(1000))
            cancels = (lambda: next(calls) >= patience) if end == "cancel" else None
            progress = self.session.propagate(**options, should_cancel=cancels)
            seen = []
            try:
                for result in islice(progress, patience if end == "leave" else None):
                    seen.append((result.object, result.n))
                    assert options.get("first", 0) <= result.n <= options.get("last", DEPTH)
            except Cancelled:
                assert end == "cancel"
            assert len(seen) == len(set(seen)) <= progress.total
            assert progress.done <= progress.total
            for name, (_, slices) in picture(self.session).items():
                for n in set(slices) & set(before[name][1]):
                    inside = options.get("first", 0) <= n <= options.get("last", DEPTH)
                    assert inside or slices[n] == before[name][1][n], "other slices keep their masks"

        return deed

    def mark(self) -> Callable[[], None]:
        name, n, own = self.a_name(), int(self.rng.integers(DEPTH)), self.rng.random() < 0.3
        mask = self.a_mask() if own else None
        if self.rng.random() < 0.3:
            self.log.append(f"release {name} {n}")
            return lambda: self.session.release(name, n)
        self.log.append(f"finalise {name} {n}{' with a mask' if own else ''}")

        def deed() -> None:
            result = self.session.finalise(name, n, mask)
            assert result.final
            assert mask is None or np.array_equal(result.mask_hw, mask)

        return deed

    def take_back(self) -> Callable[[], None]:
        name = self.a_name()
        if self.rng.random() < 0.25:
            self.log.append(f"remove {name}")
            return lambda: self.session.remove_object(name)
        known = self.session.prompts.objects.get(name, [])
        slices = sorted({slice_of(prompt) for prompt in known}) or [0]
        n = int(self.rng.choice(slices)) if self.rng.random() < 0.8 else int(self.rng.integers(DEPTH))
        self.log.append(f"unprompt {name} {n}")
        return lambda: self.session.unprompt(name, n)

    def blunder(self) -> Callable[[], None]:
        """Something that must be refused."""
        name = self.a_name()
        blunders = {
            "outside": lambda: self.session.prompt(name, Point((WIDTH + 5, 3, 2))),
            "no such slice": lambda: self.session.prompt(name, Point((3, 3, DEPTH + 1))),
            "no prompts": lambda: self.session.prompt(name),
            "no name": lambda: self.session.prompt("", Point((3, 3, 2))),
            "two slices": lambda: self.session.prompt(name, Point((3, 3, 2)), Point((3, 3, 3))),
            "two boxes": lambda: self.session.prompt(name, A_BOX, A_BOX),
            "unknown": lambda: self.session.propagate(["nobody"]),
            "inverted": lambda: self.session.propagate(first=4, last=2),
            "beyond": lambda: self.session.propagate(first=0, last=DEPTH),
            "mask of another shape": lambda: self.session.finalise(name, 1, np.ones((3, 3), bool)),
            "final beyond": lambda: self.session.finalise(name, DEPTH),
            "unknown release": lambda: self.session.release("nobody", 1),
            "unknown remove": lambda: self.session.remove_object("nobody"),
            "half an apply": lambda: self.session.apply(
                PromptSet({name: [Point((3, 3, 2))], "far": [Point((3, 3, -9))]})
            ),
        }  # fmt: skip
        what = list(blunders)[self.rng.integers(len(blunders))]
        self.log.append(f"blunder: {what}")

        def deed() -> None:
            with pytest.raises(MedSAM2Error):
                blunders[what]()

        return deed

    def a_name(self) -> str:
        return NAMES[int(self.rng.random() < 0.35)]

    def some_prompts(self, n: int) -> list:
        """A box, one to three clicks, a mask, or a box with clicks, on one slice."""
        x0, y0 = self.rng.integers(0, (WIDTH - 12, HEIGHT - 12)).tolist()
        width, height = self.rng.integers(3, 12, 2).tolist()
        box = Box((x0, y0, n), (x0 + width, y0 + height, n))
        clicks = [
            Point((float(x), float(y), n), bool(self.rng.random() < 0.7))
            for x, y in self.rng.uniform(0, (WIDTH - 1, HEIGHT - 1), (self.rng.integers(1, 4), 2))
        ]
        mask = MaskPrompt(self.a_mask()[None], (0, 0, n))
        return [[box], clicks, [mask], [box, *clicks], [mask, *clicks]][self.rng.integers(5)]

    def a_mask(self) -> np.ndarray:
        """(HEIGHT, WIDTH), empty now and then."""
        centre = self.rng.integers(8, 34, 2)
        return a_disc((HEIGHT, WIDTH), centre, 6) & (self.rng.random() < 0.8)


def slice_of(prompt) -> int:
    """The slice a prompt of these sessions lies on."""
    if isinstance(prompt, MaskPrompt):
        return prompt.offset_ijk[2]
    return round((prompt.ijk if isinstance(prompt, Point) else prompt.first_ijk)[2])


def full_mask(prompt: MaskPrompt) -> np.ndarray:
    """(HEIGHT, WIDTH) of a mask prompt on one slice."""
    out = np.zeros((HEIGHT, WIDTH), bool)
    i, j, _ = prompt.offset_ijk
    _, height, width = prompt.mask_kji.shape
    out[j : j + height, i : i + width] = prompt.mask_kji[0]
    return out
