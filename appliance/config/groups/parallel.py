"""How one model is spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.config.declaration import setting


@dataclass(frozen=True)
class ParallelSettings:
    """How one model is spread over devices."""

    tensor_parallel_size: int = setting(
        1,
        purpose="Devices that share every layer: each holds a slice of every weight matrix and of the attention "
        "heads. It must divide the number of attention heads.",
        memory="Weights and KV cache of each device shrink by this factor.",
        throughput="Lowers latency, as weights are read by all devices at once; two all-reduces a layer are the "
        "price, so it wants NVLink.",
        typical="1; the number of GPUs of one machine when the model does not fit on one.",
        formula="weights per device ≈ weight bytes ÷ (tensor-parallel-size × pipeline-parallel-size)",
        minimum=1,
        not_built="Tensor parallelism is not built yet; one device serves the whole model.",
    )
    pipeline_parallel_size: int = setting(
        1,
        purpose="Groups of consecutive layers, each on its own device.",
        memory="Weights and KV cache of each device shrink by this factor.",
        throughput="Keeps latency, raises throughput when enough requests are in flight to fill the stages; needs "
        "little bandwidth between devices.",
        typical="1; the number of machines when one is too small.",
        minimum=1,
        not_built="Pipeline parallelism is not built yet; one device serves the whole model.",
    )
    data_parallel_size: int = setting(
        1,
        purpose="Complete copies of the model (engine processes) behind one server, which balances over them.",
        memory="Each copy needs the whole model's memory on its own devices.",
        throughput="Grows almost in proportion, as the copies share nothing.",
        typical="The number of GPUs when the model fits on one.",
        formula="devices = data-parallel-size × tensor-parallel-size × pipeline-parallel-size",
        minimum=1,
        not_built="Data parallelism is not built yet; one engine process serves the model.",
    )
    decode_context_parallel_size: int = setting(
        1,
        purpose="Devices of a tensor-parallel group that split one request's KV cache along its length, where there "
        "are fewer KV heads than devices.",
        memory="Saves the copies of KV heads that tensor parallelism otherwise keeps.",
        throughput="More requests fit, at one more exchange a layer in decoding.",
        typical="1; up to tensor-parallel-size ÷ KV heads.",
        minimum=1,
        not_built="Decode-context parallelism is not built yet.",
    )
    distributed_executor_backend: Literal["uni", "mp", "ray"] = setting(
        "uni",
        purpose="What runs the workers of several devices: uni, in the engine process itself; mp, one process a "
        "device on this machine; ray, several machines.",
        memory="Each worker process has its own copy of the libraries in host memory.",
        throughput="uni has no hand-over between processes and is fastest on one device.",
        typical="uni.",
        not_built="Only uni, one device in the engine process, is built yet.",
    )
