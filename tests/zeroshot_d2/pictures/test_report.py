"""The report of a demo is one well-formed page, whatever the texts are."""

from __future__ import annotations

from pathlib import Path

from report_page import Page

from zeroshot_d2.pictures.report import Picture, Section, Table, render_report


def test_report_escapes_text(tmp_path: Path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    page = Page(
        render_report(
            "a < b",
            ["<script>"],
            Table(["data set", "", "x", "y", "images"], [["d&d", "ZS3", None, 12.34, 1000]]),
            {"<i>": "<b>"},
            [Section("s", ["<p>"], [Picture(picture, "1 < 2", 'a "quote"')], ["echo <x>"])],
            {"all": "<pre>"},
        )
    )
    assert page.all("script") == [] and page.all("i") == []
    for text in ("a < b", "<script>", "d&d", "12.3", "1000", "–", "1 < 2", "echo <x>"):
        assert text in page.text
    assert page.all("img")[0]["alt"] == 'a "quote"'
