"""One Ray for the process: the cluster that was named, or one started here for the time of the run."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.layouts import Layout

LOGICAL_CPUS = 32
"""Ray counts CPUs to place actors; ours wait for each other more than they compute, so a laptop may have as many as it takes."""
OBJECT_STORE_BYTES = 1 << 30
KNOCK_SECONDS = 10.0
HANDED_ON = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE")
"""What every process of ours needs of this one's environment, on whichever machine: where our code lies, where models do."""


def ensure_ray(layout: Layout) -> None:
    if ray.is_initialized():
        return
    environment = {"env_vars": {name: os.environ[name] for name in HANDED_ON if name in os.environ}}
    if layout.cluster.address:
        try:
            _knock(layout.cluster.address)
            ray.init(address=layout.cluster.address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, ValueError, RuntimeError) as error:
            cure = "start it with `ray start --head`, or leave cluster.address=null to have one started here"
            raise UserError(f"no Ray cluster answers at cluster.address={layout.cluster.address}: {error}", cure) from None
        return
    on_cpu = layout.workers == "cpu"
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS if on_cpu else None,
        num_gpus=0 if on_cpu else None,
        object_store_memory=OBJECT_STORE_BYTES if on_cpu else None,
        resources={layout.reference.resource: 1} if layout.reference.dedicated else None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env=environment,
    )


def _knock(address: str) -> None:
    """Where HOST:PORT is named: Ray itself tries for minutes to reach what is not there, or is no Ray, and cannot be told to
    stop; so a process of its own tries. "auto" and ray:// are its own affair."""
    host, colon, port = address.rpartition(":")
    if not colon or "//" in host:
        return
    socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    asks = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(asks, capture_output=True, text=True, timeout=KNOCK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"what listens there did not answer as Ray does within {KNOCK_SECONDS:g} s") from None
    if answer.returncode:
        raise OSError(answer.stderr.strip().rpartition("\n")[2] or f"ray health-check failed with {answer.returncode}")


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """For actors that talk to what listens on this machine only: the tool server, the card store's file."""
    return NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
