"""The feature cache: least recently used goes first, prompted slices last, and the limit always holds."""

import gc
import random

import pytest
import torch
from medsam2_core.engine.cache import FeatureCache, FeatureKey, SliceFeatures
from medsam2_core.engine.zoom import Region

WHOLE = Region(0, 0, 10, 10)


class Owner:
    """Somebody who pins."""


def key(n, source="scan", region=WHOLE, **others):
    return FeatureKey(source, n, region, **{"image_size": 64, "weights": "w", "precision": "fp32", **others})


def features(kilobytes=1):
    return SliceFeatures(
        torch.zeros(kilobytes * 128), (torch.zeros(kilobytes * 64), torch.zeros(kilobytes * 64))
    )


def test_the_least_recently_used_is_forgotten_first():
    cache = FeatureCache(3 * 1024)
    for n in range(3):
        cache.put(key(n), features())
    assert cache.get(key(0)) is not None
    cache.put(key(3), features())
    assert [n for n in range(4) if key(n) in cache] == [0, 2, 3]
    assert (cache.hits, cache.misses, cache.nbytes) == (1, 0, 3072)
    assert cache.get(key(1)) is None and cache.misses == 1


def test_prompted_slices_are_forgotten_last_but_do_not_break_the_limit():
    cache = FeatureCache(3 * 1024)
    cache.pin(owner := Owner(), "scan", range(3))
    for n in range(3):
        cache.put(key(n), features())
    cache.put(key(7), features())  # only pinned ones could go: the oldest does
    assert cache.nbytes <= 3 * 1024 and key(7) in cache and key(0) not in cache
    cache.put(key(8), features())
    assert key(7) not in cache and key(1) in cache
    cache.pin(owner, "scan", [0, 2])
    cache.put(key(9), features())
    cache.put(key(10), features())
    assert key(1) not in cache and key(2) in cache


def test_a_pin_ends_with_its_owner_but_not_with_that_of_another():
    cache = FeatureCache(2 * 1024)
    owner, other = Owner(), Owner()
    cache.pin(owner, "scan", [0, 1])
    cache.pin(other, "scan", [1])
    for n in range(2):
        cache.put(key(n), features())
    del owner
    gc.collect()
    for n in (7, 8):
        cache.put(key(n), features())
        assert key(1) in cache and key(n) in cache and key(0) not in cache


def test_what_is_larger_than_the_limit_is_not_kept():
    cache = FeatureCache(2048)
    cache.put(key(0), features())
    cache.put(key(1), features(3))
    assert key(0) in cache and key(1) not in cache
    nothing = FeatureCache(0)
    nothing.put(key(0), features())
    assert len(nothing) == 0 and nothing.nbytes == 0
    with pytest.raises(ValueError, match="-1 bytes"):
        FeatureCache(-1)


def test_the_limit_holds_whatever_happens():
    rng = random.Random(0)
    cache = FeatureCache(20 * 1024)
    owners = [Owner(), Owner()]
    for _ in range(3000):
        n = rng.randrange(60)
        action = rng.random()
        if action < 0.6:
            cache.put(key(n), features(rng.randrange(1, 6)))
        elif action < 0.8:
            cache.get(key(n))
        else:
            cache.pin(owners[n % 2], "scan", rng.sample(range(60), n))
        assert cache.nbytes <= cache.byte_limit
        assert cache.nbytes == sum(found.nbytes for found in cache._entries.values())
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_features_of_one_image_are_never_taken_for_those_of_another():
    others = [
        key(1),
        key(0, source="scan in another window"),
        key(0, region=Region(0, 0, 9, 10)),
        key(0, image_size=128),
        key(0, weights="others"),
        key(0, precision="bf16"),
    ]
    cache = FeatureCache()
    cache.put(key(0), features())
    assert all(cache.get(other) is None for other in others)
