from __future__ import annotations

import pytest

from appliance.server.tokenizer_holder import TokenizerHolder
from appliance.text.tokenizer import Tokenizer
from appliance.text.tokenizer_files import TokenizerLoadError


@pytest.mark.parametrize("error", [TokenizerLoadError("no tokenizer.json in 100%"), KeyError("a bug")])
async def test_a_tokenizer_that_is_missing_is_a_sentence_and_a_bug_has_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Tokenizer:
        raise error

    holder = TokenizerHolder(load)
    holder.start()
    assert holder._task is not None
    await holder._task
    await holder.close()
    (record,) = caplog.records
    assert record.getMessage() == f"The tokenizer could not be loaded: {error}"
    assert bool(record.exc_info) == isinstance(error, KeyError)
