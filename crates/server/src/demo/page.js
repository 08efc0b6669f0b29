// The page of the demo. Everything it shows is something that happened: an answer of the shop, or an event that a node reported.
"use strict";

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const GOODS = [["bell", "Bell"], ["saddle", "Saddle"], ["lamp", "Lamp"], ["basket", "Basket"], ["pump", "Pump"], ["lock", "Lock"]];
const GONE = ["stopped", "killed", "failed"];
const KINDS = { refused: 1, failed: 2, wrong: 3 };

const nodes = new Map();      // name -> what the parent last said of it
let durability = "", doing = "nothing", armed = false, connected = false;
let skew = 0;                 // the servers' clock minus ours
// The visitor's story as the demo tells it: what to say, where the session is, where its copies are, what happened to it last.
let story = { sentence: "", hint: "", owner: null, copies: [], version: 0, incident: null };

const now = () => Date.now() + skew;
const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;
const el = (tag, props = {}, ...inside) => {
  const { data, ...rest } = props;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, data);
  made.append(...inside);
  return made;
};

// ---- the one sentence ------------------------------------------------------------------------------------------------------

let said = "", lastAnnounced = "";
function say() {
  const lost = !connected && nodes.size, main = lost ? "The page has lost its connection to the demo." : story.sentence;
  const hint = lost ? "It tries again by itself." : story.hint;
  if (!main) return;
  if (main !== said) {
    // Seconds that pass are no news: only what changes otherwise is read aloud.
    const news = main.replace(/just now|a second ago|\d+ seconds ago|a minute ago|\d+ minutes ago/, "");
    $("sentence").setAttribute("aria-live", news === lastAnnounced ? "off" : "polite");
    lastAnnounced = news;
    $("sentence").textContent = said = main;
  }
  if ($("hint").textContent !== hint) $("hint").textContent = hint;
  const owner = nodes.get(story.owner), busy = doing !== "nothing";
  $("kill-mine").disabled = !owner || GONE.includes(owner.state);
  $("deploy").disabled = busy;
  $("arm").disabled = $("kill-mine").disabled && !armed;
  $("arm").setAttribute("aria-pressed", armed);
  for (const input of document.querySelectorAll("#keep input")) {
    input.checked = (input.value === "nothing") === (durability === "owner");
    input.disabled = busy;
  }
}

// ---- the nodes -------------------------------------------------------------------------------------------------------------

const cards = new Map();
const hue = (name) => [...nodes.keys()].indexOf(name) % 4;

function card(name) {
  const made = {
    root: el("article", { className: "node card", data: { hue: hue(name), name } }),
    state: el("span", { className: "state" }), chip: el("div", { className: "chip none" }), count: el("p", { className: "count" }),
    kill: el("button", { type: "button", className: "kill", textContent: "Kill" }), drain: el("button", { type: "button", textContent: "Drain" }),
    start: el("button", { type: "button", className: "start", textContent: "Start" }), shown: "",
  };
  for (const action of ["kill", "drain", "start"]) {
    made[action].setAttribute("aria-label", `${made[action].textContent} node ${name}`);
    made[action].onclick = () => act(`nodes/${name}/${action}`);
  }
  made.root.append(el("div", { className: "top" }, el("h2", { textContent: `Node ${name}` }), made.state),
    el("div", { className: "slot" }, made.chip), made.count, el("div", { className: "act" }, made.kill, made.drain, made.start));
  $("nodes").append(made.root);
  cards.set(name, made);
  return made;
}

