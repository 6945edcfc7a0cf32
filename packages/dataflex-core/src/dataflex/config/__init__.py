"""Reading, splitting and checking what the user wrote. Nothing here imports torch, transformers or llamafactory."""
