"""From a figure to bytes: SVG for the page in the theme's colours, SVG and PNG for the files.

The same figure always gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, cast
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from sa_eval.page import drawing
from sa_eval.page.visible import visible

VARIABLES = {
    drawing.INK: "ink",
    drawing.SOFT: "soft",
    drawing.LINE: "line",
    drawing.CARD: "card",
    drawing.HEAT: "heat",
    **{colour: f"c{slot}" for slot, colour in enumerate(drawing.COLOURS)},
}
DPI = 160
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_FAMILY = re.compile(r"font-family: [^;]*;? ?|'DejaVu Sans'.*?sans-serif;? ?")


def save(figure: Figure, kind: str) -> bytes:
    """The figure as `svg` or `png`."""
    stream = io.BytesIO()
    about = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(cast(Any, drawing.STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script; SVG keeps it
        figure.savefig(stream, format=kind, dpi=DPI, metadata=about)
    return stream.getvalue()


def inline(figure: Figure, name: str, text: str, tips: dict[str, str]) -> Markup:
    """An <svg> element for the page: ids start with `name`, colours are CSS variables, `tips` are shown on hovering.

    `text` is what a screen reader reads instead of the picture; empty for an ornament. Everything passes through an
    XML writer, so names from outside stay text.
    """
    root = ElementTree.fromstring(save(figure, "svg"))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": visible(text)} if text else {"aria-hidden": "true"}
    for element in list(root):
        if element.tag.endswith("metadata") or element.find(f"{_SVG}style") is not None:
            root.remove(element)
    used = {element.attrib[_XLINK][1:] for element in root.iter() if _XLINK in element.attrib}
    used |= {found for element in root.iter() for found in re.findall(r"url\(#(.+?)\)", element.get("clip-path", ""))}
    for element in root.iter():
        _dress(element, name, used, tips)
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _XLINK[1:-5])
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _dress(element: ElementTree.Element, name: str, used: set[str], tips: dict[str, str]) -> None:
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{name}-{own}")
    if own in tips:
        title = ElementTree.Element(f"{_SVG}title")
        title.text = visible(tips[own])
        element.insert(0, title)
    for key in (_XLINK, "clip-path"):
        if key in element.attrib:
            element.set(key, element.attrib[key].replace("#", f"#{name}-"))
    for key in ("d", "x", "y", "width", "height", "transform", "style"):
        if key in element.attrib:
            element.set(key, _LONG.sub(lambda found: f"{float(found[0]):.2f}", element.attrib[key]).strip())
    if "style" in element.attrib:
        style = _FAMILY.sub("", element.attrib["style"])
        element.set("style", _COLOUR.sub(lambda found: f"var(--{VARIABLES[found[0]]})", style))
    if element.get("transform", "").startswith("rotate(-0"):
        del element.attrib["transform"]
    if not (element.text or "").strip():
        element.text = None
    element.tail = None
