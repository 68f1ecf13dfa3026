"""How good is it? A simulated user prompts, propagates and corrects; independent metrics judge, baselines
compare.
"""
