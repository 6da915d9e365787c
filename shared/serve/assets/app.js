// The page of a hub or an edge: lists streams from the API, plays them with hls.js or the browser's own HLS.
// All URLs are relative to the page, so that a reverse proxy's prefix works.
"use strict";
(() => {
  const { now, plural, bytes, span, clock, set, show, json, server_status } = window.penstock_common;
  const HLS_URL = document.currentScript.dataset.hls;
  const POLL_MS = 3000;
  const RETRY_MS = 2000;
  const MAX_RECORDING_MS = 3600_000; // one playlist at a time; the next follows by itself
  const MAX_MEDIA_REPAIRS = 3;
  const KEY_STEP = 0.01;

  const $ = (id) => document.getElementById(id);
  const video = $("player");
  const penstock = (window.penstock = { player: null, fatal: null, streams: [] });
  const cards = new Map();
  let zoom_s = 0;
  let wanted = null; // { name, mode: "live" | "rec", from, to } as the address says
  let retry = 0;
  let attempt = 0; // counts what was started, so that late answers to what was given up are known

  // --- words

  const codec = (c) => {
    const known = { avc1: "H.264", avc3: "H.264", hvc1: "H.265", hev1: "H.265", mp4a: "AAC" };
    return known[c.split(".")[0]] ?? c;
  };
  const facts = (s) => [
    s.resolution && `${s.resolution.width}×${s.resolution.height}`,
    ...(s.codecs ? s.codecs.split(",").map((c) => codec(c.trim())) : []),
    s.device,
  ].filter(Boolean).join(" · ");
  // --- the list

  async function refresh() {
    try {
      const [list, status] = await Promise.all([json("api/v1/streams"), server_status()]);
      penstock.streams = list.streams;
      show_status(status);
      show_streams(list.streams);
    } catch {
      show($("trouble"), "The server does not answer. What you see may be old; trying again.");
    }
  }

  async function poll() {
    if (!document.hidden) await refresh();
    setTimeout(poll, POLL_MS);
  }

  function show_status(status) {
    const end = status.role === "edge" ? `Edge ${status.device ?? ""}`.trim() : "Hub";
    set($("end"), `${end} · ${status.version}`);
    let text = "";
    let good = true;
    if (status.role === "edge" && status.link) {
      const state = status.link.state ?? String(status.link);
      good = state === "connected";
      $("link-page").hidden = !status.link.plots;
      text = good ? "Connected to the hub" : `Hub: ${status.link.reason || state.replaceAll("_", " ")}`;
    } else if (Array.isArray(status.sessions)) {
      text = `${plural(status.sessions.length, "device")} connected`;
    }
    show($("link"), text);
    $("link").classList.toggle("bad", !good);
    const refused = (status.link?.refused_streams ?? []).map((r) => `The hub refuses ${r.stream}: ${r.reason}.`);
    const not_ready = status.ready ? [] : [`Not ready: ${status.not_ready}.`];
    show($("trouble"), [...not_ready, ...refused].join(" "));
  }

  function show_streams(streams) {
    const filter = $("filter");
    filter.hidden = streams.length <= 8;
    const needle = filter.hidden ? "" : filter.value.trim().toLowerCase();
    set($("count"), streams.length ? plural(streams.length, "stream") : "Streams");
    $("empty").hidden = streams.length > 0;
    const seen = new Set();
    let before = null;
    for (const stream of streams) {
      seen.add(stream.name);
      const card = cards.get(stream.name) ?? make_card(stream.name);
      card.stream = stream;
      card.root.hidden = needle !== "" && !`${stream.name} ${stream.title ?? ""}`.toLowerCase().includes(needle);
      draw(card);
      const place = before ? before.nextSibling : $("streams").firstChild;
      if (card.root !== place) $("streams").insertBefore(card.root, place);
      before = card.root;
    }
    for (const [name, card] of cards) if (!seen.has(name)) { card.root.remove(); cards.delete(name); }
    mark_playing();
  }

  function make_card(name) {
    const root = $("card").content.firstElementChild.cloneNode(true);
    root.dataset.stream = name;
    const part = (selector) => root.querySelector(selector);
    const card = {
      root, stream: null, window: [0, 1], at: null,
      title: part(".title"), facts: part(".facts"), state: part(".state"), timeline: part(".timeline"), ranges: part(".ranges"),
      cursor: part(".cursor"), head: part(".head-mark"), from: part(".from"), at_text: part(".at"), to: part(".to"), sums: part(".sums"),
      live: part('[data-play="live"]'), rec: part('[data-play="recording"]'),
    };
    cards.set(name, card);
    card.live.addEventListener("click", () => go({ name, mode: "live" }));
    card.rec.addEventListener("click", () => go(newest(card.stream)));
    const line = card.timeline;
    const time_at = (event) => {
      const box = line.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      return card.window[0] + share * (card.window[1] - card.window[0]);
    };
    line.addEventListener("pointermove", (event) => point(card, time_at(event)));
    line.addEventListener("pointerleave", () => { if (document.activeElement !== line) point(card, null); });
    line.addEventListener("blur", () => point(card, null));
    line.addEventListener("click", (event) => play_from(card, time_at(event)));
    line.addEventListener("keydown", (event) => {
      const [start, end] = card.window;
      const step = { ArrowLeft: -KEY_STEP, ArrowRight: KEY_STEP, PageDown: -0.1, PageUp: 0.1 }[event.key];
      if (step) point(card, Math.min(end, Math.max(start, (card.at ?? end) + step * (end - start))));
      else if (event.key === "Home") point(card, start);
      else if (event.key === "End") point(card, end);
      else if (event.key === "Enter" || event.key === " ") play_from(card, card.at ?? start);
      else return;
      event.preventDefault();
    });
    return card;
  }

  function draw(card) {
    const s = card.stream;
    const name = s.title || s.name;
    if (card.title.dataset.shown !== `${name}\n${s.name}`) {
      card.title.dataset.shown = `${name}\n${s.name}`;
      card.title.textContent = name;
      if (s.title) {
        const small = document.createElement("small");
        small.textContent = ` ${s.name}`;
        card.title.append(small);
      }
    }
    set(card.facts, facts(s));
    set(card.state, s.state);
    card.state.className = `state ${s.state}`;
    const some = s.ranges.length > 0;
    set(card.live, s.state === "live" ? "▶ Live" : "▶ Last minutes");
    card.live.setAttribute("aria-label", s.state === "live" ? `Play ${name} live` : `Play the last minutes of ${name}`);
    card.rec.setAttribute("aria-label", `Play the newest recording of ${name}`);
    card.live.disabled = card.rec.disabled = !some;
    const first = some ? Date.parse(s.first) : now() - 60_000;
    const last = some ? Date.parse(s.last) : now();
    const end = s.state === "live" ? Math.max(last, now()) : last;
    card.window = [zoom_s ? end - zoom_s * 1000 : Math.min(first, end - 1000), end];
    draw_ranges(card);
    card.timeline.hidden = !some;
    const day_apart = new Date(card.window[0]).toDateString() !== new Date(end).toDateString();
    set(card.from, some ? clock(card.window[0], !day_apart) : "No segment yet");
    set(card.to, !some ? "" : s.state === "live" ? "now" : clock(end, !day_apart));
    card.timeline.setAttribute("aria-label", `Recorded times of ${name}; arrow keys choose, Enter plays`);
    const held = s.ranges.reduce((sum, r) => sum + Date.parse(r.to) - Date.parse(r.from), 0);
    const sums = some ? `${span(held)} · ${bytes(s.bytes)}` : "";
    const unshipped = s.unshipped ? `${plural(s.unshipped, "segment")} (${bytes(s.unshipped_bytes)}) to ship` : "";
    if (card.sums.dataset.shown !== `${sums}\n${unshipped}`) {
      card.sums.dataset.shown = `${sums}\n${unshipped}`;
      card.sums.textContent = sums;
      if (unshipped) {
        const b = document.createElement("b");
        b.textContent = unshipped;
        card.sums.append(sums ? document.createElement("br") : "", b);
      }
    }
  }

  function draw_ranges(card) {
    const [start, end] = card.window;
    const share = (t) => (100 * (t - start)) / (end - start);
    const shown = card.stream.ranges
      .map((r) => [Math.max(0, share(Date.parse(r.from))), Math.min(100, share(Date.parse(r.to)))])
      .filter(([a, b]) => b > 0 && a < 100 && b >= a);
    while (card.ranges.children.length > shown.length) card.ranges.lastChild.remove();
    shown.forEach(([a, b], i) => {
      const bar = card.ranges.children[i] ?? card.ranges.appendChild(document.createElement("i"));
      bar.style.left = `${a}%`;
      bar.style.width = `${b - a}%`;
    });
  }

  /** Shows the time under the pointer or keyboard cursor. */
  function point(card, time) {
    card.at = time;
    card.cursor.hidden = time === null;
    set(card.at_text, time === null ? "" : clock(time, true));
    if (time === null) return;
    const share = (100 * (time - card.window[0])) / (card.window[1] - card.window[0]);
    card.cursor.style.left = `${share}%`;
    card.timeline.setAttribute("aria-valuenow", String(Math.round(share)));
    card.timeline.setAttribute("aria-valuetext", clock(time, true));
  }

  /** The last hour of the newest range. */
  function newest(stream) {
    const [range] = stream.ranges;
    const to = Date.parse(range.to);
    return { name: stream.name, mode: "rec", from: Math.max(Date.parse(range.from), to - MAX_RECORDING_MS), to };
  }

  /** What is recorded from `time` on, or from the next range after it. */
  function following(stream, time) {
    const range = stream.ranges
      .map((r) => ({ from: Date.parse(r.from), to: Date.parse(r.to) }))
      .filter((r) => r.to > time + 500)
      .sort((a, b) => a.from - b.from)[0];
    if (!range) return null;
    const from = Math.round(Math.max(range.from, time));
    return { name: stream.name, mode: "rec", from, to: Math.min(range.to, from + MAX_RECORDING_MS) };
  }

  function play_from(card, time) {
    const what = following(card.stream, time);
    go(what ?? { name: card.stream.name, mode: "live" });
  }

  // --- the address: #/s/gate/live, #/s/gate/rec?from=…&to=…

  function address(what) {
    return what.mode === "live"
      ? `#/s/${what.name}/live`
      : `#/s/${what.name}/rec${what.from ? `?from=${what.from}&to=${what.to}` : ""}`;
  }

  function go(what) {
    if (location.hash === address(what)) play(what);
    else location.hash = address(what);
  }

  function follow_address() {
    const match = /^#\/s\/([^/]+)\/(live|rec)(?:\?(.*))?$/.exec(location.hash);
    if (!match) return stop();
    const query = new URLSearchParams(match[3]);
    const time = (key) => {
      const value = query.get(key);
      if (!value) return null;
      return /^\d+$/.test(value) ? Number(value) : Date.parse(value) || null;
    };
    play({ name: decodeURIComponent(match[1]), mode: match[2], from: time("from"), to: time("to") });
  }

  // --- the player

  const url_of = (what) => {
    const base = `s/${encodeURIComponent(what.name)}/`;
    if (what.mode === "live") return `${base}live.m3u8`;
    const query = new URLSearchParams();
    if (what.from) query.set("from", what.from);
    if (what.to) query.set("to", what.to);
    return `${base}rec.m3u8${query.size ? `?${query}` : ""}`;
  };

  let hls_loading = null;
  function load_hls() {
    hls_loading ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = HLS_URL;
      script.onload = () => done(window.Hls);
      script.onerror = () => { hls_loading = null; failed(new Error("the player could not be loaded")); };
      document.head.append(script);
    });
    return hls_loading;
  }

  function release() {
    clearTimeout(retry);
    attempt++;
    penstock.player?.destroy();
    penstock.player = null;
    penstock.fatal = null;
    video.removeAttribute("src");
    video.load();
  }

  function stop() {
    wanted = null;
    release();
    $("stage").hidden = true;
    document.title = "Penstock";
    mark_playing();
  }

  async function play(what) {
    release();
    const mine = attempt;
    wanted = what;
    const was_hidden = $("stage").hidden;
    $("stage").hidden = false;
    document.title = `${title_of(what.name)} · Penstock`;
    set($("now-name"), title_of(what.name));
    show($("message"), "Loading…");
    show_when();
    mark_playing();
    if (was_hidden) $("stage").scrollIntoView({ block: "nearest" });
    try {
      const Hls = await load_hls();
      if (mine !== attempt) return;
      if (Hls.isSupported()) play_with(Hls, what);
      else if (video.canPlayType("application/vnd.apple.mpegurl")) play_native(what);
      else return fail("This browser plays no HLS. Open the playlist's URL in a player such as VLC.");
      await video.play();
    } catch (error) {
      if (mine !== attempt) return;
      if (error.name === "NotAllowedError") { video.muted = true; video.play().catch(() => {}); }
      else if (error.name !== "AbortError") again(`Cannot play: ${error.message}.`);
    }
  }

  function play_with(Hls, what) {
    const config = { backBufferLength: 60 };
    if (what.mode === "rec") config.startPosition = 0;
    const hls = (penstock.player = new Hls(config));
    let repairs = 0;
    hls.on(Hls.Events.ERROR, (_, data) => {
      if (!data.fatal) return;
      if (data.type === Hls.ErrorTypes.MEDIA_ERROR && repairs++ < MAX_MEDIA_REPAIRS) return hls.recoverMediaError();
      if (data.type === Hls.ErrorTypes.NETWORK_ERROR) return why_not(what, data.response?.code);
      fail(data.type === Hls.ErrorTypes.MEDIA_ERROR
        ? `This browser cannot decode the stream (${facts(stream_of(what.name) ?? {}) || data.details}).`
        : `The player gave up (${data.details}).`, data.details);
    });
    hls.loadSource(url_of(what));
    hls.attachMedia(video);
  }

  function play_native(what) {
    const hls_url = new URL(url_of(what), document.baseURI).href;
    video.src = hls_url;
    penstock.player = { destroy() {}, native: true };
  }

  /** The server's own reason for a playlist that does not come, and another try. */
  async function why_not(what, code) {
    const mine = attempt;
    let text = "The connection is gone.";
    try {
      const answer = await fetch(url_of(what), { cache: "no-cache" });
      if (answer.ok) text = code === 404 ? "A piece of this is gone." : "The connection broke.";
      else text = sentence((await answer.json()).reason);
    } catch { /* the text above says it */ }
    if (mine === attempt) again(text);
  }

  const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

  function again(text) {
    show($("message"), `${text} Trying again.`);
    const what = wanted;
    clearTimeout(retry);
    retry = setTimeout(() => { if (wanted === what) play(what).then(() => show($("message"), text)); }, RETRY_MS);
  }

  function fail(text, details) {
    penstock.fatal = details ?? text;
    show($("message"), text);
  }

  video.addEventListener("playing", () => show($("message"), ""));
  video.addEventListener("error", () => {
    if (penstock.player?.native && wanted) why_not(wanted, 0);
  });
  video.addEventListener("ended", () => {
    const stream = wanted?.mode === "rec" && wanted.to && stream_of(wanted.name);
    const next = stream && following(stream, wanted.to);
    if (next && next.from - wanted.to < 1000) go(next);
  });

  const stream_of = (name) => penstock.streams.find((s) => s.name === name);
  const title_of = (name) => stream_of(name)?.title || name;

  /** The wall time of the picture on screen, if the player knows. */
  function picture_time() {
    const hls = penstock.player;
    if (!hls) return null;
    if (hls.native) {
      const start = video.getStartDate?.().getTime();
      return Number.isFinite(start) ? start + video.currentTime * 1000 : null;
    }
    return hls.playingDate?.getTime() ?? null;
  }

  function show_when() {
    if (!wanted) return;
    const hls = penstock.player;
    const live = wanted.mode === "live";
    const growing = live && (hls?.levels?.[0]?.details?.live ?? true);
    const picture = picture_time();
    const behind = growing && Number.isFinite(hls?.latency) && hls.latency > 0 ? `${hls.latency.toFixed(1)} s behind` : "";
    set($("now-when"), [
      live ? (growing ? "Live" : "Last minutes") : "Recording",
      picture && clock(picture, true),
      behind,
      video.muted && "sound is off",
    ].filter(Boolean).join(" · "));
    const stream = stream_of(wanted.name);
    $("go-live").hidden = !(stream?.state === "live" && (!live || (hls?.latency ?? 0) > 15));
    const card = cards.get(wanted.name);
    if (!card) return;
    const [start, end] = card.window;
    card.head.hidden = !picture || picture < start || picture > end;
    if (!card.head.hidden) card.head.style.left = `${(100 * (picture - start)) / (end - start)}%`;
  }

  function mark_playing() {
    for (const [name, card] of cards) {
      const on = wanted?.name === name;
      card.root.classList.toggle("playing", on);
      if (!on) card.head.hidden = true;
    }
    if (wanted) set($("now-name"), title_of(wanted.name));
  }

  // --- start

  $("close").addEventListener("click", () => { location.hash = "#/"; });
  $("go-live").addEventListener("click", () => go({ name: wanted.name, mode: "live" }));
  $("filter").addEventListener("input", () => show_streams(penstock.streams));
  $("zoom").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    zoom_s = Number(button.dataset.zoom);
    for (const other of $("zoom").children) other.setAttribute("aria-pressed", String(other === button));
    for (const card of cards.values()) draw(card);
    show_when();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && wanted && !document.fullscreenElement) location.hash = "#/";
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  addEventListener("hashchange", follow_address);
  setInterval(show_when, 500);
  poll().then(() => { if (location.hash) follow_address(); (window.requestIdleCallback ?? setTimeout)(() => load_hls().catch(() => {})); });
})();
