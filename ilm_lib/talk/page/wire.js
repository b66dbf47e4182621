// What goes to the server and comes from it. Whatever fails is an error whose message can be shown as it is.

export class Told extends Error {}

export async function get(path, signal) {
  return (await fetched(path, { signal })).json();
}

// A whole reply.
export async function answered(request, signal) {
  return (await posted(request, signal)).json();
}

// The pieces of a reply, each as the protocol has it. Who stops listening hangs up.
export async function* replied(request, signal) {
  const got = await posted({ ...request, stream: true }, signal);
  const reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ; ) {
      const { value, done } = await reader.read().catch((error) => lost(error, "The server broke off."));
      if (done) throw new Told("The server broke off.");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const data of events.map((event) => event.slice("data: ".length))) {
        if (data === "[DONE]") return;
        const piece = JSON.parse(data);
        if (piece.error) throw new Told(sentence(piece.error.message));
        yield piece;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

function posted(request, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetched("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(request), signal });
}

async function fetched(path, options) {
  const gone = "The server does not answer. Is it still running?";
  const got = await fetch(path, options).catch((error) => lost(error, gone));
  if (got.ok) return got;
  const error = (await got.json().catch(() => ({}))).error ?? {};
  const wait = Number(got.headers.get("Retry-After")) || 5;
  if (got.status === 429) throw new Told(`Others are being answered just now. Try again in ${wait} s.`);
  if (["request_too_large", "too_many_messages", "context_length_exceeded"].includes(error.code))
    throw new Told("This conversation is too long for me by now. Start anew, and say what matters most.");
  throw new Told(error.message ? sentence(error.message) : `The server failed (${got.status}).`);
}

function lost(error, says) {
  throw error.name === "AbortError" ? error : new Told(says);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
