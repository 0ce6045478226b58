"""Tables and figures -> one HTML page that needs nothing else, and the same as Markdown.

    html(title, head, sections)               sections: Table of paper/tables.py, Picture or Films
    markdown(title, head, sections, folder)   folder: where the pictures lie, as the page links to them

head is a list of (kind, text), kinds "note", "warning" and "about". All text is escaped, because results
and records hold what users called their files. page.css and page.js, which sorts, go into the page.
"""

import base64
from html import escape
from pathlib import Path
from typing import NamedTuple

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
# the page may load nothing, so that even a forgotten escape could not send anything anywhere
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Picture(NamedTuple):
    name: str      # of the heading's anchor, and of the files
    title: str
    note: str      # the caption
    svg: bytes


class Films(NamedTuple):
    name: str
    title: str
    note: str
    files: dict    # {what it shows: Path of a GIF}


def one_line(text):
    return " ".join(str(text).split())


# --- HTML --------------------------------------------------------------------------------------

def text_of(text):
    return escape(one_line(text))


def html(title, head, sections):
    parts = [f"<p class='{kind}'>{text_of(text)}</p>" for kind, text in head]
    parts.append("<nav>" + " ".join(f"<a href='#{section.name}'>{text_of(section.title)}</a>"
                                    for section in sections) + "</nav>")
    for section in sections:
        parts.append(f"<h2 id='{section.name}'>{text_of(section.title)}</h2>")
        parts.append(html_picture(section) if isinstance(section, Picture) else
                     html_films(section) if isinstance(section, Films) else html_table(section))
    return ("<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
            f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">\n"
            "<meta name='viewport' content='width=device-width'>\n"
            f"<title>{text_of(title)}</title>\n<link rel='icon' href='data:,'>\n"
            f"<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{text_of(title)}</h1>\n"
            + "\n".join(parts) + f"\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n")


def html_picture(picture):
    data = base64.b64encode(picture.svg).decode()
    return (f"<figure><img src='data:image/svg+xml;base64,{data}' alt='{text_of(picture.title)}'>\n"
            f"<figcaption>{text_of(picture.note)}</figcaption></figure>")


def html_films(films):
    shown = "".join(
        f"<figure><img src='data:image/gif;base64,{base64.b64encode(file.read_bytes()).decode()}' "
        f"alt='{text_of(name)}'><figcaption>{text_of(name)}</figcaption></figure>\n"
        for name, file in films.files.items())
    return f"<p class='about'>{text_of(films.note)}</p>\n<div class='films'>\n{shown}</div>"


def html_table(table):
    heads = "".join(f"<th>{text_of(column)}</th>" for column in table.columns)
    bodies = "\n".join(html_rows("rows", group.rows) + html_rows("below", group.below)
                       for group in table.groups)
    return (f"<p class='about'>{text_of(table.note)}</p>\n"
            f"<div class='wide'><table id='{table.name}-table'>\n<thead><tr>{heads}</tr></thead>\n"
            f"{bodies}</table></div>")


def html_rows(kind, rows):
    if not rows:
        return ""
    return f"<tbody class='{kind}'>\n" + "".join(
        "<tr>" + "".join(html_cell(cell) for cell in row) + "</tr>\n" for row in rows) + "</tbody>\n"


def html_cell(cell):
    order = "" if cell.order is None else cell.order
    return f"<td data-order='{text_of(order)}'>" + "".join(
        f"<span class='{kind}'>{text_of(text)}</span>" for kind, text in cell.lines) + "</td>"


# --- Markdown ----------------------------------------------------------------------------------

def marked(text):
    """Text that Markdown shows as it is."""
    text = escape(one_line(text), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]|#$~" else letter for letter in text)


def markdown(title, head, sections, folder):
    parts = [f"# {marked(title)}", *(f"> {'**Warning:** ' * (kind == 'warning')}{marked(text)}"
                                     for kind, text in head)]
    for section in sections:
        parts.append(f"## {marked(section.title)}")
        if isinstance(section, Picture):
            parts.append(f"![{marked(section.title)}]({folder}/{section.name}.png)")
        parts.append(marked(section.note))
        if isinstance(section, Films):
            parts += [f"![{marked(name)}](../{file.as_posix()})" for name, file in section.files.items()]
        elif not isinstance(section, Picture):
            rows = [row for group in section.groups for row in (*group.rows, *group.below)]
            parts.append("\n".join([markdown_row(marked(column) for column in section.columns),
                                    markdown_row("---" for _ in section.columns),
                                    *(markdown_row(markdown_cell(cell) for cell in row) for row in rows)]))
    return "\n\n".join(parts) + "\n"


def markdown_row(cells):
    return f"| {' | '.join(cells)} |"


def markdown_cell(cell):
    return "<br>".join(f"**{marked(text)}**" if kind == "ours" and text else marked(text)
                       for kind, text in cell.lines)
