"""What a page holds, read back without a browser."""

import base64
import gzip
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


@dataclass
class Read(HTMLParser):
    """The elements, text and data of a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._script: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def sections(self) -> list[str]:
        return [str(each["id"]) for each in self.of("section")]

    def charts(self) -> dict[str, Any]:
        text = next(text for attributes, text in self.scripts if attributes.get("id") == "charts")
        found: dict[str, Any] = json.loads(text)
        return found

    def pairs(self) -> tuple[dict[str, Any], list[str]]:
        """The explorer's table and its texts."""
        table, texts = {}, list[str]()
        for attributes, text in self.scripts:
            if attributes.get("id") == "pair-table":
                table = unpacked(text)
            elif attributes.get("class") == "pair-texts":
                texts += unpacked(text)
        return table, texts


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def read_page(path: Path) -> Read:
    """Parse a page."""
    page = Read()
    page.feed(path.read_text(encoding="utf-8"))
    return page
