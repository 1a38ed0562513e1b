"""How the labelling pages look, in light and in dark, and the keys they listen to."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #565c64; --paper: #ffffff; --raised: #f4f5f7; --line: #d9dce1;
  --key: #005f96; --on-key: #ffffff; --answer: #e8f3fa; --right: #eaf5ea; --trouble: #a03d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a8aeb6; --paper: #16181b; --raised: #1f2226; --line: #363b42;
  --key: #56b4e9; --on-key: #10202b; --answer: #17293a; --right: #1a2e1f; --trouble: #f5a05c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 920px; padding: 24px 20px 140px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 4px; } h2 { font-size: 14px; margin: 0 0 4px; color: var(--soft); font-weight: 600; }
h1 + p { margin-top: 0; } p { max-width: 75ch; } .soft { color: var(--soft); } code { overflow-wrap: anywhere; }
a { color: var(--key); } :focus-visible { outline: 3px solid var(--key); outline-offset: 2px; border-radius: 4px; }
.note { border-left: 4px solid var(--key); background: var(--raised); padding: 10px 14px; white-space: pre-wrap; }
.trouble { border-color: var(--trouble); }
form.ask { display: grid; gap: 16px; max-width: 420px; margin-top: 20px; }
label { display: grid; gap: 4px; font-weight: 600; font-size: 14px; }
input, select { font: inherit; font-weight: 400; padding: 8px 10px; border: 1px solid var(--soft); border-radius: 6px;
  background: var(--paper); color: var(--ink); width: 100%; min-width: 0; }
button, .button { font: inherit; padding: 9px 16px; border: 1px solid var(--soft); border-radius: 6px; background: var(--raised);
  color: var(--ink); cursor: pointer; text-decoration: none; display: inline-block; }
button.main { background: var(--key); border-color: var(--key); color: var(--on-key); font-weight: 600; }
button:hover, .button:hover { filter: brightness(.95); }
kbd { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; border: 1px solid currentColor; border-radius: 4px;
  padding: 0 5px; margin-left: 6px; }
section { margin: 14px 0; } .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.called .text, .returned .text { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.asked { background: var(--raised); border-radius: 8px; padding: 12px 14px; }
.said, .called, .returned { border-left: 3px solid var(--line); padding-left: 14px; } .called { border-color: var(--key); }
.verdict { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin: 22px 0; }
.verdict section { margin: 0; border-radius: 8px; padding: 12px 14px; min-width: 0; } .verdict .text { font-size: 18px; }
.answer { background: var(--answer); } .reference { background: var(--right); }
.give { position: fixed; inset: auto 0 0 0; background: var(--paper); border-top: 1px solid var(--line); padding: 12px 20px; }
.give > div { max-width: 880px; margin: 0 auto; display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; }
.give form { display: flex; gap: 8px; align-items: center; margin: 0; } .give label { display: flex; align-items: center; gap: 8px; }
.give input { width: 80px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0 24px; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; font-size: 14px; } caption { text-align: left; font-weight: 600; padding: 6px 0; }
@media (max-width: 640px) { .verdict { grid-template-columns: 1fr; } body { padding-bottom: 220px; } }
"""

SCRIPT = """
addEventListener("keydown", (pressed) => {
  if (pressed.repeat || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
  if (pressed.target instanceof Element && pressed.target.matches("input, select, textarea")) return;
  const wanted = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === pressed.key.toLowerCase());
  if (wanted) { pressed.preventDefault(); wanted.click(); }
});
"""
