"""The tokenizer that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from appliance.config import Settings
from appliance.text.tokenizer import Tokenizer
from appliance.text.tokenizer_files import TokenizerLoadError


def load_tokenizer(settings: Settings) -> Tokenizer:
    """Raises `TokenizerLoadError`, also when the chat template's file can't be read."""
    model = settings.model
    return Tokenizer.load(
        model.tokenizer or model.model,
        mode=model.tokenizer_mode,
        revision=model.revision if model.tokenizer is None else None,
        download_dir=model.download_dir,
        trust_remote_code=model.trust_remote_code,
        chat_template=_chat_template(settings.server.chat_template),
    )


def _chat_template(setting: str | None) -> str | None:
    """The setting is the template itself where it has Jinja's braces, else the name of a file."""
    if setting is None or "{{" in setting or "{%" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerLoadError(
            f"cannot read the chat template {setting!r}: {error}. --chat-template takes a text file, or the template "
            "itself, which has {{ or {% in it"
        ) from error
