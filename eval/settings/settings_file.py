"""Reading a settings file: YAML without anything that can surprise (tags, merges, a key twice, endless text)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sa_eval.messages import one_line, shown
from sa_eval.settings import presets
from sa_eval.settings.values import SettingsError

MOST_CHARACTERS = 2**20  # settings take a few lines
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file or of shipped settings (by name), unchecked; an empty file is an empty set."""
    import yaml

    path = presets.settings_path(path)
    try:
        with Path(path).open(encoding="utf-8") as stream:
            text = stream.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise SettingsError(f"{path} holds more than {MOST_CHARACTERS:,} characters: that is no config")
        loaded = yaml.load(text, _strict_loader())
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"cannot read the config {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML's constructors let ValueError, KeyError, RecursionError and others through
        reason = error if isinstance(error, yaml.YAMLError) else one_line(error)
        raise SettingsError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(loaded or {}, dict):
        raise SettingsError(f"{path} must hold `setting: value` lines, found a {type(loaded).__name__}")
    odd = [key for key in loaded or {} if not isinstance(key, str)]
    if odd:
        raise SettingsError(f"{path} holds {shown(odd[0])} where the name of a setting belongs")
    return loaded or {}


def _strict_loader() -> Any:
    """PyYAML's safe loader without merge keys, whose nesting grows without end, and without the last of two keys."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if any(key.tag == MERGE for key in keys):
                raise SettingsError("the config merges mappings with `<<`: write the settings out")
            doubled = [key for key, count in Counter(key.value for key in keys).items() if count > 1]
            if doubled:
                raise SettingsError(f"the config holds {shown(doubled[0])} twice: which one counts?")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: Any) -> Any:
            """`1:30` is a slice of layers here, not ninety (YAML 1.1 counts in sixties)."""
            return node.value if ":" in node.value else super().construct_yaml_int(node)

    StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
    return StrictLoader
