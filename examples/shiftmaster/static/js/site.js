"use strict";
// The grid's cells: a click opens the shifts, a choice is saved at once. Without this script the form below the grid
// does the same.
(() => {
  const grid = document.getElementById("grid");
  const form = document.getElementById("assign");
  if (!grid || !form || !grid.dataset.edit) return;
  const picker = document.getElementById("picker");
  const note = document.getElementById("note");
  let cell = null;
  let timer = 0;

  const say = (text, bad) => {
    note.textContent = text;
    note.className = "note show" + (bad ? " bad" : "");
    clearTimeout(timer);
    timer = setTimeout(() => note.classList.remove("show"), bad ? 5000 : 1200);
  };

  for (const option of form.elements.shift.options) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "c " + option.dataset.tone;
    button.textContent = option.value || "×";
    button.title = option.textContent;
    button.setAttribute("role", "menuitem");
    button.addEventListener("click", () => save(option.value));
    picker.append(button);
  }

  const close = () => { picker.hidden = true; };

  const save = async (shift) => {
    const target = cell;
    const place = target.closest("td");
    const day = String(place.cellIndex).padStart(2, "0");
    close();
    target.focus();
    target.classList.add("busy");
    const body = new FormData();
    body.set("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
    body.set("staff", place.parentNode.dataset.staff);
    body.set("day", `${grid.dataset.month}-${day}`);
    body.set("shift", shift);
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "X-Requested-With": "fetch" } });
      if (!answer.ok || answer.redirected) throw new Error(answer.status);
      const saved = await answer.json();
      target.textContent = saved.code;
      target.className = "c " + saved.tone;
      say(picker.dataset.saved);
    } catch {
      target.classList.remove("busy");
      say(picker.dataset.failed, true);
    }
  };

  grid.addEventListener("click", (event) => {
    const button = event.target.closest("tbody button");
    if (!button) return;
    cell = button;
    const box = button.getBoundingClientRect();
    picker.hidden = false;
    const left = Math.min(box.left, document.documentElement.clientWidth - picker.offsetWidth - 8);
    picker.style.left = `${left + scrollX}px`;
    picker.style.top = `${box.bottom + scrollY + 6}px`;
    picker.firstElementChild.focus();
    event.stopPropagation();
  });
  document.addEventListener("click", (event) => { if (!picker.contains(event.target)) close(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
})();

// While a draft is being built: look for it, then show it.
(() => {
  const drafting = document.getElementById("drafting");
  if (!drafting) return;
  const look = async () => {
    try {
      const answer = await fetch(drafting.dataset.state);
      if (answer.ok && !(await answer.json()).drafting) return location.reload();
    } catch { /* the next look may succeed */ }
    setTimeout(look, 2000);
  };
  setTimeout(look, 800);
})();
