"""Flower's configuration file, given to it by `--conf`; FLOWER_... in the environment sets whatever is not set here.

Nobody gets in without a password: who is in Flower can run tasks.  `/metrics` and `/healthcheck` need none, so that
Prometheus and health checks can ask.
"""

import os
import sys

if not os.environ.get("FLOWER_BASIC_AUTH", "").partition(":")[2]:
    sys.exit("Error: Flower needs FLOWER_BASIC_AUTH=user:password; `make up` makes one up and prints it")

#: A task's arguments are its calls, `product[42] +17`: what an operator looks for.
tasks_columns = "name,args,state,received,runtime,worker"
#: How long workers may take to say what they are and consume, milliseconds; one that is late is unknown.
inspect_timeout = 2_000.0
#: Oldest first out of memory.
max_tasks = 10_000
#: Workers that were scaled away leave the list after this many seconds.
purge_offline_workers = 600
#: Loads take milliseconds; Flower's own buckets begin at five of them.
task_runtime_metric_buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