/// Shows where the session is. A chip moves only when what it stands for has moved.
function place() {
  let moved = null;
  for (const [name, node] of nodes) {
    const at = cards.get(name) ?? card(name), gone = GONE.includes(node.state);
    const mine = story.owner === name, torn = story.incident?.killed && story.incident.node === name;
    const others = Math.max(0, node.stats.owned - (mine ? 1 : 0));
    at.root.className = `node card ${gone ? "gone" : node.state}`;
    at.state.textContent = { up: "", starting: "starting", draining: "leaving", stopped: "left", killed: "killed", failed: "failed" }[node.state];
    at.count.textContent = gone ? "\u00a0" : mine ? plural(others, "other", "others") : plural(others, "session", "sessions");
    at.kill.hidden = at.drain.hidden = gone;
    at.start.hidden = !gone;
    at.drain.disabled = node.state !== "up";
    at.start.disabled = doing !== "nothing";
    const role = gone ? (mine || torn ? "torn" : "none") : mine ? "owner" : story.owner && story.copies.includes(name) ? "copy" : "none";
    const version = `version ${story.version}`;
    if (role !== at.shown.split(" ")[0]) {
      const before = at.shown.split(" ")[0];
      const how = role === "owner" && before === "copy" ? "filling" : role === "torn" ? "now" : role === "copy" || role === "owner" ? "growing" : "";
      if (role === "owner" && before !== "copy") moved = name;
      at.chip.className = `chip ${role} ${how}`;
    }
    if (`${role} ${version}` !== at.shown) {
      at.chip.replaceChildren(...(role === "owner" ? [el("b", { textContent: "your session" }), el("span", { textContent: version })]
        : role === "copy" ? [el("b", { textContent: "copy" }), el("span", { textContent: version })]
        : role === "torn" ? [el("i"), el("i")] : []));
      at.shown = `${role} ${version}`;
    }
  }
  $("nodes").style.setProperty("--count", Math.min(nodes.size, innerWidth < 600 ? 3 : 4) || 3);
  if (moved && story.incident && !story.incident.killed && !calm.matches) fly(story.incident.node, moved);
  say();
}

/// A session that was handed over in order is seen to travel.
function fly(from, to) {
  const [a, b] = [cards.get(from), cards.get(to)].map((c) => c?.chip.getBoundingClientRect());
  if (!a || !b || from === to) return;
  const ghost = el("div", { className: "chip owner ghost" }, el("b", { textContent: "your session" }));
  Object.assign(ghost.style, { left: `${a.left}px`, top: `${a.top}px`, width: `${a.width}px`, height: `${a.height}px`, right: "auto", bottom: "auto" });
  ghost.style.setProperty("--hue", getComputedStyle(cards.get(to).root).getPropertyValue("--hue"));
  document.body.append(ghost);
  ghost.animate([{ transform: "none" }, { transform: `translate(${b.left - a.left}px, ${b.top - a.top}px)` }], { duration: 550, easing: "cubic-bezier(.5,0,.2,1)" })
    .finished.finally(() => ghost.remove());
}

// ---- the arrows ------------------------------------------------------------------------------------------------------------

const ends = { visit: null, copy: null };
function wires() {
  const stage = $("stage").getBoundingClientRect(), narrow = innerWidth <= 900;
  const box = (element) => { const r = element.getBoundingClientRect(); return { x: r.left - stage.left, y: r.top - stage.top, w: r.width, h: r.height }; };
  const live = story.owner && cards.has(story.owner) && !GONE.includes(nodes.get(story.owner).state);
  const owner = live ? box(cards.get(story.owner).chip) : null, shop = box($("shop"));
  const target = (from, to) => ({ from, to });
  let visit = null, copy = null;
  if (owner) {
    visit = narrow ? target([owner.x + owner.w / 2, shop.y + shop.h], [owner.x + owner.w / 2, owner.y - 46])
      : target([shop.x + shop.w, shop.y + shop.h * .3], [owner.x, owner.y + owner.h * .3]);
    const first = story.copies.find((name) => cards.has(name) && !GONE.includes(nodes.get(name).state));
    if (first && first !== story.owner) {
      const c = box(cards.get(first).chip), right = c.x > owner.x;
      copy = target([right ? owner.x + owner.w : owner.x, owner.y + owner.h * .72], [right ? c.x : c.x + c.w, c.y + c.h * .72]);
    }
  }
  for (const [name, goal] of [["visit", visit], ["copy", copy]]) {
    const path = $(`wire-${name}`);
    if (!goal) { ends[name] = null; path.setAttribute("d", ""); continue; }
    const at = ends[name] ?? { from: [...goal.from], to: [...goal.from] };
    const step = calm.matches ? 1 : .16;
    for (const end of ["from", "to"]) for (const i of [0, 1]) at[end][i] += (goal[end][i] - at[end][i]) * step;
    ends[name] = at;
    const [[x, y], [u, v]] = [at.from, at.to];
    // An arrow that passes a node goes above or below it.
    const far = !narrow && name === "visit" && u - x > 240, near = name === "copy" && Math.abs(u - x) > 160;
    // In the gaps before the first card and before the card that is meant.
    const [g, k] = [x + 34, u - 41], up = -12;
    path.setAttribute("d", far ? `M${x} ${y}H${g - 14}Q${g} ${y} ${g} ${y - 14}V${up + 14}Q${g} ${up} ${g + 14} ${up}H${k - 14}Q${k} ${up} ${k} ${up + 14}V${v - 14}Q${k} ${v} ${k + 14} ${v}H${u}`
      : near && !narrow ? `M${x} ${y}C${x + Math.sign(u - x) * 40} ${y + 130} ${u - Math.sign(u - x) * 40} ${v + 130} ${u} ${v}`
      : near ? `M${x} ${y}C${x} ${y + 40} ${u} ${v + 40} ${u} ${v}` : `M${x} ${y}L${u} ${v}`);
  }
}

