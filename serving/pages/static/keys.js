// The keys of the pages. Everything they do can be done with the mouse as well.
"use strict";

const typing = (place) => place instanceof Element && place.matches("input, select, textarea");
const items = () => [...document.querySelectorAll("[data-item]")];
const chosen = () => document.querySelector("[data-item].chosen");

function choose(step) {
  const all = items();
  if (!all.length) return;
  const at = all.indexOf(chosen());
  const next = at < 0 ? all[step > 0 ? 0 : all.length - 1] : all[Math.min(Math.max(at + step, 0), all.length - 1)];
  all.forEach((one) => one.classList.toggle("chosen", one === next));
  next.scrollIntoView({ block: next.offsetHeight > innerHeight ? "start" : "nearest" });
}

function open() {
  const one = chosen();
  const link = one && (one.matches("[data-open]") ? one : one.querySelector("[data-open]"));
  if (link) link.click();
  return Boolean(link);
}

// A verdict that has to say why waits for the note; `pending` is its button.
let pending = null;
function lacksNote(button) {
  const note = button.form.querySelector("[data-note]");
  const must = button.hasAttribute("data-say") || button.form.elements.target?.value;
  if (!must || note.value.trim()) return false;
  pending = button;
  const hint = button.form.querySelector("[data-hint]");
  hint.textContent = `Write why, then press ${button.firstChild.textContent.trim()} again, or Ctrl+Enter.`;
  hint.hidden = false;
  note.focus();
  return true;
}

document.addEventListener("click", (event) => {
  const button = event.target instanceof Element && event.target.closest("[data-review] button");
  if (button && lacksNote(button)) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && typing(event.target)) return event.target.blur();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("[data-note]") && pending) return pending.click();
  if (event.repeat && !"jk".includes(event.key)) return;
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const dialog = document.getElementById("keys");
  if (dialog.open) return;
  const press = (found) => { if (found) { event.preventDefault(); found.click(); } };
  const focus = (found) => { if (found) { event.preventDefault(); found.focus(); found.select?.(); } };
  switch (event.key) {
    case "/": return focus(document.querySelector("[data-search]"));
    case "?": return dialog.showModal();
    case "j": return choose(1);
    case "k": return choose(-1);
    case "n": return focus(document.querySelector("[data-note]"));
    case "Enter": if (!event.target.closest("a, button, summary") && open()) event.preventDefault(); return;
    default: return press(document.querySelector(`[data-key="${CSS.escape(event.key)}"]`));
  }
});

// How long something still waits. What has waited too long is the server's to refuse; here its buttons only stop inviting.
function countDown() {
  for (const one of document.querySelectorAll("[data-until]")) {
    const left = Math.max(0, Math.floor((Date.parse(one.dataset.until) - Date.now()) / 1000));
    const [hours, minutes, seconds] = [Math.floor(left / 3600), Math.floor(left / 60) % 60, left % 60].map((part) => String(part).padStart(2, "0"));
    one.textContent = left ? `${hours === "00" ? "" : `${hours}:`}${minutes}:${seconds} left` : "expired";
    if (!left) one.closest("[data-item]")?.querySelectorAll("button").forEach((button) => { button.disabled = true; });
  }
}
if (document.querySelector("[data-until]")) {
  countDown();
  setInterval(countDown, 1000);
}
