// What is on the page. Whatever comes from the catalogue or from a person is put there as text, never as markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A name with its year.
export function named(card) {
  const shown = el("span", { class: "name" }, el("bdi", {}, card.name));
  if (card.year) shown.append(" ", el("span", { class: "year" }, String(card.year)));
  return shown;
}

// A name that can be taken away.
export function chip(card, remove, label = `Remove ${card.name}`) {
  const cross = el("button", { type: "button", class: "cross", "aria-label": label, onclick: remove }, "×");
  return el("li", { class: "chip" }, named(card), cross);
}

// A part of what is said: words, or an item.
const mentioned = (part) => (typeof part === "string" ? part : el("span", { class: "chip" }, named(part)));

export function bubble(turn) {
  turn.node ??= el("li", { class: "user" });
  turn.node.replaceChildren(el("span", { class: "hidden" }, "You: "), el("p", {}, ...turn.parts.map(mentioned)));
  return turn.node;
}

export const dots = () =>
  el("li", { class: "dots" }, el("span", { class: "hidden" }, "Thinking"), el("i"), el("i"), el("i"));

export function failure(says, retry) {
  const button = el("button", { type: "button", onclick: retry }, "Try again");
  return el("li", { class: "failure", role: "alert" }, el("p", {}, says), button);
}

const ACTIONS = [["taken", "That’s it"], ["rejected", "Not for me"], ["seen", "Seen it"]];

// An answer: what it recommends as cards, which fill as it is written, or what it says.
export function answer(turn, onMark) {
  turn.node = el("li", { class: "answer" }, el("span", { class: "hidden" }, "Answer: "));
  if (!turn.cards.length) {
    turn.node.append(el("p", { class: "says" }));
    return turn.node;
  }
  turn.shown = turn.cards.map((card) => filmCard(card, onMark));
  const list = el("ul", { class: "cards" }, ...turn.shown.map(({ node }) => node));
  turn.node.append(el("section", { class: "with" }, el("h3", { class: "side" }, "With item tokens"), list));
  return turn.node;
}

export function write(turn, { says, found }) {
  if (!turn.cards.length) turn.node.querySelector(".says").replaceChildren(...says.map(mentioned));
  found.forEach(({ lead, why, card }, number) => {
    const shown = turn.shown[number];
    shown.lead.textContent = lead;
    shown.why.textContent = why;
    // the LLM's own sentence says little of what it is about
    shown.about.hidden = !card.text || why.startsWith(card.text.slice(0, 20));
  });
}

function filmCard(card, onMark) {
  const lead = el("p", { class: "lead" });
  const why = el("p", { class: "why" });
  const about = el("p", { class: "about", hidden: "" }, card.text);
  const buttons = ACTIONS.map(([how, label]) =>
    el("button", { type: "button", class: how, "aria-pressed": "false", onclick: () => onMark(card, how) },
      label, el("span", { class: "hidden" }, `: ${card.name}`)));
  const node = el("li", { class: "card" }, lead, el("h3", {}, named(card)), genres(card), why, about,
    el("div", { class: "actions" }, ...buttons));
  node.style.setProperty("--hue", hue(card.genres[0] ?? card.name));
  node.dataset.id = card.id;
  return { node, lead, why, about };
}

const genres = (card) => el("p", { class: "genres" }, ...card.genres.map((genre) => el("span", {}, genre)));

// The same genre has the same colour.
const hue = (text) => [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);

// What is recommended without item tokens, beside the answer; null takes it away.
export function beside(turn, cards, says = "") {
  turn.node.querySelector(".without")?.remove();
  turn.node.classList.toggle("compared", Boolean(cards || says));
  if (!cards && !says) return;
  const also = new Set(turn.cards.map((card) => card.id));
  const rows = (cards ?? []).map((card) =>
    el("li", {}, named(card), genres(card), also.has(card.id) ? el("p", { class: "soft" }, "in both") : ""));
  turn.node.append(el("section", { class: "without" }, el("h3", { class: "side" }, "Without item tokens"),
    says ? el("p", { class: "soft" }, says) : el("ol", {}, ...rows)));
}

// Which buttons of all cards are pressed.
export function press(marked) {
  for (const card of document.querySelectorAll(".card")) {
    const how = marked.get(card.dataset.id)?.how ?? "";
    card.dataset.how = how;
    for (const button of card.querySelectorAll(".actions button"))
      button.setAttribute("aria-pressed", String(button.classList.contains(how || "none")));
  }
}

// The lists of what is known; `forget` gets what is to be taken away.
export function known(talk, forget) {
  const marked = (how) => [...talk.marked.values()].filter((one) => one.how === how).map(({ card }) => card);
  const groups = [["You named", talk.named], ["You took", marked("taken")], ["Not for you", marked("rejected")],
    ["You have seen", marked("seen")]].filter(([, cards]) => cards.length);
  const shown = groups.map(([title, cards]) => el("section", {}, el("h3", {}, title), el("ul", { class: "chips" },
    ...cards.map((card) => chip(card, () => forget({ id: card.id }), `Forget ${card.name}`)))));
  if (talk.words.length)
    shown.push(el("section", {}, el("h3", {}, "In your words"), el("ul", { class: "quotes" }, ...talk.words.map(
      ({ turn, text }) => el("li", {}, el("q", {}, text), el("button", { type: "button", class: "cross",
        "aria-label": `Forget “${text.slice(0, 60)}”`, onclick: () => forget({ turn }) }, "×"))))));
  const count = groups.reduce((sum, [, cards]) => sum + cards.length, talk.words.length);
  return { count, shown: shown.length ? shown : [el("p", { class: "soft" }, "Nothing yet.")] };
}
