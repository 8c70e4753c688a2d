"use strict";
// Keeps the page as it would be if it were read again: every two seconds the page is asked
// for and what differs is changed in place, so that focus, selection, scrolling and opened
// tables stay. All words and figures are made in one place, the server.
(() => {
  const every = 2000, patience = 10000;
  const byId = (id) => document.getElementById(id);
  const away = byId("away"), pause = byId("pause"), form = byId("ask"), field = byId("path"), answer = byId("answer");
  const version = (doc) => doc.querySelector("meta[name=version]")?.content;

  // read asks for a page of ours. A document that is fetched this way runs no scripts.
  function read(url, time) {
    return new Promise((resolve, reject) => {
      const r = new XMLHttpRequest();
      r.open("GET", url);
      r.responseType = "document";
      r.timeout = time;
      r.onload = () => (r.response && version(r.response) !== undefined ? resolve(r.response) : reject(new Error("HTTP " + r.status)));
      r.onerror = r.ontimeout = () => reject(new Error("no answer"));
      r.send();
    });
  }

  // become makes have like want.
  function become(have, want) {
    if (have.nodeType === Node.TEXT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    if (have.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name, value } of want.attributes) {
      if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    }
    for (const { name } of [...have.attributes]) {
      // What a person opened stays open.
      if (!want.hasAttribute(name) && !(name === "open" && have.nodeName === "DETAILS")) have.removeAttribute(name);
    }
    children(have, want);
  }

  // children pairs rows by their key and the rest by their order.
  function children(have, want) {
    const keyed = new Map();
    for (const c of have.children) if (c.dataset.key) keyed.set(c.dataset.key, c);
    let at = have.firstChild;
    for (const w of want.childNodes) {
      const key = w.dataset?.key;
      let h = null;
      if (key) {
        h = keyed.get(key) ?? null;
        keyed.delete(key);
      } else if (at && !at.dataset?.key && at.nodeName === w.nodeName) {
        h = at;
      }
      if (!h) have.insertBefore(document.importNode(w, true), at);
      else {
        if (h === at) at = at.nextSibling;
        else have.insertBefore(h, at);
        become(h, w);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  // show takes over what a new page says, but for a part in which somebody selects text.
  function show(doc) {
    const focused = document.activeElement, selection = getSelection();
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = doc.getElementById(part.id);
      if (!fresh || (!selection.isCollapsed && selection.containsNode(part, true))) continue;
      become(part, fresh);
    }
    document.title = doc.title;
    if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
  }

  function reached(is) {
    document.body.classList.toggle("stale", !is);
    if (is) away.hidden = true;
    else if (away.hidden) {
      away.textContent = "The daemon does not answer. What stands here is from " + byId("asof").textContent.replace(/^As of /, "") + "; it is asked again every two seconds.";
      away.hidden = false;
    }
  }

  let asking = false, paused = false;
  async function update() {
    if (asking || paused || document.hidden) return;
    asking = true;
    try {
      const doc = await read("/", patience);
      // A daemon of another version may have another page.
      if (version(doc) !== version(document)) location.reload();
      if (!paused) show(doc);
      reached(true);
    } catch {
      reached(false);
    }
    asking = false;
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    update();
  });
  document.addEventListener("visibilitychange", update);
  setInterval(update, every);

  // The look-up box answers without leaving the page; the address is that of the answer.
  let asked = 0;
  async function lookUp(url) {
    const mine = ++asked;
    answer.replaceChildren(Object.assign(document.createElement("p"), { className: "quiet", textContent: "Asking every source…" }));
    try {
      const doc = await read(url, 30000);
      if (mine !== asked) return;
      become(answer, doc.getElementById("answer"));
      become(field, doc.getElementById("path"));
    } catch {
      if (mine === asked) answer.replaceChildren(Object.assign(document.createElement("p"), { className: "note bad", textContent: "The daemon does not answer." }));
    }
  }
  const address = (path) => "/?path=" + encodeURIComponent(path);
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    history.pushState(null, "", address(field.value));
    lookUp(address(field.value));
  });
  document.addEventListener("click", (e) => {
    const link = e.target.closest?.("a[href^='/?path=']");
    if (!link || e.button || e.ctrlKey || e.metaKey || e.shiftKey || e.altKey) return;
    e.preventDefault();
    field.value = new URL(link.href).searchParams.get("path");
    history.pushState(null, "", address(field.value));
    field.focus();
    lookUp(address(field.value));
  });
  addEventListener("popstate", () => {
    const path = new URLSearchParams(location.search).get("path");
    field.value = path ?? "";
    asked++;
    if (path) lookUp(address(path));
    else answer.replaceChildren();
  });
})();
