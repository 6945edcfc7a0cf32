"""The door for Python programs: ``dynamic(Trainer, selector=...)`` over any trainer of transformers."""
