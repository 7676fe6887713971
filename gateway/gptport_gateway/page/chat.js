const $ = (id) => document.getElementById(id);
let messages = [];
let running = null; // the AbortController of the answer under way

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function checked(response) {
  if (response.ok) return response;
  if (response.status === 401) $("key-label").hidden = false;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `HTTP status ${response.status}`);
}

async function loadModels() {
  const { data } = await (await checked(await fetch("v1/models", { headers: headers() }))).json();
  $("model").replaceChildren(...data.map(({ id }) => new Option(id)));
}

function show(role, text) {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  element.textContent = text;
  $("messages").append(element);
  element.scrollIntoView({ block: "end" });
  return element;
}

// Goes along with what comes, unless who reads has gone up.
function add(element, text) {
  const { scrollHeight, scrollTop, clientHeight } = $("messages");
  element.textContent += text;
  if (scrollHeight - scrollTop - clientHeight < 40) element.scrollIntoView({ block: "end" });
}

// The JSON objects of a stream of server-sent events.
async function* events(response) {
  let unread = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (unread + text).split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function answer(element) {
  const body = JSON.stringify({ model: $("model").value, messages, stream: true });
  const options = { method: "POST", headers: headers(), body, signal: running.signal };
  const response = await checked(await fetch("v1/chat/completions", options));
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    add(element, event.choices[0]?.delta.content ?? "");
  }
}

async function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  const conversation = messages; // another one may have begun when the answer ends
  $("input").value = "";
  conversation.push({ role: "user", content: text });
  const asked = show("user", text);
  const element = show("assistant", "");
  setRunning(new AbortController());
  try {
    await answer(element);
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  } finally {
    if (element.textContent) {
      conversation.push({ role: "assistant", content: element.textContent });
    } else { // it is as if it had not been said, and can be said otherwise
      conversation.pop();
      asked.remove();
      element.remove();
      if (conversation === messages) $("input").value ||= text;
    }
    setRunning(null);
    $("input").focus();
  }
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
}

function reset() {
  running?.abort();
  messages = [];
  $("messages").replaceChildren();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", reset);
$("key").addEventListener("change", () => loadModels().catch((error) => show("error", error.message)));
loadModels().catch((error) => show("error", error.message));
