// The conversation: what was said, and what is known of who says it. It lives in this tab alone.

const MOST = 99; // turns that are sent, the last ones; an odd number begins and ends with the user's
const mark = (card) => `<item:${card.id}>`;
const isCard = (part) => typeof part !== "string";

// A user's turn has parts, texts and cards of items; one that a button said has its action's name in `by`.
// An answer has the cards of what it recommends, and its content, with items as marks.
export class Talk {
  turns = [];
  marked = new Map(); // by id, {card, how}: "seen", "rejected" or "taken"
  names = new Map(); // by id, the names of items that were met

  get last() {
    return this.turns.at(-1);
  }

  get waits() {
    return this.last?.role === "user";
  }

  // The user's turn with these parts; what has not been answered is one turn.
  say(parts, by = "") {
    if (!this.waits) this.turns.push({ role: "user", parts: [], by });
    const turn = this.last;
    if (turn.parts.length) turn.parts.push(" ");
    if (!by) turn.by = "";
    turn.parts.push(...parts);
    return turn;
  }

  answer(cards, content = "") {
    const turn = { role: "assistant", cards, content, without: null };
    this.turns.push(turn);
    return turn;
  }

  // The answer that was being written stands as it is, with every item that was shown.
  breakOff(turn) {
    const missing = turn.cards.map(mark).filter((one) => !turn.content.includes(one));
    if (missing.length) turn.content += `\nOr ${missing.join(", ")}.`;
  }

  // What the endpoint is asked before the turn of a number.
  request(model, end = this.turns.length, more = {}) {
    const turns = this.turns.slice(0, end).slice(-MOST);
    const messages = turns.map((turn) => ({ role: turn.role, content: turn.content ?? written(turn.parts) }));
    const ids = (...hows) => [...this.marked.values()].filter((m) => hows.includes(m.how)).map((m) => m.card.id);
    return { model, messages, ilm: { items: "id", seen: ids("seen", "taken"), rejected: ids("rejected"), ...more } };
  }

  meet(own) {
    for (const item of [...own.named, ...own.recommended, ...own.heard.filter(isCard)])
      this.names.set(item.id, item.name ?? item.title);
  }

  // Items that the user named and did not mark, and the user's own words, each with its turn.
  get named() {
    const cards = this.turns.filter((turn) => turn.parts && !turn.by).flatMap((turn) => turn.parts.filter(isCard));
    return [...new Map(cards.filter((card) => !this.marked.has(card.id)).map((card) => [card.id, card])).values()];
  }

  get words() {
    const own = this.turns.filter((turn) => turn.parts && !turn.by);
    return own.map((turn) => ({ turn, text: spoken(turn.parts) })).filter(({ text }) => /[\p{L}\p{N}]/u.test(text));
  }

  forgetItem(id) {
    this.marked.delete(id);
    for (const turn of this.turns.filter((turn) => turn.parts)) {
      const hit = turn.parts.some((part) => part.id === id);
      if (hit) turn.parts = turn.by ? ["…"] : turn.parts.map((part) => (part.id === id ? "…" : part));
    }
  }

  forgetWords(turn) {
    const cards = turn.parts.filter(isCard);
    turn.parts = cards.length ? cards.flatMap((card) => [" ", card]).slice(1) : ["…"];
  }

  // What a reply says of each item: the line up to its mark, and what comes after it in its line.
  pieces({ cards, content }) {
    const found = [];
    for (const card of cards) {
      const [before, after] = cut(found.at(-1)?.rest ?? content, mark(card));
      if (after === undefined) break;
      const line = before.lastIndexOf("\n") + 1;
      const lead = !found.length ? before : line ? before.slice(line) : ""; // ", " and " or " lead nothing
      if (found.length) found.at(-1).rest = line ? before : "";
      found.push({ card, lead: this.plain(lead), rest: after });
    }
    const why = ({ card, rest }) => reason(this.plain(rest.split("\n")[0]), card);
    return { says: found.length ? [] : this.parts(content), found: found.map((one) => ({ ...one, why: why(one) })) };
  }

  // A text in parts, with { id, name } in the place of the marks of items that were met.
  parts(text) {
    let parts = [text.trim()];
    for (const [id, name] of this.names) {
      const between = (piece) => piece.split(mark({ id })).flatMap((one, n) => (n ? [{ id, name }, one] : [one]));
      parts = parts.flatMap((one) => (isCard(one) ? [one] : between(one)));
    }
    return parts.filter((one) => one !== "");
  }

  plain(text) {
    return this.parts(text).map((one) => (isCard(one) ? one.name : one)).join("");
  }
}

export const written = (parts) => parts.map((part) => (isCard(part) ? mark(part) : part)).join("");

// The user's own words: without what the page put before them, "I liked A and B."
function spoken(parts) {
  const names = parts.filter(isCard).map((card) => card.name);
  const text = parts.map((part) => (isCard(part) ? "\ue000" : part.replaceAll("\ue000", ""))).join("");
  const own = text.replace(/^I liked (?:\ue000|, | and )+\.?\s*/, "");
  names.splice(0, names.length - own.split("\ue000").length + 1);
  return own.replaceAll("\ue000", () => names.shift()).trim();
}

// The text before a mark and after it; [text] where there is none.
function cut(text, by) {
  const at = text.indexOf(by);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + by.length)];
}

// A sentence out of what follows a name: "? It is sad.", ", which is sad." or ": Drama. Sad.".
function reason(text, card) {
  text = text.replace(/^[\s?:.,;]+/, "").replace(/^which is\b/, "It is");
  const genres = `${card.genres.join(", ")}. `;
  if (text.startsWith(genres)) text = text.slice(genres.length);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
