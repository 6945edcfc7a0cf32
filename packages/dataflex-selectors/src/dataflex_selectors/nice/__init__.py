"""NICE: influence on what the model's own answers are worth, where that cannot be differentiated.

One idea per module: :mod:`prompts` (what is asked), :mod:`sampling` (what the model answers), :mod:`rewards`,
:mod:`reward_model` and :mod:`judge`, which asks through :mod:`chat` (what an answer is worth), :mod:`settings` (which
of these it is), :mod:`policy` (from rewards to a gradient), :mod:`goal` (from an evaluation set to target sets),
:mod:`rewarded` (the parameters of all of this), and :mod:`nice_selector`, which chooses rows by it.
"""
