"""The Chinese pages say what their originals say, as far as a machine can tell, or say that they are old."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

from docs.tools import zh_behind

DOCS = zh_behind.DOCS
NAMES = zh_behind.names()
CURRENT = [name for name in NAMES if not zh_behind.read(name).noted]
FENCE = re.compile(r"^ *(```+|~~~+)")
HEADING = re.compile(r"^(#+) +(.*)$")
NESTS = re.compile(r"^ *([*+-] |\d+\. |!!!|\?\?\?|===)")
COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)


@dataclass
class Structure:
    """What a page and its translation have alike: code, headings, and prose with its tables, terms and links."""

    code: list[str] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(line.lstrip().startswith("|") for line in self.prose)

    @property
    def terms(self) -> set[str]:
        """Keys, commands, names and values: everything that stands in backticks."""
        spans = re.findall(r"(`+)(.+?)\1", " ".join(line.strip() for line in self.prose))
        return {" ".join(span.split()) for _, span in spans}

    @property
    def links(self) -> set[str]:
        return set(re.findall(r"\]\(([^)\s]+)\)", " ".join(self.prose)))


def bare(lines: list[str]) -> str:
    """Returns code without comments, empty lines and the indentation that all of it has."""
    kept = [line.rstrip() for line in COMMENT.sub("", "\n".join(lines)).splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in kept), default=0)
    return "\n".join(line[indent:].rstrip() for line in kept if line.strip())


def structure(text: str) -> Structure:
    found, code, fence, above = Structure(), list[str](), "", ""
    for line in [*text.splitlines(), "end"]:
        opened = FENCE.match(line)
        if fence:
            if opened and opened[1].startswith(fence):
                found.code.append(bare(code))
                code, fence = [], ""
            else:
                code.append(line)
            continue
        indented = line.startswith("    ") and not NESTS.match(above)
        if code and not indented and line.strip():
            found.code.append(bare(code))
            code = []
        if opened:
            fence = opened[1]
        elif indented or (code and not line.strip()):
            code.append(line)
        elif heading := HEADING.match(line):
            found.levels.append(len(heading[1]))
            found.prose.append(heading[2])
        else:
            found.prose.append(line)
        if line.strip() and not line.startswith(" "):
            above = line
    return found


def both(name: str) -> tuple[Structure, Structure]:
    """Returns the structure of an original and of its translation."""
    original = (DOCS / name).read_text(encoding="utf-8")
    return structure(original), structure(zh_behind.read(name).text)


def pages_linked(found: Structure, name: str) -> set[str]:
    """Returns the targets of a page's links without anchors, those to pages of docs as seen from there."""
    targets = {target.partition("#")[0] for target in found.links if "://" not in target}
    return {normpath(join(dirname(name), target)) for target in targets if target}


def chinese(linked: set[str]) -> set[str]:
    """Returns targets of a Chinese page as its original would name them."""
    return {target.removeprefix("zh/") for target in linked}


def test_there_are_chinese_pages():
    assert len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_behind_its_original_without_saying_so(name):
    assert zh_behind.fault(name) is None


@pytest.mark.parametrize("name", CURRENT)
def test_code_is_that_of_the_original_but_for_its_comments(name):
    original, translated = both(name)
    assert translated.code == original.code


@pytest.mark.parametrize("name", CURRENT)
def test_headings_and_rows_of_tables_are_as_many_as_in_the_original(name):
    original, translated = both(name)
    assert translated.levels == original.levels
    assert translated.rows == original.rows


@pytest.mark.parametrize("name", CURRENT)
def test_keys_commands_and_names_are_those_of_the_original(name):
    original, translated = both(name)
    assert {"left out": original.terms - translated.terms, "added": translated.terms - original.terms} == {
        "left out": set(),
        "added": set(),
    }


@pytest.mark.parametrize("name", CURRENT)
def test_links_lead_where_those_of_the_original_lead(name):
    original, translated = both(name)
    ours = chinese(pages_linked(translated, f"zh/{name}"))
    assert sorted(pages_linked(original, name) - ours) == []
    web = {target for target in original.links if "://" in target}
    assert {target for target in translated.links if "://" in target} == web


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_the_chinese_page_where_there_is_one(name):
    linked = pages_linked(structure(zh_behind.read(name).text), f"zh/{name}")
    assert sorted((linked & set(NAMES)) - {name}) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_leads_to_its_original(name):
    linked = pages_linked(structure(zh_behind.read(name).text), f"zh/{name}")
    assert name in linked


