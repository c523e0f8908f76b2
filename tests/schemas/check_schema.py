"""Holds schemas/*.schema.json against the C validator: what that one accepts of the corpora the schemas accept,
and what it refuses they refuse, but for the files that beyond-schema.txt names. Every field of a schema has a
description and examples, and the examples are right.

check_schema.py ROOT ends with 77 (skipped) where python3-jsonschema or python3-yaml is missing."""

import json
import re
import sys
from pathlib import Path

try:
    import jsonschema
    import yaml
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

def value(node, seen=()):
    """As YAML 1.2's core schema reads it; PyYAML alone would read 1.1 (on, 010, 12:30)."""
    if id(node) in seen:
        raise yaml.YAMLError("an alias inside of what it names")
    seen += (id(node),)
    if not (node.tag.startswith("tag:yaml.org,2002:") or node.tag == "!"):
        raise yaml.YAMLError(f"the tag {node.tag}")
    if isinstance(node, yaml.MappingNode):
        own, merged = {}, {}
        for k, v in node.value:
            if not isinstance(k, yaml.ScalarNode):
                raise yaml.YAMLError("a key that is no text")
            if k.value == "<<" and k.style is None:
                maps = value(v, seen)
                for m in maps if isinstance(maps, list) else [maps]:
                    if not isinstance(m, dict):
                        raise yaml.YAMLError("merging what is no map")
                    merged = m | merged
            elif k.value in own:
                raise yaml.YAMLError("a key that stands twice")
            else:
                own[k.value] = value(v, seen)
        return merged | own
    if isinstance(node, yaml.SequenceNode):
        return [value(v, seen) for v in node.value]
    text = node.value
    if "\0" in text:
        raise yaml.YAMLError("a NUL")
    if node.style is None and node.tag not in ("tag:yaml.org,2002:str", "!"):
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text) and text != "-0":
            return int(text)
        if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", text):
            return text if len(text) > 17 else float(text) + (0.5 if float(text).is_integer() else 0)
    return text


def no_twice(pairs):
    if len({k for k, _ in pairs}) != len(pairs):
        raise ValueError("a key that stands twice")
    return dict(pairs)


def read(path):
    data = path.read_bytes().decode("utf-8-sig")
    try:
        if path.suffix != ".json" and not data.lstrip().startswith("{"):
            raise ValueError("not JSON")
        found = json.loads(data, object_pairs_hook=no_twice, parse_float=lambda s: 0.5)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair
        if "\\u0000" in data:
            raise UnicodeError("a NUL")
        return found
    except ValueError:
        if path.suffix == ".json":
            raise
    return value(yaml.compose(data, Loader=yaml.SafeLoader))


def load(root):
    """Each schema's validator by its name; references between the files are followed."""
    folder = root.resolve() / "schemas"
    schemas = {p.name.removesuffix(".schema.json"): json.loads(p.read_text()) for p in folder.glob("*.schema.json")}
    store = {(folder / f"{n}.schema.json").as_uri(): s for n, s in schemas.items()}
    out = {}
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        resolver = jsonschema.RefResolver((folder / f"{name}.schema.json").as_uri(), schema, store)
        out[name] = jsonschema.Draft202012Validator(schema, resolver=resolver)
    return out


def fields(schema, where=""):
    """Every (place, schema) below `properties` and `$defs`."""
    for group in ("properties", "$defs"):
        for name, s in schema.get(group, {}).items():
            yield f"{where}{group}/{name}", s
            if isinstance(s, dict):
                yield from fields(s, f"{where}{group}/{name}/")


def check_words(validators):
    """Every field has a description and examples, and the examples are right."""
    for file, v in validators.items():
        for place, s in fields(v.schema):
            for key in ("description", "examples"):
                if not s.get(key):
                    yield f"{file}: {place} has no {key}"
            for e in s.get("examples", []):
                for bad in v.evolve(schema=s).iter_errors(e):
                    yield f"{file}: {place}: its example {json.dumps(e)}: {bad.message[:200]}"


def check_corpus(root, validator, data, good, beyond):
    """What the C validator says of the corpus the schema says too."""
    for path in good:
        for e in validator.iter_errors(read(path)):
            yield f"{path.name} is right, but the schema says {e.json_path}: {e.message[:200]}"
    for path in sorted(p for p in (data / "bad").iterdir() if p.suffix in (".yaml", ".json")):
        try:
            valid = validator.is_valid(read(path))
        except (ValueError, AttributeError, yaml.YAMLError):
            valid = False  # no value to look at: the text itself is wrong
        if valid != (path.name in beyond):
            yield f"{path.name} is wrong, and the schema " + (
                "accepts it" if valid else "says so too: take it off beyond-schema.txt")


