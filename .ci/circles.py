#!/usr/bin/env python3
"""Lists circles of files: groups of source files of a crate that use each other's items, directly or through others.

An edge goes from a file to the file that defines an item it names: `use` declarations and paths in code, resolved through
re-exports. Not counted: `mod` declarations, `pub use` re-exports, tests. Exits with 1 if there is a circle.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^']+|[^'\\])'""", re.DOTALL
)
USE = re.compile(r"(?:^|(?<=[\s;}]))(pub(?:\([a-z ]+\))?\s+)?use\s+([^;]+);")
PATH = re.compile(r"(?<![\w:])[a-z_][a-z0-9_]*(?:::\w+)+")


def code(text):
    """The text without comments, literals and items under `#[cfg(test)]`."""
    text = NOT_CODE.sub(lambda m: " " if m[0].startswith("/") else '""', text)
    while start := re.search(r"#\[cfg\(test\)\]", text):
        end, depth = start.end(), 0
        while depth > 0 or text[end] not in ";}":
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if depth == 0 and text[end - 1] == "}":
                end -= 1
                break
        text = text[: start.start()] + text[end + 1 :]
    return text


def expand(tree):
    """Paths of a use tree: `a::{b, c::d}` gives `a::b` and `a::c::d`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        return [tree]
    parts, depth = [""], 0
    for char in rest[: rest.rindex("}")]:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [path for part in parts if part.strip() for path in expand(head + part.strip())]


class Crate:
    def __init__(self, source_folder, files):
        self.modules = {}
        for file in files:
            parts = list(file.relative_to(source_folder).with_suffix("").parts)
            if {"tests", "testing"} & set(parts):
                continue
            if parts[-1] == "mod" or parts in (["lib"], ["main"]):
                parts.pop()
            self.modules[tuple(parts)] = file
        self.texts = {module: code((ROOT / file).read_text()) for module, file in self.modules.items()}
        # (module, name) -> absolute path that the name stands for.
        self.names = {}
        for module, text in self.texts.items():
            for _, tree in USE.findall(text):
                for path in expand(tree):
                    path, _, alias = re.sub(r"\s+", " ", path).partition(" as ")
                    if (absolute := self.absolute(module, path)) is not None:
                        self.names[module, alias or (absolute or [""])[-1]] = tuple(absolute)

    def absolute(self, module, path):
        first, *rest = path.replace(" ", "").split("::")
        if first == "crate":
            found = []
        elif first in ("self", "super") or (*module, first) in self.modules:
            found, rest = list(module), [first, *rest]
        else:
            return None
        for part in rest:
            if part == "super":
                found.pop()
            elif part != "self":
                found.append(part)
        return found

    def defining_module(self, path, depth=0):
        module = ()
        for i, part in enumerate(path):
            if (*module, part) in self.modules:
                module = (*module, part)
                continue
            target = self.names.get((module, part))
            if target and depth < 8 and target != path[: i + 1]:
                return self.defining_module(target + path[i + 1 :], depth + 1)
            break
        return module

    def edges(self):
        for module, text in self.texts.items():
            paths = [path for is_pub, tree in USE.findall(text) if not is_pub for path in expand(tree)]
            for path in paths + PATH.findall(USE.sub("", text)):
                path = path.partition(" as ")[0]
                absolute = self.absolute(module, path)
                if absolute is None:
                    first, *rest = path.split("::")
                    if (module, first) not in self.names:
                        continue
                    absolute = [*self.names[module, first], *rest]
                target = self.defining_module(tuple(absolute))
                if target != module and target in self.modules:
                    yield self.modules[module], self.modules[target], path


def circles(graph):
    """Groups of files that can all reach each other, largest first."""

    def reachable(start):
        found, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), {}):
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return found

    reach = {file: reachable(file) for file in graph}
    groups = {frozenset(t for t in reach[f] if f in reach.get(t, ())) for f in graph if f in reach[f]}
    return sorted(groups, key=len, reverse=True)


def main():
    listed = subprocess.run(["git", "ls-files", "*.rs"], cwd=ROOT, capture_output=True, text=True, check=True)
    crates = {}
    for file in map(Path, listed.stdout.split()):
        if "src" in file.parts:
            crates.setdefault(Path(*file.parts[: file.parts.index("src") + 1]), []).append(file)
    graph = {}
    for folder, files in crates.items():
        for source, target, path in Crate(folder, files).edges():
            graph.setdefault(source, {}).setdefault(target, path)
    found = circles(graph)
    for group in found:
        print(f"circle of {len(group)} files:")
        for source in sorted(group):
            for target, path in graph[source].items():
                if target in group:
                    print(f"    {source} uses {target}: {path}")
    print(f"{len(found)} circles of files")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
