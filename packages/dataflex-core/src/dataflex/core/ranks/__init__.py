"""The collectives: what one rank says to all, and what all put together."""
