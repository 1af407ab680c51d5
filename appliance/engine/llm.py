"""The offline interface: the engine in this process, prompts in, texts out."""

from __future__ import annotations

import itertools
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, cast

import msgspec

from appliance.config import Settings, require_model, resolve_values
from appliance.engine.llm_outputs import CompletionOutput, RequestOutput
from appliance.engine.llm_progress import GenerationBar, LoadingBar
from appliance.engine.startup import build_core
from appliance.protocol.fan_out import fan_out
from appliance.protocol.sampling_params import ParameterError, SamplingParams
from appliance.protocol.seeds import seed_source
from appliance.protocol.wire import AddRequest, TokenDelta
from appliance.text.load_tokenizer import load_tokenizer
from appliance.text.sequence import SequenceStream
from appliance.text.tokenizer import Tokenizer

Prompt = str | list[int] | Mapping[str, Any]
Message = Mapping[str, Any]


class LLM:
    """A model in this process.

        llm = LLM(model="/models/smollm2", max_num_seqs=64)
        for output in llm.generate(["Hello", "The capital of France is"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

    Settings are those of `pagebox serve`, with underscores. Not safe to use from several threads at once.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        """Loads the model. Raises `ConfigError` for settings, `StartupError` for a model that can't be served."""
        resolved = resolve_values({"model": model, **settings})
        require_model(resolved)
        for notice in resolved.notices:
            warnings.warn(notice, stacklevel=2)
        self.settings: Settings = resolved.settings
        self._tokenizer = None if self.settings.model.skip_tokenizer_init else load_tokenizer(self.settings)
        loading = LoadingBar()
        try:
            self._core, self._ready = build_core(self.settings, loading)
        finally:
            loading.close()
        self._numbers = itertools.count()
        self._draw_seed = seed_source(self.settings.model.seed)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError under `skip_tokenizer_init`."""
        if self._tokenizer is None:
            raise ValueError("there is no tokenizer: skip_tokenizer_init is set, so prompts must be token ids")
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt, all in one batch; the outputs are in the prompts' order.

        A prompt is a text, a list of token ids, or `{"prompt": text}` or `{"prompt_token_ids": ids}`. Without
        `sampling_params` the defaults of `SamplingParams` hold; a sequence of them has one for each prompt.
        Raises ValueError (`ParameterError` names the field) before anything runs. A sequence that fails alone has
        finish reason "error"; RuntimeError means that the engine can't go on. Ctrl-C ends all prompts at the next step.
        """
        listed = _as_list(prompts)
        params = self._params_of(listed, sampling_params)
        return self._run([self._begin(prompt, p) for prompt, p in zip(listed, params, strict=True)], use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several. Raises `ChatTemplateError`, and what `generate` raises."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if single else messages)
        kwargs = dict(chat_template_kwargs or {}) | ({"tools": tools} if tools is not None else {})
        prompts = [
            self.get_tokenizer().apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                kwargs=kwargs,
            )
            for conversation in conversations
        ]
        return self.generate(cast(Sequence[Prompt], prompts), sampling_params, use_tqdm)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._core.reset_prefix_cache()

    def _params_of(
        self, prompts: list[Prompt], given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        params = SamplingParams() if given is None else given
        if isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts, but {len(params)} sampling_params")
        for one in params:
            one.validate(self._ready.vocab_size)
            if one.stop and self._tokenizer is None:
                raise ParameterError("stop", "stop strings need a tokenizer, and skip_tokenizer_init is set")
        return list(params)

    def _begin(self, prompt: Prompt, params: SamplingParams) -> _Running:
        text, token_ids = self._tokenized(prompt)
        self._check_prompt(token_ids)
        if params.bad_words:
            params = msgspec.structs.replace(
                params, bad_words_token_ids=self.get_tokenizer().bad_words_ids(params.bad_words)
            )
        request_id = str(next(self._numbers))
        output = RequestOutput(request_id, text, token_ids, [CompletionOutput(index) for index in range(params.n)])
        sequences = [
            _Sequence(
                AddRequest(f"{request_id}-{index}", token_ids, sampling, time.time()),
                SequenceStream(self._tokenizer, token_ids, sampling),
                output,
                output.outputs[index],
            )
            for index, sampling in enumerate(fan_out(params, self._draw_seed))
        ]
        return _Running(output, sequences)

    def _tokenized(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            inner = prompt.get("prompt_token_ids", prompt.get("prompt"))
            if not isinstance(inner, str | list):
                raise ValueError('a prompt given as a dict needs the key "prompt" or "prompt_token_ids"')
            return self._tokenized(inner)
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt)
        return None, list(prompt)

    def _check_prompt(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise ParameterError("prompt", "the prompt has no tokens; at least one is needed")
        wrong = next((token for token in token_ids if not 0 <= token < self._ready.vocab_size), None)
        if wrong is not None:
            highest = self._ready.vocab_size - 1
            raise ParameterError("prompt", f"prompt: token id {wrong} is outside the vocabulary (0 to {highest})")

    def _run(self, running: list[_Running], use_tqdm: bool) -> list[RequestOutput]:
        unfinished = {sequence.add.request_id: sequence for one in running for sequence in one.sequences}
        try:
            for index, one in enumerate(running):
                for sequence in one.sequences:
                    refusal = self._core.add(sequence.add)
                    if refusal is not None:
                        raise ParameterError("prompt", f"prompt {index}: {refusal.error}")
            with GenerationBar(len(running), show=use_tqdm) as bar, _deferred_interrupt() as interrupted:
                while unfinished:
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                    if self._core.fatal_error is not None or not self._core.has_work():
                        raise RuntimeError(f"the engine can't go on: {self._core.fatal_error or 'it lost a request'}")
                    for delta in self._core.step():
                        self._take(delta, unfinished, bar)
        finally:
            self._core.abort(list(unfinished))
        return [one.output for one in running]

    def _take(self, delta: TokenDelta, unfinished: dict[str, _Sequence], bar: GenerationBar) -> None:
        sequence = unfinished.get(delta.request_id)
        part = None if sequence is None else sequence.stream.push(delta)
        if sequence is None or part is None:  # it was just aborted
            return
        completion = sequence.completion
        completion.append(part, self._tokenizer)
        completion.error = delta.error
        sequence.texts.append(part.text)
        bar.add_tokens(len(part.token_ids))
        if completion.index == 0:
            sequence.output.take_prompt_facts(delta, self._tokenizer)
        if part.abort_engine:
            self._core.abort([delta.request_id])
        if part.finish_reason is not None:
            completion.text = "".join(sequence.texts)
            del unfinished[delta.request_id]
            if sequence.output.finished:
                bar.prompt_finished()


@dataclass(slots=True)
class _Sequence:
    add: AddRequest
    stream: SequenceStream
    output: RequestOutput
    completion: CompletionOutput
    texts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    output: RequestOutput
    sequences: list[_Sequence]


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is never cut in half; a second Ctrl-C interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list: a list of numbers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    listed = list(prompts)
    if listed and all(isinstance(item, int) for item in listed):
        return [cast(list[int], listed)]
    return cast(list[Prompt], listed)
