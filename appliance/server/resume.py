"""Resume handles: what an interrupted request has generated, made at one machine and taken up at another.

The handle has all that the next token depends on besides the request itself: the tokens so far, the seed, and the
position, since noise is a hash of seed, position and token. What counts earlier output (penalties, `min_tokens`,
`max_tokens`, stop strings) counts the tokens of the handle.
"""

from __future__ import annotations

from collections.abc import Sequence as AnySequence

import msgspec

from appliance.engine.client import EngineUnavailable
from appliance.protocol.openai.common import GenerationRequest, Resume, ResumeChoice
from appliance.protocol.wire import EngineReady, TokenDelta
from appliance.server.draining import CODE, Interrupted
from appliance.server.errors import ApiError, bad_request
from appliance.server.generation import Sequence, Shed
from appliance.text.sequence import SequenceStream
from appliance.text.tokenizer import Tokenizer

_ADVICE = "Another server goes on from here when it gets the same request with the field `resume` of this error."


def with_resume_handle(error: Exception, sequences: AnySequence[Sequence]) -> Exception:
    """`error`, or what to raise in its place: with a handle, where the request could go on elsewhere.

    Log-probabilities of the prompt come with the first token; who asked for them has to begin again.
    """
    if any(sequence.request.sampling.prompt_logprobs is not None for sequence in sequences):
        return error
    match error:
        case Shed():
            return Interrupted(f"{error.message}. {_ADVICE}", CODE, _handle(sequences))
        case EngineUnavailable():
            message = f"{error.message.removesuffix('.')}. {_ADVICE}"
            return Interrupted(message, "engine_unavailable", _handle(sequences))
        case ApiError(code="instance_draining"):
            return Interrupted(f"{error.message} {_ADVICE}", CODE, _handle(sequences))
    return error


def check_resume(request: GenerationRequest) -> None:
    """What needs no token. Raises a 400. A reply that goes on does not begin with its prompt again: `echo` is unset."""
    if request.resume is None:
        return
    if request.prompt_logprobs is not None:
        message = "`prompt_logprobs` is not available with `resume`: they come with the first token. Begin again."
        raise bad_request(message, "prompt_logprobs", "invalid_value")
    request.echo = None


def resumed(
    sequences: list[Sequence], resume: Resume | None, tokenizer: Tokenizer | None, ready: EngineReady
) -> list[Sequence]:
    """`sequences` as the handle left them, without those that have ended. Raises a 400 if it is not of this request."""
    if resume is None:
        return sequences
    if len({choice.index for choice in resume.choices}) < len(resume.choices):
        raise bad_request("`resume.choices` has an index twice.", "resume.choices", "invalid_value")
    going_on = [
        _resumed(sequences, i, choice, tokenizer, ready)
        for i, choice in enumerate(resume.choices)
        if choice.finish_reason is None
    ]
    if not going_on:
        raise bad_request("Every choice in `resume` has ended; nothing is left to do.", "resume", "invalid_value")
    return sorted(going_on, key=lambda sequence: sequence.index)


def _resumed(
    sequences: list[Sequence], i: int, choice: ResumeChoice, tokenizer: Tokenizer | None, ready: EngineReady
) -> Sequence:
    where, generated = f"resume.choices[{i}]", choice.generated_token_ids
    if choice.index >= len(sequences):
        message = f"`{where}.index` is {choice.index}, and the request has {len(sequences)} choices."
        raise bad_request(message, f"{where}.index", "invalid_value")
    begun = sequences[choice.index]
    prompt, sampling = begun.request.prompt_token_ids, begun.request.sampling
    if choice.position != len(prompt) + len(generated):
        message = (
            f"`{where}.position` is {choice.position}, but the prompt has {len(prompt)} tokens here and "
            f"{len(generated)} were generated. The prompt, the chat template or the tokenizer is another one."
        )
        raise bad_request(message, f"{where}.position", "resume_mismatch")
    for token in generated:
        if not 0 <= token < ready.vocab_size:
            message = f"`{where}.generated_token_ids`: {token} is outside the vocabulary (0 to {ready.vocab_size - 1})."
            raise bad_request(message, f"{where}.generated_token_ids", "invalid_value")
    if not -(2**63) <= choice.seed < 2**64:
        raise bad_request(f"`{where}.seed` must fit in 64 bits.", f"{where}.seed", "invalid_value")
    stream = SequenceStream(tokenizer, prompt, sampling)
    stream.push(TokenDelta(begun.request.request_id, generated))
    if stream.finish_reason is not None or len(generated) >= min(
        sampling.max_tokens or ready.max_model_len, ready.max_model_len - len(prompt)
    ):
        raise bad_request(f"`{where}` has ended: nothing may follow its tokens.", where, "invalid_value")
    request = msgspec.structs.replace(
        begun.request,
        prompt_token_ids=[*prompt, *generated],
        num_resumed_tokens=len(generated),
        sampling=msgspec.structs.replace(sampling, seed=choice.seed),
    )
    return Sequence(
        index=begun.index,
        prompt_index=begun.prompt_index,
        request=request,
        stream=stream,
        token_ids=list(generated),
    )


def _handle(sequences: AnySequence[Sequence]) -> Resume:
    return Resume(choices=[_choice(sequence) for sequence in sequences])


def _choice(sequence: Sequence) -> ResumeChoice:
    sampling, token_ids = sequence.request.sampling, sequence.token_ids
    assert sampling.seed is not None
    return ResumeChoice(
        index=sequence.index,
        generated_token_ids=token_ids,
        text=sequence.stream.text_of(token_ids),
        seed=sampling.seed,
        position=sequence.num_prompt_tokens + len(token_ids),
        finish_reason=sequence.stream.finish_reason,
    )
