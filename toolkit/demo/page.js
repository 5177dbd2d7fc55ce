() => {
  // light or dark: the system's, until the person chooses
  const kept = localStorage.getItem("fablesmith-theme");
  const dark = (on) => document.body.classList.toggle("dark", on);
  if (kept) dark(kept === "dark");
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    const on = !document.body.classList.contains("dark");
    dark(on);
    localStorage.setItem("fablesmith-theme", on ? "dark" : "light");
  });
  // a text to the clipboard; the button says so for a moment
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const story = button.closest(".card").querySelector(".story");
    try {
      await navigator.clipboard.writeText([...story.querySelectorAll("p")].map((p) => p.innerText).join("\n\n"));
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1500);
    } catch (refused) { getSelection().selectAllChildren(story); }
  });
  // the page's language, for screen readers; status lines are read out as they change
  document.documentElement.lang = location.pathname.includes("/zh") ? "zh-Hans" : "en";
  const announce = () => document.querySelectorAll(".live:not([aria-live])").forEach((e) => {
    e.setAttribute("aria-live", "polite");
    e.setAttribute("aria-atomic", "true");
  });
  announce();
  new MutationObserver(announce).observe(document.body, { childList: true, subtree: true });
  // keys: Ctrl+Enter starts what stands open, Esc stops it, single keys vote
  const press = (selector) => {
    const button = [...document.querySelectorAll(selector)].find((b) => b.offsetParent !== null && !b.disabled);
    if (button) button.click();
    return Boolean(button);
  };
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      if (press("button#write, button#compare, button#judge, button#greet")) event.preventDefault();
      return;
    }
    if (event.key === "Escape") { press("button.stop"); return; }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const vote = { 1: "first", 2: "second", 0: "tie", s: "skip", u: "undo" }[event.key];
    if (vote && press(`button#vote-${vote}`)) event.preventDefault();
  });
}
