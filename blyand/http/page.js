"use strict";
// The chat page. Talks to the API of the node that served it, with the token that came in
// the address's fragment or was pasted; keeps it for this tab only. No other site is asked.

const at = (id) => document.getElementById(id);
const TOKEN = "blyan.token";
const told = []; // the conversation, as the API takes it
let models = new Map();
let under_way = null; // AbortController of the answer being made
let visits = new Map(); // "layer,expert" -> how often, of the last answer

// ---------------------------------------------------------------- the token

function take_token() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(TOKEN, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname); // out of sight and of the history
}

async function ask(path, body, signal) {
  const headers = { authorization: "Bearer " + (sessionStorage.getItem(TOKEN) || "") };
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, signal, cache: "no-store",
    credentials: "omit", body: body ? JSON.stringify(body) : undefined,
  });
  if (answer.ok) return answer;
  let why = { message: "The node answered " + answer.status + "." };
  try { why = (await answer.json()).error; } catch { /* not from the gateway */ }
  throw Object.assign(new Error(why.message), { status: answer.status, code: why.code });
}

async function open_door() {
  const has = !!sessionStorage.getItem(TOKEN);
  say(null);
  try {
    if (!has) throw Object.assign(new Error(), { status: 401 });
    const list = (await (await ask("/v1/models")).json()).data;
    models = new Map(list.map((one) => [one.id, one]));
  } catch (error) {
    const locked = error.status === 401;
    at("door").hidden = !locked;
    at("empty").hidden = locked;
    at("composer").hidden = locked;
    if (locked && has) { sessionStorage.removeItem(TOKEN); say("That is not this node’s token."); }
    if (!locked) say(error.status ? error.message : "The node does not answer. Is it running?");
    if (locked) at("token").focus();
    return;
  }
  at("door").hidden = true;
  at("composer").hidden = false;
  at("empty").hidden = told.length > 0;
  const chosen = at("model").value;
  at("model").replaceChildren(...[...models.keys()].map((name) => new Option(name, name, false, name === chosen)));
  at("model").disabled = models.size < 2;
  at("send").disabled = !models.size;
  if (!models.size) {
    at("model").replaceChildren(new Option("no model yet"));
    say("No model is here yet. One is made with “blyanctl model create”.");
  }
  show_model();
  at("prompt").focus();
}

// ---------------------------------------------------------------- what is shown

function say(text) {
  at("notice").textContent = text || "";
  at("notice").hidden = !text;
}

function show_model() {
  const about = (models.get(at("model").value) || {}).blyan || {};
  at("template").hidden = about.chat_template !== "plain";
  visits = new Map();
  draw();
}

function add_message(role, text) {
  const item = document.createElement("li");
  item.className = role;
  const body = document.createElement("div");
  body.className = "body";
  item.append(body);
  at("messages").append(item);
  at("empty").hidden = true;
  write(item, text);
  return item;
}

