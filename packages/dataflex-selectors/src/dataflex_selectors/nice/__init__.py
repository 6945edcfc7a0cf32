"""NICE: influence on the reward of the model's own answers, where the reward cannot be differentiated.

One idea per module: :mod:`prompts` (what is asked), :mod:`sampling` (what the model answers), :mod:`rewards`,
:mod:`reward_model` and :mod:`judge`, which asks through :mod:`chat` (the reward of an answer), :mod:`settings` (which
of these it is), :mod:`policy` (from rewards to a gradient), :mod:`goal` (from an evaluation set to target sets),
:mod:`rewarded` (the parameters of all of this), and :mod:`nice_selector`, which chooses rows by it.
"""
