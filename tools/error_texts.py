"""The texts of our errors, read from the source: each with placeholders where values go, its cause and its remedy.

What counts: `UserError` and its subclasses; `Problem`, a line of the message about a configuration; and reasons, which
stand inside messages or beside the name of a clip or a shard that is left out: what the exceptions in REASONS are
raised with, what is appended to `faults`, and what functions called `…fault…` and `why_not…` return.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

REASONS = ("UnreadableVideo", "UnusableCaption", "BadRow", "DamagedShard", "Damaged", "NotComparable", "StillReading")
MOST_VARIANTS = 12
"""Of one call: a text put together from alternatives gives one for each."""

# What a message says of the remedy begins with one of these.
IMPERATIVES = frozenset(
    "add begin break build call check choose close continue convert copy correct cut declare delete did divide do "
    "download end export fetch fill fix for free get give hide install keep leave let list look lower make mend "
    "merge move name pass pip point put quote raise read reduce remove rename repair replace rerun resume run "
    "sample save say see set shorten split start take train try turn unset update use verify wait write".split()
)
_SEPARATOR = re.compile(r"(?:[;:.?!,](?: or| and)?|,? so)\s+`?(?=([A-Za-z]+))|\n\s*(?=(Get|pip|python))")

# What was caught → the cause in words, and the remedy where a message has none of its own.
_READ = "see that it exists, that this user may read or write it, and that there is room"
_AGAIN = "copy or download it again"
CAUSES: dict[str, tuple[str, str]] = {
    "FileNotFoundError": ("there is no such file", "correct the path"),
    "FileExistsError": ("something of that name is there already", "choose another name"),
    "ImportError": ("a Python package is missing, or damaged", "pip install -r requirements.txt"),
    "UnicodeDecodeError": ("the file is not text in UTF-8", "save it as UTF-8"),
    "RecursionError": ("the content is nested too deep", _AGAIN),
    "YAMLError": ("the text is not valid YAML", "correct it"),
    "MarkedYAMLError": ("the text is not valid YAML", "correct it"),
    "OmegaConfBaseException": ("a `${…}` in the text does not resolve", "set what it names"),
    "UnpicklingError": ("the file asks for more than data", _AGAIN),
    "SafetensorError": ("the file is damaged, or no safetensors file", _AGAIN),
    "BadZipFile": ("the file is damaged", _AGAIN),
    "ArrowException": ("the file is damaged, or no Parquet file", _AGAIN),
    "Error": ("the text is not valid CSV", "correct it"),
    "OSError": ("the operating system refused: missing, not permitted, no room, or storage that failed", _READ),
    "HTTPError": ("the network, or the server, failed", "try again"),
    "KeyError": ("something that must be there is missing in the content", _AGAIN),
    "AttributeError": ("the content is of another kind than it must be", _AGAIN),
    "TypeError": ("the content is of another kind than it must be", _AGAIN),
    "ValueError": ("the content does not read as what it must be", _AGAIN),
    "RuntimeError": ("torch refused the content", _AGAIN),
    "UnreadableVideo": ("the file cannot be used, for a reason under “Reasons”", "replace the file"),
    "BadRow": ("the row cannot be used, for a reason under “Reasons”", "correct the row"),
    "Exception": ("the file is damaged, or not what its name says", _AGAIN),
}
# Names of values as code has them → as a reader wants them.
NAMES = {
    "strerror": "reason", "error": "reason", "len": "number", "st_size": "bytes", "cwd": "working directory",
    "_first_line": "reason", "exc": "reason", "e": "reason", "near": "nearest", "_from_here": "seen from",
}  # fmt: skip
# What these are called with is what stands in the text.
TRANSPARENT = ("join", "str", "repr", "sorted", "list", "tuple", "_listed", "max", "min", "quote", "map")


@dataclass(frozen=True, order=True)
class ErrorText:
    """One error. `text` has `{value}` where values go; `remedy` is empty where the text has none."""

    text: str
    cause: str
    remedy: str
    file: str
    function: str
    is_reason: bool


def texts_of(path: Path, file: str) -> Iterator[ErrorText]:
    """Every error of a source file, in its order; `file` is what the page calls it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    subclasses = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "UserError" for base in node.bases)
    }
    errors = {"UserError", *subclasses}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in errors]
    inner = [call.args[0] for call in calls if call.args]
    makers = {each.func.id for each in inner if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}
    for node in ast.walk(tree):
        above = list(_above(node, parents))
        function = next((each for each in above if isinstance(each, ast.FunctionDef)), None)
        source = _Source(function, file, _cause(above), errors, makers, constants)
        yield from source.errors_at(node)


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _cause(above: Sequence[ast.AST]) -> tuple[str, str]:
    """Cause and remedy in words, where the error answers an exception."""
    handler = next((each for each in above if isinstance(each, ast.ExceptHandler | ast.FunctionDef)), None)
    if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
        return "", ""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    known = [CAUSES[name] for each in caught if (name := ast.unparse(each).rpartition(".")[2]) in CAUSES]
    causes, remedies = (dict.fromkeys(each) for each in zip(*known, strict=True)) if known else ((), ())
    return "; or ".join(causes), "; or ".join(remedies)


