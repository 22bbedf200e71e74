"""Command lines: a parser whose errors are one sentence, and the flags of a Struct of settings."""

import argparse
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from octavo.shared.errors import ConfigError
from octavo.shared.unknown_settings import why_unknown

HELP_COLUMN = 34


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and end the process."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class SettingsParser(Parser):
    """A flag for each field of a Struct, in the groups that the fields name, and `--config FILE`."""

    def __init__(self, settings: type[msgspec.Struct], prog: str, description: str, only: str | None = None) -> None:
        """only: the one group whose flags are wanted; none: all."""
        super().__init__(
            prog,
            usage=f"{prog} [MODEL] [settings]",
            description=description,
            argument_default=argparse.SUPPRESS,
            formatter_class=_wide,
            add_help=False,
        )
        self._settings = settings
        self._names = [field.name for field in msgspec.structs.fields(settings)]
        self.groups: list[str] = []
        """Their titles, in the order of the fields."""
        if only is None:
            help = "all settings, or those of one group"
            self.add_argument("-h", "--help", nargs="?", const="", metavar="GROUP", help=help)
            help = "YAML file with settings under these names; flags count more"
            self.add_argument("--config", dest="config_file", metavar="FILE", help=help)
        self._add_settings(only)
        titles = ", ".join(_key(title) for title in self.groups)
        self.epilog = f"--help GROUP shows one group: {titles}."

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What was given, by field; also `config_file`. Raises ConfigError, or SystemExit after the help."""
        given, rest = self.parse_known_args(arguments)
        values = vars(given)
        if "help" in values:
            self._show_help(values["help"])
        for each in rest:
            if each.startswith("-"):
                flag = each.partition("=")[0]
                raise ConfigError(f"there is no {flag}: {why_unknown(flag, self._names, to_flag)}")
        if rest:
            raise ConfigError(f"{rest[0]!r}: only one MODEL is taken; see {self.prog} --help")
        return values

    def _show_help(self, group: str) -> NoReturn:
        titles = [title for title in self.groups if _key(title).startswith(_key(group))]
        if not titles:
            known = ", ".join(_key(title) for title in self.groups)
            raise ConfigError(f"--help {group}: there is no such group of settings; there are {known}")
        is_one = bool(group)
        shown = SettingsParser(self._settings, self.prog, self.description or "", titles[0]) if is_one else self
        shown.print_help()
        self.exit()

    def _add_settings(self, only: str | None) -> None:
        hints = get_type_hints(self._settings, include_extras=True)
        group: Any = self
        title = ""
        for field in msgspec.structs.fields(self._settings):
            kind, meta = _unwrap(hints[field.name])
            if meta.extra:
                title = str(meta.extra["group"])
                self.groups.append(title)
                if only in (None, title):
                    group = self.add_argument_group(title)
            if only in (None, title):
                _add_setting(group, field, kind, meta)


def to_flag(name: str) -> str:
    """`max_model_len` -> `--max-model-len`."""
    return "--" + name.replace("_", "-")


def list_settings(settings: type[msgspec.Struct]) -> set[str]:
    """The fields that hold lists."""
    hints = get_type_hints(settings, include_extras=True)
    return {name for name in settings.__struct_fields__ if get_origin(_unwrap(hints[name])[0]) is list}


def _add_setting(group: Any, field: msgspec.structs.FieldInfo, kind: Any, meta: Meta) -> None:
    flag, text = to_flag(field.name), (meta.description or "").replace("%", "%%")
    if field.default is not None:
        text += f" (default: {field.default})"
    if field.name == "model":
        group.add_argument("model", nargs="?", help=text, metavar="MODEL")
    elif kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), help=text)
    elif field.name == "api_key":  # one at a time, so that it cannot swallow the model's name
        group.add_argument(flag, action="append", metavar="KEY", help=text)
    elif get_origin(kind) is list:
        group.add_argument(flag, nargs="+", metavar="NAME", help=text)
    else:
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)


def _unwrap(hint: Any) -> tuple[Any, Meta]:
    """The plain type and the outermost description behind Annotated and `| None`."""
    described = Meta()
    while True:
        if get_origin(hint) is Annotated:
            hint, *metas = get_args(hint)
            described = next((meta for meta in reversed(metas) if meta.description), described)
        elif type(None) in get_args(hint) and get_origin(hint) is not Literal:
            others = tuple(kind for kind in get_args(hint) if kind is not type(None))
            hint = Union[others] if len(others) > 1 else others[0]  # noqa: UP007  # built at run time
        else:
            return hint, described


def _key(title: str) -> str:
    """How a group is named on the command line: `KV cache` -> `kv-cache`."""
    return title.lower().replace(" ", "-")


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=HELP_COLUMN)
