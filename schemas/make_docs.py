"""Writes docs/config.md from schemas/config.md.in and the JSON Schemas beside it.

make_docs.py [--check]: with --check nothing is written, and the exit is 1 when the page is not what it should be.
In the template a line `@fields SCHEMA [DEFINITION]@` becomes the table of that definition's fields; what a
table says stands in the schema: the type, `default` (or the words of `x-default`), `description`, and `x-kept` for
what is not acted on yet."""

import json
import re
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
page = here.parent / "docs" / "config.md"

KINDS = {"env": "map of texts", "duration": "duration", "absolute_path": "absolute path", "inner_path": "relative path",
         "commands": "list of commands", "command": "command", "hosts": "list of hosts", "paths": "list of texts",
         "ram": "size", "compute": "word or number", "host": "host", "argument": "text", "layer": "layer",
         "drive": "drive", "source": "source", "secret": "secret", "credential": "secret", "policy_rule": "rule",
         "url": "URL"}


def load(name):
    return json.loads((here / f"{name}.schema.json").read_text())


def kind(schema, s):
    """The type of a field in words."""
    if "x-type" in s:
        return s["x-type"]
    if "$ref" in s:
        name = s["$ref"].rsplit("/", 1)[-1]
        return KINDS.get(name) or kind(schema, schema["$defs"][name])
    if "enum" in s or "const" in s:
        return "word"
    t = s.get("type")
    if t == "array":
        item = kind(schema, s["items"]) if "$ref" in s["items"] else ""
        return f"list of {item}s" if item else "list"
    if isinstance(t, list):
        return "text"
    return {"string": "text", "integer": "number", "boolean": "true or false", "object": "map"}[t]


def default(s, name, required):
    if "x-default" in s:
        return s["x-default"]
    if name in required:
        return "required"
    if "default" in s:
        d = s["default"]
        return f"`{d}`" if isinstance(d, str) else json.dumps(d)
    return "none"


def table(file, name=None):
    schema = load(file)
    of = schema["$defs"][name] if name else schema
    required = of.get("required", [])
    variables = any("x-variable" in s for s in of["properties"].values())
    head = ["field", "variable" if variables else "type", "default", "rule"]
    rows = [head, ["---"] * 4]
    for key, s in of["properties"].items():
        rule = ("Kept. " if s.get("x-kept") is True else "") + s["description"]
        variable = f"`{s['x-variable']}`" if "x-variable" in s else ""
        if "x-variable-form" in s:
            variable += f" ({s['x-variable-form']})"
        cells = [f"`{key}`", variable if variables else kind(schema, s), default(s, key, required), rule.rstrip(".")]
        rows.append([c.replace("|", "\\|") for c in cells])
    return "".join("| " + " | ".join(r).replace("|  |", "| |") + " |\n" for r in rows)


def make():
    text = (here / "config.md.in").read_text()
    text = re.sub(r"^@fields (\S+)(?: (\S+))?@\n", lambda m: table(m[1], m[2]), text, flags=re.M)
    assert "@fields" not in text
    return text


def main(args):
    text = make()
    if args != ["--check"]:
        page.write_text(text)
        return 0
    if page.read_text() == text:
        return 0
    print("docs/config.md is not what the schemas say: run python3 schemas/make_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
