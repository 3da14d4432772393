"""Options in files: YAML, JSON or TOML in, JSON out. Plain values only; nothing in such a file can run."""

import re
import sys
import tomllib
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ppl_vae.errors import OptionError
from ppl_vae.files import read_bytes, to_json, write_text


class Loader(yaml.SafeLoader):
    """YAML's plain values only; a key that stands twice is an error, and 1e-3 a number as in YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def read_options(path: str | PathLike) -> dict[str, Any]:
    """Names and values of a file: TOML where its name ends in .toml, else YAML, of which JSON is a part.

    Raises: MissingFileError; OptionError for another content.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/options.toml", "seed = 3\\n[fit]\\nlr = 1e-3")
        ...     read_options(f"{folder}/options.toml")
        {'seed': 3, 'fit': {'lr': 0.001}}
    """
    text = read_bytes(path)
    kind = "TOML" if Path(path).suffix.lower() == ".toml" else "YAML"
    try:
        content = tomllib.loads(text.decode()) if kind == "TOML" else yaml.load(text, Loader)
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not the {kind} expected: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise OptionError(f"{path}: got {content!r:.200}, expected names with values, as `key: value`")
    return content


def write_options(path: str | PathLike, options: dict[str, Any]) -> None:
    """Write options as JSON, and beside them the versions of what they were used with."""
    from ppl_vae.versions import versions

    python = ".".join(map(str, sys.version_info[:3]))
    write_text(path, to_json({**options, "versions": {**versions(), "python": python}}))
