"""What each event of a trace means, for `pagebox trace --markdown`; docs/lifecycle.md is made of these words."""

from __future__ import annotations

from types import MappingProxyType

INTRODUCTION = """\
# The life of one request

This page was written by `pagebox trace`: one request, run by the real engine, told by the events that the engine
reports about it. Then each event is explained, with the functions that do the work. [architecture.md](architecture.md)
has the map that goes with it. The command was
"""

HOW_TO_REPEAT = """\
where the model is given by its folder; `pagebox model pull demo` prints the one of the demo model. Without `--markdown`
the same events appear line by line as they happen, with `--json` as objects for a program. For docs/lifecycle.md a test
repeats the trace on the demo model and compares every line, times excepted; to write it anew, send the output there.
"""

READING = """\
The times are an **example**: they are milliseconds since the intake on the machine that wrote this page, and differ
with each run. All else is determined by the model, the prompt and the settings. Steps are numbered since the start of
the engine, whose warm-up took the first ones.
"""

EVENTS = MappingProxyType(
    {
        "intake": """\
A text arrives. The trace has no HTTP server around it; in a server, intake is the handler
`appliance.server.routes.completions.completions` (or `appliance.server.routes.chat.chat_completions`). It decodes and
checks the body (`appliance.server.body.read_request`) and takes a place in the queue *before* it tokenizes
(`appliance.server.admission.AdmissionQueue.enter`), so that refusing under overload costs next to nothing.""",
        "tokenized": """\
`appliance.text.tokenizer.Tokenizer.encode` turns the text into token ids. Text never goes further than this: the engine
knows ids alone. A server does it inline for short prompts and in a thread for long ones
(`appliance.server.tokenizer_holder.TokenizerHolder.run`), and makes one
`appliance.protocol.wire.AddRequest` of each of the `n` sequences that a request asks for.""",
        "queued": """\
`appliance.engine.core.EngineCore.add` hands the request to `appliance.engine.scheduler.Scheduler.add_request`. What can
never run is refused here, with the number to change: `appliance.engine.request.Request.from_wire` checks it against
the context, `appliance.engine.kv_cache.manager.KVCacheManager.check_fits` against the whole cache. Everything else
waits in the order of the policy (`appliance.engine.policies.make_waiting_queue`).""",
        "admitted": """\
`appliance.engine.scheduler.Scheduler._admit_waiting` takes the next request when a row is free, the step has tokens
left, and all its known tokens fit beside what the running requests are about to need. The row is the request's place in
the runner's persistent batch until it finishes or is preempted. `find_prefix` looks up its full blocks by the hash of
their content and of everything before them; what is found is shared and not computed again, except the last
token, whose logits are needed.""",
        "blocks_allocated": """\
`appliance.engine.kv_cache.manager.KVCacheManager.grow` takes blocks for the tokens of this step and no more:
⌈tokens / block size⌉ in all. A later chunk takes its own, and generated tokens take one more block each time they cross
the end of the last. The block table is the request's blocks in order of position; they need not be neighbours.""",
        "scheduled": """\
`appliance.engine.scheduler.Scheduler._schedule_chunk` puts the next tokens of the request into the step. A prompt
longer than what the step's token budget has left is cut (chunked prefill); a generated token is simply a chunk of one.
The keys and values of the token at position `p` go to the slot

    block_table[p // block_size] * block_size + p % block_size

which the runner computes for all tokens of the step at once (`appliance.runner.block_table.BlockTable.slots`). Blocks
that this step fills are findable as prefixes from now on (`promise`).""",
        "step": """\
`appliance.engine.core.EngineCore.step` schedules, lets the executor run the step, and takes in the outcome
(`appliance.engine.scheduler.Scheduler.update`). `appliance.runner.model_runner.ModelRunner.execute` runs one forward
pass over the tokens of all requests of the step, prompts and generated ones mixed, without padding. The time is that of
the executor. While a traced request waits, it is told of every step, its own tokens in it or not.""",
        "token": """\
`appliance.runner.sampling.sampler.sample` chooses a token for each request whose known tokens are all computed. A
chunk that ends inside the prompt yields none, so a prompt that was cut has steps without a token.
`appliance.engine.request.Request.append_token` adds the token and decides whether the request ends with it.""",
        "streamed": """\
What the token adds to the text (`appliance.text.sequence.SequenceStream.push`). It is empty while the bytes are half
a character, or while the text may yet become a stop string. A server sends it as a chunk
(`appliance.server.chat_reply.ChatReply.chunk`, `appliance.server.sse.EventStream.send`).""",
        "finished": """\
`appliance.engine.scheduler.Scheduler._finish` gives row and blocks back, in the step that ended the request and before
its last text is on its way: `stop` for an end-of-sequence or stop token, `length` for max-tokens or the end of the
context, `abort` when the client left or a stop string was found, `error` when it failed. The runner hears of the row
with the next step. The blocks keep their content: the next request that begins alike finds them, until they are needed
for something else, the least recently used first.""",
        "cleanup": """\
The numbers of `appliance.engine.core.EngineCore.stats` once nothing runs: a cache that is not at zero here is a leak.
In a server they are the gauges `vllm:kv_cache_usage_perc`, `vllm:num_requests_running` and
`vllm:num_requests_waiting`.""",
        "preempted": """\
the blocks ran out, and this request had the lowest claim. `appliance.engine.scheduler.Scheduler._preempt` takes its
row and blocks and puts it back in the queue, where it keeps its old place. Admitted again, it computes its tokens once
more, those excepted that are still in the prefix cache; the tokens that it has generated stay as they are.""",
        "refused": """\
the request can never run here: it is longer than the context, or than the whole cache. Nothing of it is kept.""",
        "error": """\
this request failed, or the step that it was in (`appliance.engine.scheduler.Scheduler.fail_step`); others go on.""",
    }
)

AROUND = """\
## Around it, in a server

* **intake, tokenized** happen in the server process, which has no torch and no device.
* **queued**: `appliance.engine.client.EngineClient.generate` sends the `AddRequest` as a frame over a Unix socket, and
  `appliance.engine.loop.EngineLoop.run` takes it in between two steps.
* **admitted** to **finished** happen in the engine process, in the code named above.
* **streamed**: what a step added to all requests comes back as one frame, `appliance.protocol.wire.StepOutputs`;
  `appliance.server.generation.Generation.run` hands each HTTP request its part.
* **cleanup**: whenever `Generation.run` is left early (by a stop string, an error, a timeout, or because the client has
  disconnected) it aborts in the engine what still runs; rows and blocks are free before the next step is scheduled.
"""
