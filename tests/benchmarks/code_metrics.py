"""Figures about the code itself, as one table: `make metrics`.

Counts the habits that the project compares itself by: names, size of folders, comments, docstrings,
exceptions, printing, English. Tests and the embedded demo clips are left out unless stated.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRIVATE_WORDS = (
    "beside",
    "anew",
    "mend",
    "mends",
    "mended",
    "dossier",
    "ledger",
    "told",
    "whatever",
)
EXCEPTION_BASES = {"Exception", "ValueError", "RuntimeError", "OSError", "KeyError", "TypeError"}


def tracked(pattern: str) -> list[Path]:
    """Files that git tracks, relative to the root, links left out."""
    done = subprocess.run(
        ["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [Path(line) for line in done.stdout.splitlines()]
    return [p for p in paths if p.parts[:2] != ("data", "demo") and not (ROOT / p).is_symlink()]


def parsed(paths: list[Path]) -> Iterator[tuple[Path, str, ast.Module]]:
    """Each file with its text and syntax tree."""
    for path in paths:
        text = (ROOT / path).read_text(encoding="utf-8")
        yield path, text, ast.parse(text)


def comment_lines(text: str) -> int:
    """Lines that hold a comment which is no directive for a checker."""
    directive = re.compile(r"#\s*(noqa|type:|fmt:|pragma|!)")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and not directive.match(t.string) for t in tokens)


def code_lines(text: str) -> int:
    """Lines with code: neither empty, nor comment, nor inside a docstring."""
    rows: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        statement = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        docstring = token.type == tokenize.STRING and statement
        if token.type not in skipped and not docstring and token.type != tokenize.ENDMARKER:
            rows.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    return len(rows)


def statements(tree: ast.Module) -> int:
    """Statements without docstrings: unlike lines, they do not depend on the line length."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)) for n in found)


def trainer_attributes(sources: list[tuple[Path, str, ast.Module]]) -> int:
    """Names that methods of Trainer assign to `self`."""
    names: set[str] = set()
    for path, _, tree in sources:
        if path.name != "trainer.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == "Trainer":
                for inner in ast.walk(node):
                    stored = isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
                    if stored and isinstance(inner.value, ast.Name) and inner.value.id == "self":
                        names.add(inner.attr)
    return len(names)


def rows() -> list[tuple[str, object]]:
    """The table: (figure, value)."""
    sources = list(parsed([p for p in tracked("*.py") if p.parts[0] != "tests"]))
    everything = list(parsed(tracked("*.py")))
    folders = Counter(path.parent for path, _, _ in sources)
    largest = ", ".join(f"{folder} {number}" for folder, number in folders.most_common(4))
    classes: dict[str, list[Path]] = defaultdict(list)
    errors, based, documented, public, sections, candidates, prints = 0, 0, 0, 0, 0, 0, 0
    for path, _, tree in sources:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path)
                names = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if any(n in EXCEPTION_BASES or n.endswith("Error") for n in names):
                    errors += 1
                    based += bool(names - EXCEPTION_BASES)
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name.startswith("_"):
                    continue
                text = ast.get_docstring(node) or ""
                public += 1
                documented += bool(text)
                if isinstance(node, ast.FunctionDef):
                    named = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
                    if len([a for a in named if a not in ("self", "cls")]) > 2 and text:
                        candidates += 1
                        sections += "Args:" in text or "Returns:" in text
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                prints += node.func.id == "print"
    shared = sorted(name for name, paths in classes.items() if len(paths) > 1)
    comments = sum(comment_lines(text) for _, text, _ in sources)
    code = sum(code_lines(text) for _, text, _ in sources)
    prose = [text for _, text, _ in everything]
    prose += [(ROOT / p).read_text(encoding="utf-8") for p in tracked("*.md")]
    words = Counter(word for text in prose for word in re.findall(r"[a-z]+", text))
    long_lines = sum(len(line) > 100 for _, text, _ in everything for line in text.splitlines())
    patched = [path for path, text, _ in sources if re.search(r"^\s*sys\.path", text, re.M)]
    odd = [
        path
        for path, text, _ in sources
        if re.search(r"^\s*sys\.path", text, re.M)
        and 'if __package__ in (None, ""):\n    sys.path[0] = ' not in text
    ]
    return [
        ("files that patch sys.path, in any way but the three-line header", len(odd)),
        ("files that a person starts (with that header)", len(patched)),
        ("Python files per folder, largest", largest),
        ("attributes of Trainer", trainer_attributes(sources)),
        ("class names used twice or more", ", ".join(shared) or "none"),
        ("lines over 100 columns, tests included", long_lines),
        ("private words", {w: words[w] for w in PRIVATE_WORDS if words[w]} or "none"),
        ("public functions and classes with a docstring, %", round(100 * documented / public)),
        ("functions of 3 or more parameters with sections, %", round(100 * sections / candidates)),
        ("comments per 100 lines of code", round(100 * comments / code, 1)),
        ("exception classes, and those with a base of ours", f"{errors}, {based}"),
        ("print(", prints),
        ("statements, without tests", sum(statements(tree) for _, _, tree in sources)),
        (
            "statements, tests",
            sum(statements(t) for p, _, t in everything if p.parts[0] == "tests"),
        ),
        ("lines of code, without tests", code),
        (
            "lines of code, tests",
            sum(code_lines(t) for p, t, _ in everything if p.parts[0] == "tests"),
        ),
        *((f"lines in {top}/", number) for top, number in lines_per_folder(everything)),
    ]


def lines_per_folder(files: list[tuple[Path, str, ast.Module]]) -> list[tuple[str, int]]:
    """All lines of Python per top-level folder."""
    found: Counter[str] = Counter()
    for path, text, _ in files:
        found[path.parts[0]] += len(text.splitlines())
    return sorted(found.items())


if __name__ == "__main__":
    for name, value in rows():
        print(f"| {name} | {value} |")
