"""The style sheet of a report: quiet, readable on a phone, light or dark as the reader has set it."""

STYLE = """
:root { --ink: #1d2126; --soft: #5c6570; --line: #dfe3e8; --page: #fbfbfa; --card: #ffffff;
  --mark: #eef4fa; --accent: #0a5ea8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --soft: #9aa4af; --line: #343a41; --page: #16191d; --card: #1d2126;
    --mark: #1f2e3d; --accent: #7db8ee; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 3.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.25rem); line-height: 1.2; letter-spacing: -0.015em;
  margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; letter-spacing: -0.005em; margin: 3rem 0 0.75rem; }
p { margin: 0 0 1rem; max-width: 42rem; overflow-wrap: anywhere; }
.lead { font-size: 1.1875rem; line-height: 1.55; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 1.1rem 0.5rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 0.8125rem; vertical-align: bottom;
  border-bottom-color: var(--soft); }
th:first-child, td:first-child { padding-left: 0.6rem; }
th:last-child, td:last-child { padding-right: 0.6rem; }
.number { text-align: right; }
.prose th, .prose td { white-space: normal; text-align: left; vertical-align: top; }
.emphasised td { background: var(--mark); font-weight: 600; }
figure { margin: 1.5rem 0 2rem; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: 0.75rem; }
.card img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 0.875rem; line-height: 1.5; margin-top: 0.6rem;
  max-width: 42rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem 1.5rem;
  margin: 1.75rem 0 2rem; padding: 1.25rem 0; border-top: 1px solid var(--line);
  border-bottom: 1px solid var(--line); }
.facts div { display: flex; flex-direction: column; }
.facts dd { margin: 0; font-size: 1.5rem; line-height: 1.25; font-weight: 600; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.facts dt { color: var(--soft); font-size: 0.875rem; line-height: 1.4; margin-top: 0.2rem; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: 0.7rem 0; font-weight: 600; font-size: 0.9375rem; }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details dl { display: grid; grid-template-columns: minmax(0, auto) minmax(0, 1fr); gap: 0.2rem 1.5rem;
  margin: 0 0 1.25rem; font-size: 0.875rem; line-height: 1.5; }
details dt { color: var(--soft); overflow-wrap: anywhere; }
details dd { margin: 0; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.8125rem; }
footer { color: var(--soft); font-size: 0.8125rem; margin-top: 3rem; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 1.75rem 1rem 3rem; }
  .card { padding: 0.35rem; border-radius: 6px; margin: 0 -0.25rem; }
  .scroll img { width: 30rem; max-width: none; }
  .prose thead { display: none; }
  .prose tr, .prose td { display: block; }
  .prose tr { padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
  .prose td { padding: 0 !important; border: 0; }
  .prose td:first-child { font-weight: 600; }
  .prose td:not(:first-child)::before { content: attr(data-head) ": "; color: var(--soft); }
}
@media print { body { background: #ffffff; } details dl { display: grid; } }
"""
