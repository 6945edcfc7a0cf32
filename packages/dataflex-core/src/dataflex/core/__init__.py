"""The ideas everything else is built on: errors, the schedule, the registry, what a component is and may answer."""