// ---- the shop --------------------------------------------------------------------------------------------------------------

const rows = new Map();
for (const [sku, name] of GOODS) {
  const row = { count: el("output", {}), add: el("button", { type: "button", textContent: "Add" }), less: el("button", { type: "button", className: "less", textContent: "\u2212" }) };
  row.add.setAttribute("aria-label", `Add a ${name.toLowerCase()}`);
  row.less.setAttribute("aria-label", `Remove a ${name.toLowerCase()}`);
  row.add.onclick = () => shop("PUT", `add?sku=${sku}&once=${crypto.randomUUID?.() ?? Math.random()}`);
  row.less.onclick = () => shop("PUT", `remove?sku=${sku}&once=${crypto.randomUUID?.() ?? Math.random()}`);
  rows.set(sku, row);
  $("goods").append(el("li", {}, el("span", { textContent: name }), row.count, row.less, row.add));
}

let queue = Promise.resolve();
/// One request after the other, each repeated under the same name until it is answered.
function shop(method, path) {
  return (queue = queue.then(() => ask(method, path)).catch(() => {}));
}

async function ask(method, path) {
  for (let tries = 0; tries < 60; tries++) {
    let pause = 250;
    try {
      const answer = await fetch(`/shop/api/${path}`, { method, cache: "no-store" });
      if (answer.ok) return show(await answer.json());
      if (answer.status === 422) return;
      pause = 1000 * (Number(answer.headers.get("retry-after")) || .25);
    } catch { /* no connection: again */ }
    await new Promise((done) => setTimeout(done, pause));
  }
}

function show(view) {
  for (const [sku, row] of rows) {
    const count = view.cart[sku] ?? 0, text = count ? `\u00d7${count}` : "";
    if (row.count.textContent !== text) {
      row.count.textContent = text;
      row.count.classList.remove("bump");
      void row.count.offsetWidth;
      row.count.classList.add("bump");
    }
    row.less.disabled = !count;
  }
  person(view.user);
}

function person(user) {
  const box = $("person");
  if (box.dataset.user === (user ?? "")) return;
  box.dataset.user = user ?? "";
  if (user) {
    const out = el("button", { type: "button", textContent: "Sign out" });
    out.onclick = () => shop("POST", "logout");
    box.replaceChildren(el("div", { className: "in" }, el("span", {}, "signed in as ", el("b", { textContent: user })), out));
  } else {
    const input = el("input", { name: "user", placeholder: "Ada", maxLength: 40, autocomplete: "off" });
    input.setAttribute("aria-label", "Your name");
    const form = el("form", {}, input, el("button", { textContent: "Sign in" }));
    form.onsubmit = (event) => { event.preventDefault(); shop("POST", `login?user=${encodeURIComponent(input.value.trim() || "Ada")}`); };
    box.replaceChildren(form);
  }
}
person(null);
$("person").dataset.user = "";

