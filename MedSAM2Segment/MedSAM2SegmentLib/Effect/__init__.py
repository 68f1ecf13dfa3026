"""The effect: prompts are sent to the worker's session, and its masks are written into segments.

Begin with ``EffectController``. No Qt here:
``SegmentEditorEffect`` adds options, mouse and timer.
"""
