"""Where a model's files are: a local folder or GGUF file, or a snapshot fetched from Hugging Face."""

from __future__ import annotations

from pathlib import Path

from appliance.config.groups.model import ModelSettings
from appliance.loading.errors import ModelFolderMissing, ModelLoadError

TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]  # configuration, chat template, tokenizer
WEIGHT_FILES = {
    "safetensors": ["*.safetensors"],
    "pt": ["*.bin"],
    "npcache": ["*.bin"],
    "gguf": ["*.gguf"],
    "dummy": [],
}


def locate_model(settings: ModelSettings) -> Path:
    """The local folder, or GGUF file, of `settings.model`, fetched first if it is a Hugging Face id."""
    local = find_local(settings.model)
    if local is not None:
        return local
    if settings.trust_remote_code:
        raise ModelLoadError(
            f"trust-remote-code is for local folders only, and {settings.model} is none: fetch the model, read its "
            f"code, and give its folder"
        )
    return _fetch(settings)


def find_local(model: str) -> Path | None:
    """The folder or file that `model` names; None where it can only be a Hugging Face id.

    Raises `ModelFolderMissing` where it can only be a path (absolute, from ./, ../ or ~, or of three parts or more),
    and nothing is there.
    """
    try:
        local = Path(model).expanduser()
    except RuntimeError:  # ~NAME of a user who does not exist
        local = Path(model)
    if local.exists():
        return local
    if local.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") > 1:
        raise ModelFolderMissing(
            f"The model folder {model} does not exist; give the path of a folder or GGUF file that does, or a Hugging "
            f"Face id (OWNER/NAME)"
        )
    return None


def _fetch(settings: ModelSettings) -> Path:
    formats = ["safetensors", "gguf", "pt"] if settings.load_format == "auto" else [settings.load_format]
    for load_format in formats:
        folder = _snapshot(settings, TEXT_FILES + WEIGHT_FILES[load_format])
        if load_format == "dummy" or any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES[load_format]):
            return folder
    raise ModelLoadError(f"the Hugging Face repository {settings.model} has no weight files ({', '.join(formats)})")


def _snapshot(settings: ModelSettings, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                settings.model,
                revision=settings.revision,
                cache_dir=settings.download_dir,
                allow_patterns=patterns,
                max_workers=4,
            )
        )
    except HFValidationError as error:
        raise ModelLoadError(
            f"{settings.model!r} is neither a local folder nor a Hugging Face id (NAME or OWNER/NAME)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{settings.model} is not a local folder, is not in the download folder, and Hugging Face cannot be "
            f"reached to fetch it; give a local folder, or check the network and HF_ENDPOINT"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"{settings.model} is not a local folder, and fetching it from Hugging Face failed: {reason}"
        ) from error
