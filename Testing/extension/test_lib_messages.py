"""Every message the pages quote is one the code still has, and what is refused is on the page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "Resources" / "docs" / name for name in ("messages.md", "offline.md")]
CODE = [ROOT / "MedSAM2Segment" / name for name in ("MedSAM2SegmentLib", "medsam2_core")]
HOLE = "\0"


def in_code(tree: ast.AST) -> list[str]:
    """All texts of a file but docstrings; what f-strings fill in is a hole."""
    texts = []
    explained = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
            texts.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explained:
            texts.append(node.value)
    return [plain(text) for text in texts]


def plain(text: str) -> str:
    """Without differences that do not matter."""
    return " ".join(text.split()).lower()


def quoted(page: Path) -> list[str]:
    """The first cells of the rows of tables whose head begins with "message", without marks of code."""
    found, is_table = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            is_table = False
        elif cells[0] == "message":
            is_table = True
        elif is_table and not set(cells[0]) <= set("-: "):
            found.append(cells[0].strip("`"))
    return found


@pytest.fixture(scope="module")
def texts():
    files = [file for folder in CODE for file in sorted(folder.rglob("*.py"))]
    return [text for file in files for text in in_code(ast.parse(file.read_text(encoding="utf-8")))]


def is_said(message: str, texts: list[str]) -> bool:
    """Whether one text of the code has the parts of a message in this order; "…" stands for anything."""
    parts = [plain(part).rstrip(".") for part in message.split("…")]
    pattern = re.compile(".*".join(re.escape(part) for part in parts if part), re.DOTALL)
    return any(pattern.search(text) for text in texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_messages_that_a_page_quotes_are_in_the_code(page, texts):
    messages = quoted(page)
    assert messages, "no table of messages"
    assert [message for message in messages if not is_said(message, texts)] == []


def test_a_message_that_is_not_in_the_code_is_found(texts):
    assert not is_said("the worker went … for a walk", texts)
    assert is_said("the worker was lost twice while it opened the session: …", texts)


#: What volumes, prompts and installations are refused for is on the page without exception.
COMPLETE = {
    *("VolumeAdapter.py", "PromptConversion.py", "PromptSync.py", "PromptNodes.py"),
    *("RuntimePlan.py", "RuntimeTask.py", "RuntimeInstaller.py", "Installation.py"),
}


def refusals(tree: ast.AST) -> list[str]:
    """What is raised, returned, yielded or put into a `message`, and has a way out: words behind a colon."""
    ends = [node for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.Return | ast.Yield)]
    ends += [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and _is_message(node)]
    texts = {text for end in ends for text in in_code(ast.Module([ast.Expr(end)], []))}
    whole = [text for text in texts if not any(text != other and text in other for other in texts)]
    return [text for text in whole if len(text.split(": ")[-1].split()) >= 2 and ": " in text]


def _is_message(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "message" for target in node.targets)


def test_what_is_refused_is_on_the_page():
    messages = quoted(PAGES[0])
    files = [file for folder in CODE for file in sorted(folder.rglob("*.py")) if file.name in COMPLETE]
    assert {file.name for file in files} == COMPLETE
    missing = [
        (file.name, text.replace(HOLE, "…"))
        for file in files
        for text in refusals(ast.parse(file.read_text(encoding="utf-8")))
        if not any(is_said(message, [text]) for message in messages)
    ]
    assert missing == []
