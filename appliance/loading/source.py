"""Where a model's files are: a local folder or GGUF file, or a snapshot fetched from Hugging Face."""

from __future__ import annotations

from pathlib import Path

from appliance.config.groups.model import ModelSettings
from appliance.loading.errors import ModelLoadError

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
    local = Path(settings.model).expanduser()
    if local.exists():
        return local
    if settings.trust_remote_code:
        raise ModelLoadError(
            f"trust-remote-code is for local folders only, and {settings.model} is none: fetch the model, read its "
            f"code, and give its folder"
        )
    if local.is_absolute() or settings.model.startswith(("./", "../", "~")) or settings.model.count("/") > 1:
        raise ModelLoadError(f"the model folder {settings.model} does not exist")
    return _fetch(settings)


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
