// The page: a conversation with the model of this server.

import { Search } from "./search.js";
import { Talk } from "./talk.js";
import { Told, answered, get, replied } from "./wire.js";
import * as view from "./view.js";

const at = (id) => document.getElementById(id);
const status = at("status");
let talk = new Talk();
let model = null;
let picked = []; // cards of titles in the message that is being written
let running = null; // {control, turn} of the answer that is being written
let comparing = null;
let changed = false; // something was forgotten since the last answer

// ---------------------------------------------------------------- saying

const search = new Search({
  input: at("search"), box: at("suggested"), list: at("found"), none: at("none"), status,
  onPick(card) {
    if (!picked.some(({ id }) => id === card.id)) picked.push(card);
    showPicked();
    status.textContent = `${card.name} is in your message`;
  },
  onEmptyEnter: () => (picked.length ? send() : at("say").focus()),
});

function showPicked() {
  at("picked").replaceChildren(...picked.map((card) => view.chip(card, () => {
    picked = picked.filter((other) => other !== card);
    showPicked();
    search.input.focus();
  })));
}

// "I liked A, B and C." of what was picked, and what was typed.
function composed(cards, text) {
  const between = (number) => (!number ? "I liked " : number === cards.length - 1 ? " and " : ", ");
  const parts = cards.flatMap((card, number) => [between(number), card]);
  return [...parts, ...(cards.length ? [text ? `. ${text}` : "."] : [text])];
}

function send() {
  const text = at("say").value.trim();
  if (!model || (!text && !picked.length)) return at("say").focus();
  const parts = composed(picked, text);
  picked = [];
  at("say").value = "";
  showPicked();
  say(parts);
}

function say(parts, by = "") {
  stop();
  if (at("start").contains(document.activeElement)) rest();
  at("start").hidden = true;
  const turn = talk.say(parts, by);
  if (!turn.node) at("talk").append(view.bubble(turn));
  view.bubble(turn);
  ask();
}

const SAYS = {
  rejected: (card) => [card, " is not for me."],
  seen: (card) => ["I have seen ", card, " already."],
};

// A button of a card; pressed again, it is taken back.
function mark(card, how) {
  if (talk.marked.get(card.id)?.how === how) return forget({ id: card.id });
  talk.marked.set(card.id, { card, how });
  if (how !== "taken") {
    say(SAYS[how](card), how);
  } else {
    stop();
    at("talk").append(view.bubble(talk.say(["I’ll take ", card, "."], how)));
    closing(`Enjoy ${card.name}! Say more whenever you want another.`);
  }
  refresh();
}

// The page has the last word, and the model hears of it with the next message.
function closing(text) {
  clear(".failure");
  const turn = talk.answer([], text);
  at("talk").append(view.answer(turn, mark));
  view.write(turn, { says: [text], found: [] });
  turn.node.classList.add("closing");
  turn.node.scrollIntoView({ block: "nearest" });
  status.textContent = text;
}

// ---------------------------------------------------------------- answers

async function ask() {
  stop();
  clear(".failure");
  const control = new AbortController();
  const mine = (running = { control, turn: null, follow: true });
  const asked = talk.last;
  const dots = view.dots();
  at("talk").append(dots);
  refresh();
  asked.node.scrollIntoView({ block: "start" });
  try {
    for await (const piece of replied(talk.request(model), control.signal)) {
      if (piece.ilm && !mine.turn) begin(mine, asked, piece.ilm, dots);
      mine.turn.content += piece.choices[0]?.delta.content ?? "";
      view.write(mine.turn, talk.pieces(mine.turn));
    }
  } catch (error) {
    if (control.signal.aborted) return;
    fail(mine, error);
    return;
  } finally {
    dots.remove();
    mine.turn?.node.classList.remove("growing");
    if (running === mine) running = null;
  }
  if (mine.follow) asked.node.scrollIntoView({ block: "start" }); // what it holds has grown
  const names = mine.turn.cards.map(({ name }) => name).join(", ");
  status.textContent = names ? `Recommended: ${names}` : talk.plain(mine.turn.content);
  compare(mine.turn);
}

// Who looks elsewhere while it is written is left there.
for (const moved of ["wheel", "touchmove"])
  addEventListener(moved, () => running && (running.follow = false), { passive: true });

