"""Which regions of a slice will probably be asked for next, to be encoded while nobody waits."""

from typing import TYPE_CHECKING

from medsam2_core.engine.zoom import Box, Region, Zoom

if TYPE_CHECKING:
    from medsam2_core.engine.states import ObjectState
    from medsam2_core.engine.tracker import Tracker


def expected_regions(tracker: "Tracker", n: int) -> list[Region]:
    """Where a click, or tracking, would look on slice `n`; each region once, the likeliest first.

    Exact for slices that have a mask, and without zoom for all. Near them tracking looks where the object was
    seen last. Elsewhere nothing is expected: the first look is centred on the click.
    """
    zoom = tracker.zoom(n)
    if zoom is None:
        return [Region.whole(tracker.source.shape_of(n))]
    regions = [_region_of(tracker.state(name), n, zoom) for name in tracker.object_ids]
    return list(dict.fromkeys(region for region in regions if region is not None))


def _region_of(state: "ObjectState", n: int, zoom: Zoom) -> Region | None:
    if n in state.conditioning:
        return state.conditioning[n].prediction.region
    if n in state.recent:
        return state.recent[n][1]
    if n in state.masks:
        return state.regions[n]
    seen = [m for m, mask in state.masks.items() if not mask.is_empty]
    if not seen:
        return None
    nearest = min(seen, key=lambda m: abs(m - n))
    return zoom.follow(state.regions[nearest], Box.of_mask(state.masks[nearest].mask_hw))
