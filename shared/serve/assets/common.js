// What both pages share: words for numbers and times, and how to ask the API.
"use strict";
window.penstock_common = (() => {
  let clock_ms = 0; // server's time minus ours

  const now = () => Date.now() + clock_ms;
  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  const bytes = (n) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let i = 0;
    for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
    return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
  };
  const span = (ms) => {
    const s = Math.max(0, Math.round(ms / 1000));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 && s < 600 ? ` ${s % 60} s` : ""}`;
    if (s < 86400) return `${Math.floor(s / 3600)} h${Math.floor((s % 3600) / 60) ? ` ${Math.floor((s % 3600) / 60)} min` : ""}`;
    return `${Math.floor(s / 86400)} d${Math.floor((s % 86400) / 3600) ? ` ${Math.floor((s % 86400) / 3600)} h` : ""}`;
  };
  const clock = (ms, exact) => {
    const t = new Date(ms);
    const time = t.toLocaleTimeString([], {
      hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: exact ? "2-digit" : undefined,
    });
    const today = new Date(now()).toDateString() === t.toDateString();
    return today ? time : `${t.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
  };

  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const show = (node, text) => { node.hidden = !text; set(node, text || ""); };

  async function json(url) {
    const answer = await fetch(url, { cache: "no-cache" });
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
    return answer.json();
  }

  /** What the server says of itself; takes its clock over. */
  async function server_status() {
    const status = await json("api/v1/status");
    clock_ms = Date.parse(status.time) - Date.now() || 0;
    return status;
  }

  return { now, plural, bytes, span, clock, set, show, json, server_status };
})();
