"""Words by slice: replacing all that was said about a slice, so that what is said decides what is seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.states import Found, SliceResult
from medsam2_core.errors import PromptError
from medsam2_core.prompts import Box, PixelPrompts, Prompt, mask_on_slice, resolve

if TYPE_CHECKING:
    from medsam2_core.engine.tracker import Tracker
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session.changes import Changes, SessionState
    from medsam2_core.session.history import History


@dataclass(frozen=True)
class Words:
    """Everything said about one object on one slice.

    Attributes
    ----------
    prompts
        In the order they were given; none takes back what was said.
    known
        The answer, where it is known: taken as it is, the model is not asked. Without prompts it is the
        user's own mask.
    final
        Neither tracking nor prompts change the slice, as it stands after the prompts.
    """

    prompts: Sequence[Prompt] = ()
    known: Found | NDArray[np.bool_] | None = None
    final: bool = False


class Answers:
    """The part of a :class:`~medsam2_core.session.Session` that takes words slice by slice.

    The same words on a slice give the same mask, bit for bit, in any session of the same volume, window,
    model, device and number of threads: whatever was said and taken back before, and whatever is said on
    other slices. That holds as long as

    - tracking has not been on the slice. Where it has, its mask is what the words correct, and memories of
      other slices help; so the answer depends on what was tracked when they were said. When all words are
      taken back, that mask stands again;
    - no predicted box is among the words: those refine the mask that came with it, for who knows it;
    - the slice was spoken about with :meth:`say` only. :meth:`~medsam2_core.session.Session.prompt` also
      looks at where the object is on neighbouring slices, and answers several prompts at once.
    """

    if TYPE_CHECKING:
        stack: SliceStack
        tracker: Tracker
        _prompts: PromptSet
        _changes: Changes
        _history: History[SessionState]

        def _said_elsewhere(self, name: str, n: int) -> list[Prompt]: ...

    def say(
        self,
        name: str,
        n: int,
        prompts: Sequence[Prompt],
        *,
        known: Found | NDArray[np.bool_] | None = None,
        final: bool = False,
    ) -> SliceResult | None:
        """Replace everything that was said about an object on slice ``n``.

        Prompts that begin with the ones said before refine the answer; others are answered afresh, one prompt
        after the other. A new name makes a new object.

        Parameters
        ----------
        prompts, known, final
            See :class:`Words`.

        Returns
        -------
        SliceResult or None
            The slice as it is then; None when nothing is left on it.

        Raises
        ------
        PromptError
            Before anything is changed: prompts that do not fit, or lie on other slices; ``final`` where there
            is no mask.
        """
        return self.say_all(name, {n: Words(prompts, known, final)})[n]

    def say_all(self, name: str, words: Mapping[int, Words]) -> dict[int, SliceResult | None]:
        """:meth:`say` for several slices of an object as one step: all of it happens, or nothing."""
        for n, one in words.items():
            self._check(n, one)
        with self._history.step(f"prompt {name}"):
            for n, one in words.items():
                self._take_words(name, n, one)
        return {n: self._standing(name, n) for n in words}

    def restore_object(
        self, name: str, slices: Mapping[int, Words], tracked: Mapping[int, Found]
    ) -> dict[int, SliceResult | None]:
        """Replace all that is known of an object, as one step.

        Parameters
        ----------
        slices
            What the user says, by slice; with known answers the model is not asked.
        tracked
            What tracking had found, by slice. On slices of both, the words of ``slices`` correct this mask,
            and it stands again when they are taken back; final ones without prompts are these masks.

        Returns
        -------
        dict
            The slices of ``slices`` as they are then.

        Raises
        ------
        PromptError
            Words or masks that do not fit; then nothing has changed.
        """
        for n, one in slices.items():
            self._check(n, one)
        with self._history.step(f"restore {name}"):
            self._put_in_place(name, slices, tracked)
        return {n: self._standing(name, n) for n in slices}

    def _put_in_place(self, name: str, slices: Mapping[int, Words], tracked: Mapping[int, Found]) -> None:
        """:meth:`restore_object` within a step that is open already."""
        frozen = {n for n, one in slices.items() if one.final and not one.prompts and one.known is None}
        if name in self._prompts.names:
            self._prompts.objects[name] = []
        if name in self.tracker.object_ids:
            self.tracker.remove_object(name)
        self._changes.forget(name)
        # The words correct what tracking had found on their slices. Its other masks come afterwards: where
        # tracking has not been, words mean the same whenever they are said.
        beneath = {n: found for n, found in tracked.items() if n in slices and n not in frozen}
        self.tracker.take_over(name, beneath)
        for n, one in slices.items():
            if n not in frozen:
                self._take_words(name, n, one)
        self._prompts.add_object(name)
        beside = {n: found for n, found in tracked.items() if n not in beneath}
        self.tracker.take_over(name, beside)
        for n in frozen:
            self._take_words(name, n, slices[n])

    def _check(self, n: int, words: Words) -> None:
        """PromptError for words that cannot be about slice ``n``."""
        if not 0 <= n < len(self.stack):
            raise PromptError(f"there is no slice {n}: slices are 0 to {len(self.stack) - 1}")
        others = sorted(set(resolve(words.prompts, self.stack)) - {n})
        if others:
            raise PromptError(f"a prompt for slice {n} lies on slice {others[0]}: say it there")
        if words.known is not None:
            mask_on_slice(_found(words.known).mask_hw, n, self.stack)

    def _take_words(self, name: str, n: int, words: Words) -> None:
        was_final = self._is_final(name, n)
        if was_final:
            self.tracker.release(name, n)
        is_new = self._replace(name, n, words)
        if words.final:
            if name not in self.tracker.object_ids:
                raise PromptError(f"slice {n} of object {name!r} has no mask yet that could be final")
            self.tracker.finalise(name, n)
        if is_new or (was_final and not words.final and not self._is_said(name, n)):
            self._changes.add(name, n)

    def _replace(self, name: str, n: int, words: Words) -> bool:
        """Put words in the place of others; whether that made a difference."""
        prompts = list(words.prompts)
        if not prompts and words.known is None:
            if not self._is_said(name, n):
                return False
            kept = self._said_elsewhere(name, n)
            self.tracker.uncover(name, n)
            self._prompts.objects[name] = kept
            return True
        if words.known is not None:
            self._prompts.add_object(name)
            self._accept(name, n, prompts, _found(words.known))
            return True
        here = self._said_here(name, n)
        can_refine = self._is_by_words(name, n) or self._is_predicted(name, n, here)
        if here == prompts and can_refine:
            return False
        self._prompts.add_object(name)
        kept = self._said_elsewhere(name, n)
        refines = bool(here) and prompts[: len(here)] == here and can_refine
        if not refines and self._is_said(name, n):
            self.tracker.uncover(name, n)
        for count in range(len(here) + 1 if refines else 1, len(prompts) + 1):
            self.tracker.prompt(name, n, resolve(prompts[:count], self.stack)[n], by_words=True)
        self._prompts.objects[name] = kept + prompts
        return True

    def _accept(self, name: str, n: int, prompts: list[Prompt], known: Found) -> None:
        kept = self._said_elsewhere(name, n)
        if self._is_said(name, n):
            self.tracker.uncover(name, n)
        mask_hw = np.asarray(known.mask_hw, dtype=bool)
        if prompts:
            said = resolve(prompts, self.stack)[n]
        else:
            said = PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), mask_hw=mask_hw)
            drawn = mask_on_slice(mask_hw, n, self.stack)
            prompts = [] if drawn is None else [drawn]
        self.tracker.accept(name, n, said, known)
        self._prompts.objects[name] = kept + prompts

    def _said_here(self, name: str, n: int) -> list[Prompt]:
        """What was said about an object on slice ``n``."""
        if name not in self._prompts.names:
            return []
        elsewhere = set(map(id, self._said_elsewhere(name, n)))
        return [prompt for prompt in self._prompts.of(name) if id(prompt) not in elsewhere]

    def _is_said(self, name: str, n: int) -> bool:
        return name in self.tracker.object_ids and n in self.tracker.state(name).conditioning

    def _is_by_words(self, name: str, n: int) -> bool:
        return self._is_said(name, n) and self.tracker.state(name).conditioning[n].by_words

    def _is_predicted(self, name: str, n: int, here: list[Prompt]) -> bool:
        """Whether the slice shows the mask a model found with its predicted box."""
        predicted = any(isinstance(prompt, Box) and prompt.predicted for prompt in here)
        return predicted and self._is_said(name, n)

    def _is_final(self, name: str, n: int) -> bool:
        outcomes = self.tracker.state(name).outcomes if name in self.tracker.object_ids else {}
        return n in outcomes and outcomes[n].final

    def _standing(self, name: str, n: int) -> SliceResult | None:
        is_there = name in self.tracker.object_ids and n in self.tracker.state(name).outcomes
        return self.tracker.result(name, n) if is_there else None


def _found(known: Found | NDArray[np.bool_]) -> Found:
    return known if isinstance(known, Found) else Found(np.asarray(known, dtype=bool))
