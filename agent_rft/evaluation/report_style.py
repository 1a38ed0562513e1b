"""How the report looks, in light and in dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --paper: #ffffff; --raised: #f4f5f7; --line: #d9dce1;
  --better: #0072b2; --worse: #c25200; --same: #8a8a8a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a6ae; --paper: #16181b; --raised: #1f2226; --line: #363b42;
  --better: #56b4e9; --worse: #f08a3c; --same: #8f959d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.3; margin: 4px 0 12px; } h2 { font-size: 18px; margin: 44px 0 10px; }
h3 { font-size: 14px; margin: 0 0 6px; } h4 { font-size: 14px; margin: 0 0 6px; } small, .soft { color: var(--soft); font-weight: normal; }
p { margin: 6px 0; max-width: 80ch; } code, pre, .trace li { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.next { border-left: 4px solid var(--better); background: var(--raised); padding: 10px 14px; max-width: none; }
.next.halted { border-color: var(--worse); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 20px 0; }
.figures div { background: var(--raised); border-radius: 8px; padding: 12px 14px; }
.figures b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 22px 28px; margin: 14px 0; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; font-size: 11.5px; } .pair table { width: 100%; font-size: 14px; }
svg text { fill: var(--ink); } .tick-x, .number { text-anchor: middle; } .tick-y, .corner-end { text-anchor: end; }
.corner, .corner-end { font-weight: 600; font-size: 12.5px; } .grid { stroke: var(--line); } .axis { stroke: var(--soft); }
polyline { fill: none; stroke-linejoin: round; } .main { stroke: var(--better); stroke-width: 2.2; }
.context { stroke: var(--same); stroke-width: 1.2; opacity: .8; } circle { fill-opacity: .75; stroke: var(--paper); }
circle.better, rect.sometimes { fill: var(--better); } circle.worse, rect.never { fill: var(--worse); }
circle.same, rect.always { fill: var(--same); }
.key { display: flex; gap: 18px; color: var(--soft); font-size: 13px; } .key i { display: inline-block; width: 12px; height: 12px;
  border-radius: 3px; margin-right: 6px; vertical-align: -1px; } i.never, i.worse { background: var(--worse); }
i.sometimes, i.better { background: var(--better); } i.always, i.same { background: var(--same); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.versions td { text-align: left; } .up { color: var(--better); } .down { color: var(--worse); }
.rows summary, .rows .head { display: grid; grid-template-columns: 16px minmax(80px, 1fr) minmax(150px, 2.8fr) repeat(6, 64px); gap: 10px;
  padding: 6px 0; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.rows .head { color: var(--soft); font-weight: 600; font-size: 13px; line-height: 1.25; align-items: end; }
.rows summary { cursor: pointer; list-style: none; }
.rows summary::-webkit-details-marker { display: none; }
.rows summary::before { content: "▸"; color: var(--soft); } .rows details[open] summary::before { content: "▾"; }
.rows .n { text-align: right; } .rows .cut { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.told { padding: 12px 0 22px 26px; } .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin-top: 10px; }
.trace { background: var(--raised); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.trace ol { list-style: none; margin: 0; padding: 0; }
.trace li { white-space: pre-wrap; overflow-wrap: anywhere; padding: 2px 0; }
.returned { color: var(--soft); } .trace li.failed { color: var(--worse); }
.trace .said { border-left: 3px solid var(--better); padding-left: 8px; margin: 4px 0; }
.ending { color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
pre { background: var(--raised); padding: 12px 14px; border-radius: 8px; overflow-x: auto; }
@media (max-width: 760px) { .sides { grid-template-columns: 1fr; } .pair { grid-template-columns: 1fr; } .rows { overflow-x: auto; } }
"""