@dataclass(frozen=True)
class _Source:
    """Where in the source a node stands."""

    function: ast.FunctionDef | None
    file: str
    caught: tuple[str, str]
    errors: set[str]
    makers: set[str]
    constants: Mapping[str, str]

    def errors_at(self, node: ast.AST) -> Iterator[ErrorText]:
        """Those that this one node makes."""
        name = self.function.name if self.function else ""
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in self.errors and node.args:
                yield from self._of(node.args[0], is_reason=False)
            elif called == "Problem" and len(node.args) == 4:
                yield from self._problem(node)
            elif called in REASONS or called == "faults.append":
                yield from (each for arg in node.args[-1:] for each in self._of(arg, is_reason=True))
        elif isinstance(node, ast.Return | ast.Yield) and node.value:
            if name in self.makers or re.search("fault|why_not", name):
                yield from self._of(node.value, is_reason=name not in self.makers)

    def _problem(self, node: ast.Call) -> Iterator[ErrorText]:
        for what, remedy in product(self._texts(node.args[2]), self._texts(node.args[3])):
            if is_sentence(text := f"{what}; {remedy}"):
                yield self._entry(text, what, remedy if _has_words(remedy) else "", is_reason=False)

    def _of(self, node: ast.expr, *, is_reason: bool) -> Iterator[ErrorText]:
        for text in self._texts(node):
            if is_sentence(text):
                what, remedy = cut_at_remedy(text)
                yield self._entry(text, what, remedy, is_reason=is_reason)

    def _entry(self, text: str, what: str, remedy: str, *, is_reason: bool) -> ErrorText:
        cause, usual = self.caught
        return ErrorText(
            text, cause or what, remedy or usual, self.file, self.function.name if self.function else "", is_reason
        )

    def _texts(self, node: ast.expr) -> list[str]:
        return Spelling(self.function, node.lineno, self.constants).of(node)[:MOST_VARIANTS]


def is_sentence(text: str) -> bool:
    """Whether a text says something itself, and is not just what other texts are put together to."""
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\{[^}]*\}", "", text))) >= 2


def _has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{2,}", re.sub(r"\{[^}]*\}", "", text)) is not None


def cut_at_remedy(text: str) -> tuple[str, str]:
    """What is wrong, and what to do about it, which is empty where the text does not say."""
    for found in _SEPARATOR.finditer(text):
        word = (found[1] or found[2] or "").lower()
        if word in IMPERATIVES and text[: found.start()].count("`") % 2 == 0:
            return text[: found.start()].strip(), text[found.start() :].lstrip(" ;:.,!?\n").removeprefix("so ")
    return text, ""


