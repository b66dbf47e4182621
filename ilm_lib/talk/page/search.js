// The search for titles: a combobox as the ARIA patterns have it, with a list that the server fills while one types.

import { get } from "./wire.js";
import { el, named } from "./view.js";

const PAUSE = 120; // ms after a key before it is asked

export class Search {
  constructor({ input, box, list, none, status, onPick, onEmptyEnter }) {
    Object.assign(this, { input, box, list, none, status, onPick, onEmptyEnter, found: [], at: -1, asked: null });
    input.addEventListener("input", () => this.look(PAUSE));
    input.addEventListener("click", () => box.hidden && this.look(0));
    input.addEventListener("keydown", (event) => this.key(event));
    input.addEventListener("blur", () => this.close());
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.pick([...list.children].indexOf(option));
    });
  }

  async look(pause) {
    this.asked?.abort();
    const mine = (this.asked = new AbortController());
    await new Promise((done) => setTimeout(done, pause));
    if (mine.signal.aborted) return;
    const query = this.input.value.trim();
    try {
      const { data } = await get(`v1/items?limit=8&query=${encodeURIComponent(query)}`, mine.signal);
      if (!mine.signal.aborted && document.activeElement === this.input) this.show(data, query);
    } catch (error) {
      if (!mine.signal.aborted) this.show([], query, error.message);
    }
  }

  show(found, query, says = `No title has “${query}” in it.`) {
    this.found = found;
    this.list.replaceChildren(...found.map((card, number) => {
      const option = el("li", { role: "option", id: `found-${number}` }, named(card));
      if (card.genres.length) option.append(el("span", { class: "soft" }, card.genres.join(", ")));
      return option;
    }));
    this.list.hidden = !found.length;
    this.none.hidden = Boolean(found.length);
    this.none.textContent = found.length ? "" : says;
    this.box.hidden = false;
    this.input.setAttribute("aria-expanded", String(Boolean(found.length)));
    this.choose(found.length && query ? 0 : -1);
    this.status.textContent = found.length ? `${found.length} titles` : says;
  }

  choose(at) {
    this.at = at;
    [...this.list.children].forEach((option, number) => option.setAttribute("aria-selected", String(number === at)));
    if (at < 0) return this.input.removeAttribute("aria-activedescendant");
    this.input.setAttribute("aria-activedescendant", `found-${at}`);
    this.list.children[at].scrollIntoView({ block: "nearest" });
  }

  close() {
    this.asked?.abort();
    this.box.hidden = true;
    this.found = [];
    this.input.setAttribute("aria-expanded", "false");
    this.choose(-1);
  }

  key(event) {
    if (event.isComposing) return;
    const count = this.found.length;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (count) this.choose(this.at < 0 && step < 0 ? count - 1 : (this.at + step + count) % count);
      else if (this.box.hidden) this.look(0);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (this.at >= 0) this.pick(this.at);
      else if (!this.input.value.trim()) this.onEmptyEnter();
    } else if (event.key === "Escape" && !this.box.hidden) {
      event.preventDefault();
      this.close();
    } else if (event.key === "Escape") {
      this.input.value = "";
    }
  }

  pick(at) {
    const card = this.found[at];
    this.input.value = "";
    this.close();
    this.onPick(card);
  }
}
