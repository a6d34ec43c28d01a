"""The page at /docs: every route, out of the OpenAPI description, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

GROUPS = {
    "openai": "OpenAI: text models",
    "kserve": "KServe v2, with Triton's extensions",
    "health": "Health and metrics",
}

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
"""A browser loads nothing for this page, and runs nothing in it."""

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #8884; padding: .3rem .8rem .3rem 0; vertical-align: top; }
td:first-child { width: 4rem; font-weight: 600; }
td:last-child { width: 40%; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


def add(app: FastAPI) -> None:
    """The routes must be there already."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {"Content-Security-Policy": POLICY}
        return HTMLResponse(page(app.openapi()), headers=headers)


def page(about: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    title = escape(f"{about['info']['title']} {about['info']['version']}")
    tables = "\n".join(_table(about, tag, heading) for tag, heading in GROUPS.items())
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{escape(about["info"]["description"])} The same for programs:
<a href="/openapi.json">openapi.json</a>.</p>
{tables}
</body>
</html>
"""


def _table(about: Mapping[str, Any], tag: str, heading: str) -> str:
    rows = "\n".join(_row(*route) for route in _routes(about) if tag in route[2]["tags"])
    return f"<h2>{escape(heading)}</h2>\n<table>\n{rows}\n</table>"


def _routes(about: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in about["paths"].items():
        for method, route in methods.items():
            yield method.upper(), path, route


def _row(method: str, path: str, route: Mapping[str, Any]) -> str:
    said = escape(route.get("description") or route.get("summary", ""))
    return f"<tr><td>{method}</td><td><code>{escape(path)}</code></td><td>{said}</td></tr>"