@dataclass(frozen=True)
class Spelling:
    """Texts as expressions of a function spell them: constants as they are, values as `{name}`."""

    function: ast.FunctionDef | None
    line: int
    constants: Mapping[str, str]
    depth: int = 0

    def of(self, node: ast.expr) -> list[str]:
        """Each text that `node` can be."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else ["{…}"]
        if isinstance(node, ast.JoinedStr):
            return self._joined([self.of(part) for part in node.values])
        if isinstance(node, ast.FormattedValue):
            return self._value(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([self.of(node.left), self.of(node.right)])
        if isinstance(node, ast.IfExp):
            return [*self.of(node.body), *self.of(node.orelse)]
        if isinstance(node, ast.BoolOp):
            return [text for value in node.values for text in self.of(value)]
        return self._value(node)

    def _joined(self, parts: list[list[str]]) -> list[str]:
        texts = [""]
        for part in parts:
            texts = [text + more for text in texts for more in part][:MOST_VARIANTS]
        return texts

    def _value(self, node: ast.expr) -> list[str]:
        """A value that stands in a text: the texts that its variable is assigned, or its name in braces."""
        if isinstance(node, ast.IfExp | ast.JoinedStr | ast.BinOp | ast.BoolOp | ast.Constant):
            spelled = self.of(node) if not isinstance(node, ast.BinOp) or isinstance(node.op, ast.Add) else []
            if spelled and all(not text.startswith("{") or " " in text for text in spelled):
                return spelled
        if isinstance(node, ast.Name) and node.id in self.constants:
            return [self.constants[node.id]]
        if isinstance(node, ast.Name) and self.depth < 3:
            assigned = [
                text
                for value in _assigned(self.function, node.id, self.line)
                for text in Spelling(self.function, value.lineno, self.constants, self.depth + 1).of(value)
            ]
            if assigned and all(is_sentence(text) or not text for text in assigned):
                return list(dict.fromkeys(assigned))
        return ["{" + name_of(node) + "}"]


def _assigned(function: ast.FunctionDef | None, name: str, line: int) -> list[ast.expr]:
    """What a variable is assigned before `line`, and after its use before that, where all of it is text."""
    values: list[ast.expr] = []
    used = [
        node.lineno
        for node in ast.walk(function or ast.Module([], []))
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load) and node.lineno < line
    ]
    for node in ast.walk(function or ast.Module([], [])):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                values += [value for each, value in pairs if isinstance(each, ast.Name) and each.id == name]
    values = [each for each in values if max(used, default=0) <= each.lineno <= line]
    text = ast.Constant | ast.JoinedStr | ast.IfExp | ast.BinOp | ast.BoolOp
    return values if all(isinstance(each, text) for each in values) else []


def name_of(node: ast.expr) -> str:
    """What a value is, by the name that the code has for it."""
    if isinstance(node, ast.Name):
        return NAMES.get(node.id, node.id.strip("_").replace("_", " "))
    if isinstance(node, ast.Attribute):
        return NAMES.get(node.attr, node.attr.strip("_").replace("_", " "))
    if isinstance(node, ast.Subscript):
        key = node.slice
        return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else name_of(node.value)
    if isinstance(node, ast.Call):
        return _name_of_call(node)
    if isinstance(node, ast.BinOp):
        return name_of(node.left)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return name_of(node.elt)
    return "…"


def _name_of_call(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "get" and node.args:
        return name_of(ast.Subscript(function.value, node.args[0], ast.Load()))
    called = ast.unparse(function).rpartition(".")[2]
    if called in NAMES:
        return NAMES[called]
    if called in ("type", "isinstance"):
        return "type"
    if node.args and called in TRANSPARENT:
        return name_of(node.args[-1])
    if isinstance(function, ast.Attribute) and not node.args:
        return name_of(function.value)
    return called.strip("_").replace("_", " ") or "…"