// ---- buttons ---------------------------------------------------------------------------------------------------------------

const act = (what) => fetch(`/act/${what}`, { method: "POST" });
$("kill-mine").onclick = () => act(`nodes/${story.owner}/kill`);
$("arm").onclick = () => act("arm");
$("deploy").onclick = () => act("deploy");
$("reset").onclick = async () => { await act("reset"); shop("POST", "logout"); };
for (const input of document.querySelectorAll("#keep input")) input.onchange = () => act(`keep/${input.value}`);
$("code-open").onclick = async () => {
  $("code").showModal();
  $("code-text").textContent ||= await (await fetch("/code")).text();
};
$("code-close").onclick = () => $("code").close();

// ---- what the nodes say ----------------------------------------------------------------------------------------------------

function listen() {
  const source = new EventSource("/events");
  source.onmessage = (event) => heard(JSON.parse(event.data));
  source.onerror = () => { connected = false; say(); };
}

function heard(m) {
  connected = true;
  if (m.now) skew = m.now - Date.now();
  if (m.e === "snapshot") {
    durability = m.durability;
    doing = m.doing;
    armed = m.armed;
    $("crowd").textContent = m.shoppers;
    for (const node of m.nodes) nodes.set(node.name, node);
    dots.length = 0;
    addDots(m);
    $("log").replaceChildren();
    m.log.forEach((line) => log(line));
    $("legend").replaceChildren(...[...nodes.keys()].map((name) => key(`by node ${name}`, "", hue(name))), key("asked to wait", "hollow"), key("lost or older than seen", "", "red"));
  } else if (m.e === "node") nodes.set(m.node.name, m.node);
  else if (m.e === "dots") addDots(m);
  else if (m.e === "log") log(m.line);
  else if (m.e === "keep") durability = m.durability;
  else if (m.e === "doing") doing = m.doing;
  else if (m.e === "armed") armed = m.armed;
  else if (m.e === "story") story = m;
  if (m.e !== "dots" && m.e !== "log") place();
}

// ---- log, plot, totals -----------------------------------------------------------------------------------------------------

let lastKill = { t: 0, node: "" };
const marks = [];
function log({ t, node, text, yours = false }) {
  const list = $("log"), end = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const first = /^(killed|asked to leave)/.test(text);
  if (first) {
    const how = text.startsWith("killed") ? "killed" : "drained", last = marks.at(-1);
    lastKill = { t, node };
    // What happens to several at once is one mark.
    if (last?.how === how && Math.abs(t - last.t) < 500) last.names.push(node); else marks.push({ t, how, names: [node] });
  }
  const time = new Date(t), clock = `${time.toTimeString().slice(0, 8)}.${String(time.getMilliseconds()).padStart(3, "0")}`;
  const plus = lastKill.t && !first && t >= lastKill.t && t - lastKill.t < 20000 ? `+${(t - lastKill.t).toLocaleString("en")} ms` : "";
  const line = el("li", { className: first ? "first" : "" }, el("time", { textContent: clock }), el("span", { className: "plus", textContent: plus }),
    el("span", { className: yours ? "yours" : "", textContent: `${node} ${text}` }));
  // Lines of several nodes arrive out of order; their own times say which was first.
  line.dataset.t = t;
  let after = list.lastElementChild;
  while (after && Number(after.dataset.t) > t) after = after.previousElementSibling;
  after ? after.after(line) : list.prepend(line);
  while (list.children.length > 200) list.firstElementChild.remove();
  if (end) list.scrollTop = list.scrollHeight;
}

const key = (text, className, h) => {
  const dot = el("i", { className });
  dot.style.setProperty("--hue", h === "red" ? "var(--red)" : h === undefined ? "var(--soft)" : `var(--${"abcd"[h]})`);
  return el("span", {}, dot, text);
};

