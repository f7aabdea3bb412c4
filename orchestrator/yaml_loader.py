"""YAML without its surprises: what could be read as something else than it looks like is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

# YAML 1.1 takes `yes`, `no`, `on` and `off` for truth values, and what begins with 0 or holds a colon for a number of
# base 8 or 60. YAML 1.2 does neither, and its readers would give other values.
_TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
_OTHER_BASE = re.compile(r"[-+]?(0_*[0-9][0-9_]*|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name} appears twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if _OTHER_BASE.fullmatch(node.value):
            problem = f"{node.value} is not a decimal number; write it without leading zeros and colons, or quoted"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        number = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        value: int | float = number(node)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def load_yaml(text: str) -> Any:
    """The one document in a text, with the types of YAML 1.2.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, a key appears twice, or a number is not decimal.
    """
    return _Loader(text).get_single_data()
