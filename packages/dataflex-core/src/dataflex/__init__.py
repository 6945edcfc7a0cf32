"""dataflex: training data that changes while a model trains, on top of LLaMA-Factory.

Importing this package loads neither torch nor transformers nor llamafactory; the parts that need them are imported by
their full path (``dataflex.train.trainer``, ``dataflex.scoring``, ...).
"""

__version__ = "0.1.0"
