"""How the report looks, in light and in dark, from a laptop's width to a wall's. Every rule is within `.report`: the app shows it, too."""

STYLE = """
.report { --ink: #1c1e21; --soft: #565c64; --paper: #ffffff; --raised: #f4f5f7; --line: #d9dce1; --better: #0069a6; --worse: #b34a00;
  --same: #8a8a8a; --warn: #7a5a00; --run-2: #00795a; --run-3: #a5478a; --run-4: #8a6d00; --run-5: #444b55; color-scheme: light dark;
  background: var(--paper); color: var(--ink);
  font: clamp(15px, 10.5px + .35vw, 19px)/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { .report { --ink: #e8eaed; --soft: #a8aeb6; --paper: #16181b; --raised: #1f2226; --line: #363b42;
  --better: #56b4e9; --worse: #f5a05c; --same: #8f959d; --warn: #e3c063;
  --run-2: #3cc79a; --run-3: #e08cc4; --run-4: #e3c063; --run-5: #c9d0d9; } }
.report, .report * { box-sizing: border-box; }
body.report { margin: 0 auto; max-width: 84em; padding: 2em 1.6em 4em; }
html:has(> body.report) { background: #ffffff; } @media (prefers-color-scheme: dark) { html:has(> body.report) { background: #16181b; } }
.report h1 { font-size: 1.6em; line-height: 1.25; margin: .1em 0 .6em; font-weight: 650; overflow-wrap: anywhere; }
.report h2 { font-size: 1.25em; margin: 2.2em 0 .6em; padding-top: .5em; border-top: 1px solid var(--line); font-weight: 650; }
.report h2, .report h3, .report h4, .report p, .report .key { overflow-wrap: anywhere; }
.report h3, .report h4 { font-size: 1em; margin: 0 0 .5em; color: var(--ink); font-weight: 600; } .report h3.over { margin: 2em 0 .2em; }
.report small, .report .soft { color: var(--soft); font-weight: 400; } .report small { font-size: .86em; }
.report p { margin: .4em 0; max-width: 80ch; } .report p.soft { font-size: .9em; } .report a { color: var(--better); }
.report code, .report pre, .report .trace li { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: .85em; }

.report .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15em, 1fr)); gap: .8em; margin: 1em 0; }
.report .tiles > div { background: var(--raised); border-radius: 8px; padding: .9em 1.1em; }
.report .tiles b { display: block; font-size: 1.75em; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.report .tiles small { display: block; font-variant-numeric: tabular-nums; }
.report svg.split { height: 8px; margin: .35em 0 .5em; }
.report .next { border-left: 4px solid var(--better); background: var(--raised); padding: .7em 1em; max-width: none;
  overflow-wrap: anywhere; }
.report .next.halted { border-color: var(--worse); }
.report .ways { display: flex; flex-wrap: wrap; gap: .2em 1.3em; margin: 1.2em 0 0; font-size: .93em; }
.report .ways a { text-underline-offset: 3px; }

.report .duo { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(31em, 100%), 1fr)); gap: 2em 2.4em; margin: 1em 0; }
.report .trio { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21em, 100%), 1fr)); gap: 1.8em 2em; margin: 1em 0; }
.report .duo > *, .report .trio > * { min-width: 0; } .report figure { margin: 0; }
.report .trio h3 { font-size: .93em; }
.report svg { width: 100%; height: auto; display: block; font-size: 12.5px; background: none; border-radius: 0; }
.report .trio svg { font-size: 15px; }
.report svg text { fill: var(--ink); font-variant-numeric: tabular-nums; } .report .tick-x, .report .number { text-anchor: middle; }
.report .tick-y, .report .corner-end { text-anchor: end; } .report .corner, .report .corner-end { font-weight: 600; }
.report svg .name { fill: var(--soft); } .report .grid { stroke: var(--line); } .report svg .axis { stroke: var(--soft); }
.report polyline { fill: none; stroke-linejoin: round; } .report .main { stroke: var(--better); stroke-width: 2.4; }
.report .context { stroke: var(--same); stroke-width: 1.2; opacity: .85; }
.report .held { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 6 4; } .report circle.heldout { fill: var(--warn); }
.report circle { stroke: var(--paper); } .report circle.dot { fill: var(--better); }
.report circle.better, .report rect.better, .report rect.sometimes { fill: var(--better); }
.report circle.worse, .report rect.worse, .report rect.never { fill: var(--worse); }
.report circle.same, .report rect.same, .report rect.always { fill: var(--same); }
.report rect.band { fill: var(--worse); opacity: .13; } .report .edge { stroke: var(--worse); stroke-dasharray: 5 4; }
.report svg .limit { fill: var(--worse); } .report .spoke path { fill: var(--warn); } .report .spoke .at { stroke: var(--warn);
  opacity: .5; }
.report .spoke.ended path { fill: var(--worse); } .report .spoke.ended .at { stroke: var(--worse); stroke-width: 2; opacity: 1; }
.report .reach { stroke-width: 2.4; stroke: var(--same); } .report .reach.better { stroke: var(--better); }
.report .reach.worse { stroke: var(--worse); }
.report svg.cell { width: 11em; height: 1.25em; min-width: 7em; } .report table.drawn svg.cell { margin-left: auto; }
.report .key { display: flex; flex-wrap: wrap; gap: .2em 1.3em; color: var(--soft); font-size: .9em; }
.report .key i, .report i.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em;
  vertical-align: -1px;
  background: var(--same); }
.report i.never, .report i.worse { background: var(--worse); } .report i.sometimes, .report i.better { background: var(--better); }
.report .key i.held { height: 0; border-top: 3px dashed var(--warn); border-radius: 0; background: none; vertical-align: .25em;
  width: 1.5em; }
.report .key i.band { background: color-mix(in srgb, var(--worse) 22%, var(--paper)); border: 1px dashed var(--worse); }
.report .key i.spoke { background: var(--warn); clip-path: polygon(0 0, 100% 0, 50% 100%); border-radius: 0; }

.report .run-0 { --run: var(--better); } .report .run-1 { --run: var(--worse); } .report .run-2 { --run: var(--run-2); }
.report .run-3 { --run: var(--run-3); } .report .run-4 { --run: var(--run-4); } .report .run-5 { --run: var(--run-5); }
.report polyline.run { stroke: var(--run); stroke-width: 2.2; } .report i[class*="run-"] { background: var(--run); }
.report polyline:is(.run-3, .run-4, .run-5) { stroke-dasharray: 7 4; }
.report i:is(.run-3, .run-4, .run-5) { width: 1.3em; border-radius: 0;
  background: repeating-linear-gradient(90deg, var(--run) 0 .35em, transparent .35em .475em); }
.report .across { overflow-x: auto; } .report table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
.report th, .report td { padding: .4em .9em .4em 0; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--line);
  font-size: .95em; white-space: nowrap; }
.report th { color: var(--soft); font-weight: 600; font-size: .86em; line-height: 1.25; vertical-align: bottom; white-space: normal; }
.report th:first-child, .report td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6.5em; }
.report th:last-child, .report td:last-child { padding-right: 0; } .report td svg { display: inline-block; vertical-align: middle; }
.report table.words th, .report table.words td { text-align: left; white-space: normal; vertical-align: top; }
.report table.words td { overflow-wrap: anywhere; } .report table.guards td:first-child { min-width: 7.5em; }
.report table.guards td:is(:nth-child(3), :nth-child(4)) { white-space: nowrap; }
.report table.differences td:first-child { min-width: 14em; }
.report table + table, .report .across + .across, .report .across + details, .report details + .across { margin-top: 1em; }
.report table.checks th, .report table.checks td { text-align: left; }
.report table.checks td:first-child { white-space: nowrap; } .report table.checks td:last-child { white-space: normal; min-width: 14em; }
.report table.models th { overflow-wrap: anywhere; min-width: 5em; max-width: 11em; }
.report table.models td:first-child { min-width: 9em; }
.report table.bars th:nth-child(2), .report table.bars td:nth-child(2) { text-align: left; width: 40%; padding-left: 1em; }
.report table.bars svg.cell { width: 100%; }
.report figure + figure { margin-top: 2em; } .report .duo > figure + figure, .report .trio > figure + figure { margin-top: 0; }
.report table.slices td { vertical-align: middle; line-height: 1.25; }
.report .up { color: var(--better); } .report .down { color: var(--worse); }
.report .act { border: 1px solid currentColor; border-radius: 9px; padding: 0 .6em; font-size: .86em; white-space: nowrap;
  color: var(--soft); }
.report .act.warn { color: var(--warn); } .report .act.stop, .report .act.halt { color: var(--worse); }

.report summary { cursor: pointer; } .report details > summary:focus-visible { outline: 2px solid var(--better); outline-offset: 2px; }
.report .example { border-bottom: 1px solid var(--line); padding: .5em 0; }
.report .rows { font-size: .95em; overflow-x: auto; }
.report .rows summary, .report .rows .head, .report .rows .line { display: grid; gap: .7em; padding: .4em 0;
  grid-template-columns: 1em minmax(6em, 1fr) minmax(9em, 2.8fr) repeat(6, 4.3em); border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; min-width: 46em; }
.report .rows.bare .head, .report .rows.bare .line { grid-template-columns: 1em minmax(9em, 1fr) repeat(6, 4.3em); }
.report .rows .head { color: var(--soft); font-weight: 600; line-height: 1.25; align-items: end; }
.report .rows .head span { font-size: .9em; }
.report .rows summary { list-style: none; } .report .rows summary::-webkit-details-marker { display: none; }
.report .rows summary::before { content: "▸"; color: var(--soft); } .report .rows details[open] > summary::before { content: "▾"; }
.report .rows .rest > summary { display: block; color: var(--better); font-weight: 600; }
.report .rows .rest > summary::before { margin-right: .5em; }
.report .rows .n { text-align: right; } .report .cut { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.report .told { padding: .6em 0 1.4em 1.6em; } .report .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1em;
  margin-top: .7em; }
.report .trace { background: var(--raised); border-radius: 8px; padding: .8em 1em; min-width: 0; }
.report .trace ol { list-style: none; margin: 0; padding: 0; }
.report .trace li { white-space: pre-wrap; overflow-wrap: anywhere; padding: .1em 0; }
.report .returned { color: var(--soft); } .report .trace li.failed { color: var(--worse); }
.report .trace .said { border-left: 3px solid var(--better); padding-left: .6em; margin: .3em 0; }
.report .ending { color: var(--soft); font-size: .86em; overflow-wrap: anywhere; }
.report pre { background: var(--raised); padding: .8em 1em; border-radius: 8px; overflow-x: auto; }
@media (max-width: 760px) { .report table.guards td:nth-child(n+5) { min-width: 14em; }
  .report .sides { grid-template-columns: 1fr; } .report .told { padding-left: 0; } }
@media print { .report { font-size: 11px; } .report table { font-size: .93em; }
  .report .ways { display: none; } .report figure, .report tr { break-inside: avoid; }
  .report h2, .report h3 { break-after: avoid; } .report svg:not(.cell):not(.split) { max-width: 460px; }
  .report .across { overflow: visible; } .report th, .report td { padding-right: .4em; } .report svg.cell { width: 7em; min-width: 4em; }
  .report .key i, .report i.swatch { print-color-adjust: exact; } }
"""