def exceptions(data):
    """beyond-schema.txt: a file's name, a colon, and the rule that no schema can say."""
    out = {}
    for line in (data / "beyond-schema.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, why = line.partition(":")
            assert why.strip(), f"{name}: why?"
            out[name] = why
    return out


def keys_of(v):
    if isinstance(v, dict):
        for k, x in v.items():
            yield k
            yield from keys_of(x)
    elif isinstance(v, list):
        for x in v:
            yield from keys_of(x)


def check_used(schemas, good):
    """Every field stands in a right file of the corpus: its dump and its hashes are tested by that."""
    used = {k for path in good for k in keys_of(read(path))}
    for v in schemas:
        for place, s in fields(v.schema):
            name = place.rsplit("/", 1)[-1]
            if "/properties/" in f"/{place}" and place.rsplit("/", 2)[-2] == "properties" and name not in used:
                yield f"{place} stands in no file of the corpus"


def check_records(root, validators):
    """Manifests and events: those of the corpus and of docs/events.md."""
    for path in (root / "tests/fuzz/corpus/template_manifest").glob("full*.json"):
        for e in validators["template-manifest"].iter_errors(json.loads(path.read_text())):
            yield f"{path.name}: {e.json_path}: {e.message[:200]}"
    n = 0
    for line in (root / "docs/events.md").read_text().splitlines():
        if line.startswith('{"seq"'):
            n += 1
            for e in validators["build-event"].iter_errors(json.loads(line)):
                yield f"docs/events.md: {line[:60]}: {e.json_path}: {e.message[:200]}"
    if n < 8:
        yield f"docs/events.md has {n} events"
    good = validators["build-event"].schema["examples"][0]
    for key, wrong in (("seq", 0), ("ts", "now"), ("status", "done"), ("attempt", -1), ("type", None)):
        if validators["build-event"].is_valid(good | {key: wrong}):
            yield f"an event with {key} = {wrong} is accepted"


def check_kept(root, schema):
    """x-kept, which the docs show, and .note, which a build warns by, name the same fields."""
    noted = set()
    for path in (root / "schemas").glob("config_*.c"):
        noted |= set(re.findall(r'\.note = "(\w+)"', path.read_text()))
    kept = {p.rsplit("/", 1)[-1] for v in schema for p, s in fields(v.schema) if s.get("x-kept")}
    if noted != kept:
        yield f"kept in the schema and noted in the C tables are not the same: {sorted(noted ^ kept)}"


def check_variables(schema):
    """Each setting has the variable of its name."""
    for name, s in schema["properties"].items():
        want = "CAPSULE_BUILD_" + ("REGISTRY_MIRRORS" if name == "registries" else name.upper())
        if s.get("x-variable") != want:
            yield f"settings: {name} has the variable {want}, which the schema does not say"


def check_defaults(root, schema):
    """What config_dump_full() fills in is what the schema, and by it the docs, call the default."""
    words = {"false": False, "true": True}
    text = (root / "schemas" / "config_full.c").read_text()
    numbers = dict(re.findall(r"\b([A-Z]\w+) = (\d+)", (root / "schemas" / "config.h").read_text()))
    filled = {}
    for key, kind, value in re.findall(r'put_default\(\w+, "(\w+)", json_(\w+)\(([^)]*)\)\)', text):
        if kind == "string" and not value.startswith('"'):
            filled[key] = "worked out"  # from other fields; the schema says in words how
        else:
            filled[key] = words[kind] if kind in words else json.loads(numbers.get(value, value))
    declared = {p.rsplit("/", 1)[-1]: s.get("default", "worked out") for p, s in fields(schema)
                if ("default" in s or (p.startswith("$defs/drive/") and "x-default" in s)) and
                p.startswith(("$defs/config/", "$defs/drive/"))}
    declared.pop("tier", None)  # in the model itself
    for key in sorted(filled.keys() | declared.keys()):
        if key != "auto_rollout" and filled.get(key, "none") != declared.get(key, "none"):
            yield f"the default of {key}: {filled.get(key, 'none')} in C, {declared.get(key, 'none')} in the schema"


def main(root):
    validators = load(root)
    data = root / "tests" / "data"
    problems = list(check_words(validators))
    told = 0
    for folder, name, more in (("config", "onboard", sorted(root.glob("examples/*/onboard.yaml"))),
                               ("settings", "settings", [])):
        good = sorted(p for p in (data / folder / "good").iterdir() if p.suffix in (".yaml", ".json")) + more
        told += len(good) + sum(p.suffix in (".yaml", ".json") for p in (data / folder / "bad").iterdir())
        problems += check_corpus(root, validators[name], data / folder, good, exceptions(data / folder))
        used = [validators[name]] + ([validators["workload-config"]] if name == "onboard" else [])
        problems += check_used(used, good)
    problems += check_records(root, validators)
    problems += check_variables(validators["settings"].schema)
    problems += check_defaults(root, validators["workload-config"].schema)
    problems += check_kept(root, [validators["workload-config"], validators["onboard"]])
    print("\n".join(problems) or f"{told} files: of one mind")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
