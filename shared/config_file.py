"""Reads `--config FILE`: settings in YAML, under their names with - or _, as vLLM has them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from octavo.shared.errors import ConfigError
from octavo.shared.unknown_settings import why_unknown


def read_config_file(path: str, known: Collection[str], lists: Collection[str]) -> dict[str, Any]:
    """The settings in a file, by name with _; what they are worth is not checked here.

    Args:
        path: of the file.
        known: the names that may occur.
        lists: those whose value is a list; a single value is a list of one.

    Raises:
        ConfigError: it cannot be read, is no YAML mapping, or names a setting that there is not.
    """
    try:
        import yaml  # only who has a file pays for it
    except ImportError:
        raise ConfigError("--config needs PyYAML: pip install 'octavo[cli]'") from None
    try:
        content = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise ConfigError(f"--config {path}: it must hold lines of `setting: value`")
    settings: dict[str, Any] = {}
    for key, value in (content or {}).items():
        name = str(key).replace("-", "_")
        if name not in known:
            reason = why_unknown(name, known, lambda each: each.replace("_", "-"))
            raise ConfigError(f"{path}: there is no setting {str(key)!r}: {reason}")
        if name in settings:
            raise ConfigError(f"{path}: {key} is given twice, with - and with _")
        settings[name] = [value] if name in lists and not isinstance(value, list | None) else value
    return settings
