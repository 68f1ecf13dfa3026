"""Prompts: mouse and keys in slice views, nodes of the scene, and their conversion to ``SlicePrompts``.

Begin with ``SliceInteraction`` (events to gestures), ``PromptMarkups`` (gestures to nodes) and
``PromptConversion`` (nodes to prompts in IJK).
"""