const dots = [], WINDOW = 60000;
const TOTALS = [["requests", "answers"], ["refused", "asked to wait"], ["failed", "broken, sent again"], ["lost", "lost"], ["stale", "older than seen"], ["resurrected", "back after sign-out"]];
const totals = new Map(TOTALS.map(([name, label]) => {
  const value = el("dd", { textContent: "0" }), box = el("div", {}, el("dt", { textContent: label }), value);
  $("totals").append(box);
  return [name, { value, box }];
}));

function addDots(m) {
  dots.push(...m.dots);
  const from = now() - WINDOW;
  let old = 0;
  while (old < dots.length && dots[old][0] < from) old++;
  if (old) dots.splice(0, old);
  for (const [name, { value, box }] of totals) {
    value.textContent = m.totals[name].toLocaleString("en").replaceAll(",", "\u202f");
    box.classList.toggle("bad", ["lost", "stale", "resurrected"].includes(name) && m.totals[name] > 0);
  }
  $("named").replaceChildren(...m.named.slice(-3).map((text) => el("li", { textContent: text })));
}

let scale = 20;
function plot() {
  const canvas = $("plot"), ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const hues = ["--a", "--b", "--c", "--d"].map(colour), soft = colour("--soft"), red = colour("--red"), lineColour = colour("--line");
  const c = canvas.getContext("2d"), left = 62, bottom = h - 6, top = 20, t1 = now(), t0 = t1 - WINDOW;
  const x = (t) => left + (t - t0) / WINDOW * (w - left - 4), y = (ms) => bottom - Math.min(1, ms / scale) * (bottom - top);
  const sample = dots.filter((d, i) => d[3] === 0 && i % 7 === 0).map((d) => d[1]).sort((a, b) => a - b);
  const high = sample[Math.floor(sample.length * .97)] ?? 0;
  scale = [10, 20, 50, 100, 200, 500, 1000, 5000].find((s) => high < s * .8) ?? 10000;
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, w, h);
  c.font = "12px system-ui, sans-serif";
  c.textBaseline = "middle";
  for (const share of [0, .5, 1]) {
    c.strokeStyle = lineColour;
    c.lineWidth = 1;
    c.beginPath(); c.moveTo(left, y(scale * share) + .5); c.lineTo(w, y(scale * share) + .5); c.stroke();
    c.fillStyle = soft;
    c.textAlign = "right";
    c.fillText(scale * share + (share === 1 ? " ms" : ""), left - 8, Math.max(8, y(scale * share)));
  }
  c.textAlign = "left";
  let crowded = -99, row = 0;
  for (const mark of marks) {
    if (mark.t < t0) continue;
    row = x(mark.t) - crowded < 80 ? 1 - row : 0;
    crowded = x(mark.t);
    c.strokeStyle = c.fillStyle = soft;
    c.beginPath(); c.moveTo(x(mark.t) + .5, 4); c.lineTo(x(mark.t) + .5, bottom); c.stroke();
    c.fillText(`${mark.names.join(", ")} ${mark.how}`, Math.min(x(mark.t) + 5, w - 66), 8 + row * 13);
  }
  while (marks.length && marks[0].t < t0) marks.shift();
  for (const [t, ms, node, kind] of dots) {
    if (t < t0 || t > t1 + 500) continue;
    const px = x(t), py = y(ms);
    c.globalAlpha = kind ? 1 : .55;
    c.beginPath();
    c.arc(px, py, kind === KINDS.wrong ? 4.5 : kind ? 3 : 1.7, 0, 7);
    if (kind === KINDS.refused || kind === KINDS.failed) { c.strokeStyle = hues[node] ?? soft; c.lineWidth = 1.4; c.stroke(); }
    else { c.fillStyle = kind === KINDS.wrong ? red : hues[node] ?? soft; c.fill(); }
  }
  c.globalAlpha = 1;
}

let drawn = 0;
function frame(at) {
  wires();
  if (at - drawn > (calm.matches ? 1000 : 90)) { drawn = at; plot(); }
  requestAnimationFrame(frame);
}

setInterval(say, 500);
addEventListener("resize", place);
listen();
shop("GET", "cart");
requestAnimationFrame(frame);
