"""`dataflex-cli train` with USE_RAY=1 where there is no GPU, once for each list of arguments in a JSON file.

LLaMA-Factory reserves a bundle of 10 CPUs for every device of the cluster, and without a GPU it counts each CPU as a
device: the sum is ten times what there is, and the reservation is never granted. Here a bundle is reserved for each
worker, as it is where the workers are as many as the GPUs. Everything after that is LLaMA-Factory's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llamafactory.train.tuner as tuner
import ray
from dataflex.cli.main import run

WORKERS = 2
get_placement_group = tuner.get_placement_group

if __name__ == "__main__":
    tuner.get_placement_group = lambda devices: get_placement_group(WORKERS)
    cluster = json.dumps({"num_cpus": 10 * WORKERS, "include_dashboard": False})
    common = [f"ray_num_workers={WORKERS}", f"ray_init_kwargs={cluster}"]
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        code = run([*argv, *common, f"master_addr={ray.util.get_node_ip_address()}"])
        if code:
            sys.exit(code)
