"""The effect: prompts are sent to the worker's session, and its masks are written into segments.

Begin with ``EffectController``. No Qt here, except in ``EffectWindow``, which adds panel, views and timer.
"""