// The first piece says how the message was understood, and what is recommended.
function begin(mine, asked, own, dots) {
  talk.meet(own);
  asked.parts = own.heard;
  view.bubble(asked);
  mine.turn = talk.answer(own.recommended);
  dots.replaceWith(view.answer(mine.turn, mark));
  mine.turn.node.classList.add("growing");
  changed = false;
  refresh();
  asked.node.scrollIntoView({ block: "start" });
}

function fail(mine, error) {
  if (mine.turn) drop(mine.turn);
  const ours = !(error instanceof Told);
  if (ours) console.error(error);
  at("talk").append(view.failure(ours ? "This page failed; its console says how." : error.message, ask));
  at("talk").lastChild.scrollIntoView({ block: "nearest" });
}

// Whatever is being written is not waited for.
function stop() {
  comparing?.abort();
  if (!running) return;
  running.control.abort();
  if (running.turn) talk.breakOff(running.turn);
  running = null;
}

function drop(turn) {
  talk.turns.splice(talk.turns.indexOf(turn), 1);
  turn.node.remove();
}

function clear(selector) {
  for (const node of at("talk").querySelectorAll(selector)) {
    if (node.contains(document.activeElement)) rest();
    node.remove();
  }
}

// Where the focus goes when what had it goes away; on a phone the message box would bring up the keyboard.
function rest() {
  at(matchMedia("(pointer: fine)").matches ? "say" : "talk").focus();
}

// ---------------------------------------------------------------- without item tokens

async function compare(turn) {
  comparing?.abort();
  if (!at("compare").checked || !turn?.cards?.length) return;
  const control = (comparing = new AbortController());
  view.beside(turn, null, "…");
  const end = talk.turns.indexOf(turn);
  try {
    const asked = talk.request(model, end, { tokens: false, writes: false });
    view.beside(turn, (await answered(asked, control.signal)).ilm.recommended);
  } catch (error) {
    view.beside(turn, null, control.signal.aborted ? "" : error.message);
  }
}

at("compare").addEventListener("change", () => {
  const answers = talk.turns.filter((turn) => turn.cards?.length);
  if (!at("compare").checked) {
    comparing?.abort();
    answers.forEach((turn) => view.beside(turn, null));
  } else if (!running) compare(answers.at(-1));
});

// ---------------------------------------------------------------- what is known

function refresh() {
  const { count, shown } = view.known(talk, forget);
  at("lists").replaceChildren(...shown);
  at("count").textContent = count;
  at("count").hidden = !count;
  at("again").hidden = !changed;
  at("anew").hidden = !talk.turns.length;
  view.press(talk.marked);
}

function forget({ id, turn }) {
  const inPanel = at("known").contains(document.activeElement);
  if (id !== undefined) talk.forgetItem(id);
  else talk.forgetWords(turn);
  changed = true;
  talk.turns.filter((one) => one.parts).forEach(view.bubble);
  refresh();
  status.textContent = "Forgotten";
  if (inPanel) at("known").focus(); // the button is gone
}

at("again").addEventListener("click", () => {
  stop();
  while (talk.last && !talk.waits) drop(talk.last);
  changed = false;
  at("known").focus();
  if (talk.last) ask();
});

at("anew").addEventListener("click", () => {
  stop();
  talk = new Talk();
  changed = false;
  at("talk").replaceChildren();
  at("start").hidden = false;
  refresh();
  at("say").focus();
  status.textContent = "Started anew";
});

// ---------------------------------------------------------------- the first screen

// Three openings, made of what is best known here.
function openings(cards) {
  const genre = cards.flatMap((card) => card.genres).find((one, _, all) => all.filter((o) => o === one).length > 1);
  const [a, b, c, d] = cards;
  const first = [a && ["Something like ", a], b && c && ["I liked ", b, " and ", c],
    genre ? [`I am in the mood for ${genre.toLowerCase()}`] : d && ["I liked ", d]];
  at("openings").replaceChildren(...first.filter(Boolean).map((parts) => {
    const words = parts.map((part) => (typeof part === "string" ? part : view.el("b", {}, part.name)));
    return view.el("button", { type: "button", onclick: () => say([...parts, "."]) }, ...words);
  }));
}

async function start() {
  clear(".failure");
  try {
    const [models, items] = await Promise.all([get("v1/models"), get("v1/items?limit=20")]);
    model = models.data[0].id;
    at("model").textContent = model;
    openings(items.data);
  } catch (error) {
    at("talk").append(view.failure(error.message, start));
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
if (matchMedia("(pointer: fine)").matches) at("say").focus();
refresh();
start();