def avoided() -> dict[str, str]:
    """Returns the words that the table of terms does not want, each with the one that it wants."""
    rows = re.findall(
        r"^\| .+? \| (.+?) \| (\S+) \|$", (DOCS / "zh/terms.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {word: wanted for wanted, word in rows if word not in ("---", "不用")}


def test_the_table_of_terms_names_words_to_avoid():
    assert len(avoided()) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_words_are_those_of_the_table_of_terms(name):
    text = zh_behind.read(name).text
    assert {word: wanted for word, wanted in avoided().items() if word in text} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_written_in_chinese(name):
    prose = "".join(structure(zh_behind.read(name).text).prose)
    assert len(re.findall(r"[\u4e00-\u9fff]", prose)) > 100


def made(tmp_path: Path, original: str = "# A\n\nText.\n", translated: str = "# 甲\n\n正文。\n") -> Path:
    (tmp_path / "zh").mkdir()
    (tmp_path / "a.md").write_text(original, encoding="utf-8")
    front = f"---\noriginal: a.md\noriginal_digest: {zh_behind.digest(original)}\n---\n\n"
    (tmp_path / "zh" / "a.md").write_text(front + translated, encoding="utf-8")
    return tmp_path


def test_a_changed_original_is_a_fault_that_names_the_page_and_the_ways_out(tmp_path):
    docs = made(tmp_path)
    assert zh_behind.fault("a.md", docs) is None
    (docs / "a.md").write_text("# A\n\nAnother text.\n", encoding="utf-8")
    found = zh_behind.fault("a.md", docs)
    assert found
    assert found.startswith("docs/zh/a.md is behind docs/a.md, and does not say so -> ")
    assert "--seal a.md" in found
    assert "--note" in found


def test_a_paragraph_that_is_wrapped_anew_leaves_no_page_behind(tmp_path):
    docs = made(tmp_path, "# A\n\nOne two three.\n")
    (docs / "a.md").write_text("# A\n\nOne two\nthree.\n", encoding="utf-8")
    assert zh_behind.fault("a.md", docs) is None


def test_a_note_tells_readers_until_the_page_is_sealed(tmp_path):
    docs = made(tmp_path)
    before = (docs / "zh/a.md").read_text(encoding="utf-8")
    zh_behind.put_note("a.md", docs)
    assert (docs / "zh/a.md").read_text(encoding="utf-8") == before  # not behind
    (docs / "a.md").write_text("# A\n\nAnother text.\n", encoding="utf-8")
    for _ in range(2):  # one note, however often
        zh_behind.put_note("a.md", docs)
    noted = zh_behind.read("a.md", docs)
    assert noted.noted
    assert noted.text.count("(../a.md)") == 1
    assert zh_behind.fault("a.md", docs) is None
    (docs / "a.md").write_text("# A\n\nText.\n", encoding="utf-8")
    assert "says that it is behind" in (zh_behind.fault("a.md", docs) or "")
    (docs / "a.md").write_text("# A\n\nA new text.\n", encoding="utf-8")
    zh_behind.seal("a.md", docs)
    assert zh_behind.fault("a.md", docs) is None
    assert zh_behind.read("a.md", docs).text == "# 甲\n\n正文。\n"


def test_a_page_without_an_original_or_without_front_matter_is_a_fault(tmp_path):
    docs = made(tmp_path)
    (docs / "a.md").unlink()
    assert "allowed: a page docs/a.md" in (zh_behind.fault("a.md", docs) or "")
    (docs / "zh/a.md").write_text("# 甲\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"docs/zh/a\.md: begins with '# 甲\\n', allowed: "):
        zh_behind.fault("a.md", docs)


def test_the_structure_of_a_page_holds_code_of_both_kinds_and_no_comment():
    code = "    run x  # why\n\n```yaml\na: 1  # b\n# c\n```\n"
    found = structure(f"# A\n\n{code}\n!!! note\n    Text with `term`.\n\n| a | b |\n\n## B\n")
    assert found.code == ["run x", "a: 1"]
    assert found.levels == [1, 2]
    assert found.terms == {"term"}
    assert found.rows == 1
