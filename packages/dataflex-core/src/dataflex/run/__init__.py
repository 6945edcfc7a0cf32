"""What a run leaves behind: the trace, the selections, the resolved configuration, and the state in each checkpoint."""
