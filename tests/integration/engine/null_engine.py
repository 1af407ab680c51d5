"""An engine process whose model counts instead of computing: `python null_engine.py --socket … --settings …`.

Everything but the model is the real thing. The next token is the last one plus one. Some prompt tokens make trouble.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from appliance.config import Settings
from appliance.engine.core import EngineCore
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.process import main
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.startup_common import OnTrace, ReportPhase
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.wire import EngineReady

VOCAB = 1000
FAILS_ALONE = 901
FAILS_THE_STEP = 902
SLOW = 903  # 20 ms a step, as long as the request is there
NUM_BLOCKS = 64
BLOCK_SIZE = 16


class CountingModel:
    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    depth = 1

    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        for row in step.released_rows:
            self.rows.pop(row, None)
        for new in step.new_rows:
            self.rows[new.row] = list(new.token_ids)
        tokens = [self.rows[row] for row in step.rows]
        if any(FAILS_THE_STEP in known for known in tokens):
            raise RuntimeError("the device is on fire")
        if any(SLOW in known for known in tokens):
            time.sleep(0.02)
        output = ModelOutput(sampled=[])
        for index, known in enumerate(tokens):
            done = step.num_computed_tokens[index] + step.num_scheduled_tokens[index]
            sampled = [(known[-1] + 1) % 900] if done == len(known) else []
            if FAILS_ALONE in known:
                output.errors[index] = "this row is not computable"
                sampled = []
            known += sampled
            output.sampled.append(sampled)
        return lambda: output


def build(settings: Settings, report: ReportPhase, on_trace: OnTrace) -> tuple[EngineCore, EngineReady]:
    if settings.model.model == "not-there":
        raise StartupError("The model folder not-there does not exist; give the path of one that does")
    if settings.model.model == "impossible":
        raise SettingsRefused("These settings contradict each other; change one")
    if settings.model.model == "slow-start":
        for percent in range(0, 100, 20):
            report("loading_weights", "Reading a very long file", percent / 100)
            time.sleep(0.1)
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512)
    scheduler = Scheduler(config, KVCacheManager(NUM_BLOCKS, BLOCK_SIZE), on_event=on_trace)
    ready = EngineReady(
        model="counting",
        max_model_len=512,
        vocab_size=VOCAB,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        dtype="float32",
        device="cpu",
        startup_seconds=0.0,
    )
    return EngineCore(scheduler, CountingModel(), on_trace), ready


if __name__ == "__main__":
    sys.exit(main(build=build))