// Text only; what stands between lines of ``` is shown as code.
function write(item, text) {
  const pieces = text.split(/^```[^\n]*\n?/m);
  const body = item.firstChild;
  body.replaceChildren(...pieces.map((piece, place) => {
    if (place % 2 === 0) return document.createTextNode(piece);
    const code = document.createElement("pre");
    code.textContent = piece.replace(/\n$/, "");
    return code;
  }));
}

function note(item, text) {
  const line = document.createElement("div");
  line.className = "note";
  line.textContent = text;
  item.append(line);
}

function follow(force) {
  const talk = at("talk");
  const near = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120;
  if (near || force) talk.scrollTop = talk.scrollHeight;
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const money = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });

function figure(id, value, unit) {
  const small = document.createElement("small");
  small.textContent = unit ? " " + unit : "";
  at(id).replaceChildren(value, small);
}

function show_figures(state) {
  const made = state.blyan || {};
  const spent_s = (performance.now() - state.first_ms) / 1000;
  const own = state.count > 1 ? (state.count - 1) / spent_s : null;
  const speed = made.tokens_per_s || own;
  figure("speed", speed ? number.format(speed) : "–");
  figure("count", state.count ? String(state.count) : "–");
  const first = made.time_to_first_token_s;
  if (first == null) figure("first", "–");
  else if (first < 1) figure("first", String(Math.max(1, Math.round(first * 1000))), "ms");
  else figure("first", number.format(first), "s");
  figure("cost", made.cost_micro == null ? "–" : money.format(made.cost_micro / 1e6), "BLY");
  if (made.peers) show_peers(made.peers, made.this_node);
}

function show_peers(peers, me) {
  const sum = peers.reduce((total, peer) => total + peer.calls, 0) || 1;
  const sorted = [...peers].sort((a, b) => b.calls - a.calls);
  at("peers").replaceChildren(...sorted.map((peer) => {
    const line = document.createElement("li");
    const name = document.createElement("code");
    name.textContent = peer.peer_id === me ? "this node" : "…" + peer.peer_id.slice(-12);
    name.title = peer.peer_id;
    const calls = document.createElement("span");
    calls.textContent = peer.calls + (peer.calls === 1 ? " call" : " calls");
    const part = document.createElement("meter");
    part.value = peer.calls / sum;
    part.setAttribute("aria-label", "part of all calls");
    line.append(name, calls, part);
    return line;
  }));
}

// ---------------------------------------------------------------- the heat map

function visit(experts) {
  for (const [layer, expert, times] of experts) {
    const key = layer + "," + expert;
    visits.set(key, (visits.get(key) || 0) + times);
  }
  draw();
}

function draw() {
  const canvas = at("heat");
  const about = (models.get(at("model").value) || {}).blyan || {};
  const layers = about.layers || 1, experts = about.experts || 1;
  const width = canvas.parentElement.clientWidth;
  if (!width) return; // folded away
  const row = Math.max(5, Math.min(22, width / experts));
  const ratio = devicePixelRatio || 1;
  canvas.style.height = row * layers + "px";
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(row * layers * ratio);
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const gap = width / experts > 6 ? ratio : 0;
  const cell_x = canvas.width / experts, cell_y = canvas.height / layers;
  const most = new Array(layers).fill(0);
  for (const [key, times] of visits) {
    const layer = Number(key.split(",")[0]);
    most[layer] = Math.max(most[layer] || 0, times);
  }
  pen.fillStyle = style.getPropertyValue("--card");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  let best = null;
  for (let layer = 0; layer < layers; layer++) {
    for (let expert = 0; expert < experts; expert++) {
      const times = visits.get(layer + "," + expert) || 0;
      pen.globalAlpha = 1;
      pen.fillStyle = style.getPropertyValue("--cold");
      const left = Math.round(expert * cell_x), top = Math.round(layer * cell_y);
      const wide = Math.max(1, Math.round((expert + 1) * cell_x) - left - gap);
      const high = Math.max(1, Math.round((layer + 1) * cell_y) - top - gap);
      pen.fillRect(left, top, wide, high);
      if (!times) continue;
      pen.globalAlpha = 0.06 + 0.94 * (times / most[layer]) ** 2;
      pen.fillStyle = style.getPropertyValue("--warm");
      pen.fillRect(left, top, wide, high);
      if (!best || times > best.times) best = { layer, expert, times };
    }
  }
  const text = best
    ? `most visited: layer ${best.layer}, expert ${best.expert}, ${best.times} times`
    : "a row per layer, a column per expert";
  at("hottest").textContent = text;
  canvas.setAttribute("aria-label", best ? "Experts visited; " + text : "No expert was visited yet");
}

// ---------------------------------------------------------------- an answer

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const line = held.slice(0, end);
      held = held.slice(end + 2);
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

function take(state, chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.blyan) {
    const { experts, ...made } = chunk.blyan;
    state.blyan = made;
    if (experts) visit(experts);
  }
  if (chunk.usage) state.count = chunk.usage.completion_tokens;
  const choice = chunk.choices[0];
  if (!choice) return;
  if (choice.delta.content) state.text += choice.delta.content;
  if (choice.finish_reason) state.finish = choice.finish_reason;
  else if (!("role" in choice.delta)) {
    if (!state.first_ms) state.first_ms = performance.now();
    state.count += 1;
  }
}

// Asks with the newest messages that fit the model's context.
async function ask_for_answer(item) {
  const body = {
    model: at("model").value, stream: true, trace: true,
    stream_options: { include_usage: true },
    temperature: Math.min(2, Math.max(0, Number(at("temperature").value) || 0)),
  };
  const most = Math.round(Number(at("most").value));
  if (most > 0) body.max_completion_tokens = most;
  if (at("form").value) body.chat_template = at("form").value;
  for (let from = 0; ; from += 2) {
    try {
      const asked = { ...body, messages: told.slice(from) };
      const response = await ask("/v1/chat/completions", asked, under_way.signal);
      if (from) note(item, "the beginning of this chat no longer fits the model’s context");
      return response;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || from + 2 >= told.length) throw error;
    }
  }
}

async function answer() {
  const prompt = at("prompt").value.trim();
  if (!prompt || under_way || at("send").disabled) return;
  say(null);
  at("prompt").value = "";
  fit();
  told.push({ role: "user", content: prompt });
  add_message("user", prompt);
  const item = add_message("assistant", "");
  follow(true);
  const state = { text: "", count: 0, first_ms: 0, blyan: null, finish: null };
  visits = new Map();
  begin(item);
  try {
    const response = await ask_for_answer(item);
    for await (const chunk of events(response)) {
      take(state, chunk);
      write(item, state.text);
      show_figures(state);
      follow();
    }
    if (state.finish === "length") {
      const asked = Number(at("most").value) > 0;
      note(item, asked ? "cut off at the most tokens" : "cut off: the model’s context is full");
    }
    if (!state.text) note(item, "the model said nothing");
  } catch (error) {
    if (error.name === "AbortError") note(item, "stopped");
    else if (error.status === 401) await open_door();
    else say(error.message || "The connection to the node was lost.");
  } finally {
    end(item, state);
  }
}

function begin(item) {
  under_way = new AbortController();
  item.classList.add("busy");
  at("send").hidden = true;
  at("stop").hidden = false;
  show_figures({ count: 0, first_ms: 0 });
}

function end(item, state) {
  under_way = null;
  item.classList.remove("busy");
  at("send").hidden = false;
  at("stop").hidden = true;
  if (state.text) told.push({ role: "assistant", content: state.text });
  else { // nothing came: the question can be sent again
    const asked = told.pop();
    if (!item.querySelector(".note")) {
      item.previousSibling.remove();
      item.remove();
      at("prompt").value = at("prompt").value || asked.content;
      fit();
    }
  }
  follow();
  at("prompt").focus();
}

function fit() {
  const area = at("prompt");
  area.style.height = "auto";
  area.style.height = Math.min(area.scrollHeight, 192) + "px";
}

// ---------------------------------------------------------------- begin

at("composer").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
at("prompt").addEventListener("input", fit);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  answer();
});
at("stop").addEventListener("click", () => under_way && under_way.abort());
at("fresh").addEventListener("click", () => {
  if (under_way) under_way.abort();
  told.length = 0;
  at("messages").replaceChildren();
  at("empty").hidden = !at("door").hidden;
  at("prompt").focus();
});
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  open_door();
});
at("model").addEventListener("change", show_model);
at("more").addEventListener("toggle", draw);
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("hashchange", () => { take_token(); open_door(); });
if (innerWidth <= 860) at("more").open = false;
take_token();
open_door();
