"""What the user points at: mouse and keys in slice views, prompts as nodes of the scene, and what they say.

Begin with ``SliceInteraction`` (a click comes in) and ``PromptMarkups`` (it becomes a node, then words).
"""
