"""What the effect does: the user's actions become words for the session, its answers become voxels.

Begin with ``EffectController``. No Qt here, except in ``EffectWindow``, which puts panel and views round it.
"""
