"""The style sheet of report.html; light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #68707a; --rule: #d9dde2; --paper: #ffffff;
        --train: #2166ac; --val: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --faint: #8f98a1; --rule: #3a4149; --paper: #16191d; --train: #6cb0ee; --val: #f59562; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { padding: .25em .8em .25em 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
pre { font-size: 13px; overflow-x: auto; border: 1px solid var(--rule); padding: .8em; }
svg { width: 100%; max-width: 720px; display: block; margin: 1em 0; }
figure { margin: 1.5em 0; }
figcaption { max-width: 75ch; margin-bottom: .5em; overflow-wrap: anywhere; }
video { max-width: 340px; width: 100%; }
.kinds { display: flex; flex-wrap: wrap; gap: 1em; }
.kinds > div { flex: 0 1 340px; }
.kind, .note { color: var(--faint); }
polyline, line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.train, .raw { stroke: var(--train); }
.raw { opacity: .3; }
.val { stroke: var(--val); }
circle.train, circle.raw { fill: var(--train); }
circle.val { fill: var(--val); }
line.grid { stroke: var(--rule); stroke-width: 1; }
text { fill: var(--ink); }
text.tick { font-size: 11px; fill: var(--faint); }
text.heading { font-size: 13px; font-weight: 600; }
"""
