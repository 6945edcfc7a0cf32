"""Files of OpenDCAI/DataFlex 1.0 and 1.1, read as ours: the table of its keys and parameters, and who applies it."""
