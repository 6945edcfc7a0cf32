"""What makes a run of the workspace short, for tests of the command line."""

QUICK = [
    "per_device_train_batch_size=4",
    "do_eval=false",
    "plot_loss=false",
    "logging_steps=1",
    "save_steps=100",
    "disable_tqdm=true",
    "cutoff_len=64",
    "max_samples=60",
]
