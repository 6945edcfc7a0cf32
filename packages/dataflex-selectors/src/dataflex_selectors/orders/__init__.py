"""Orders: in which order the rows that were chosen are trained on. One strategy per module.

Six arrange rows along their scores in a pattern (:mod:`dataflex_selectors.orders.pattern`); the others draw at random,
hold hard rows back, or put rows of similar length together.
"""
